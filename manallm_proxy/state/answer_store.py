"""Answers that are kept, and what keeps them: the interface, and the memory of one process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Target

Key = bytes
"""SHA-256 of all that an answer depends on."""
OVERHEAD: Final = 900
"""Bytes of a kept answer beside its body: objects, its key, its place in the order of use."""


@frozen
class CachedAnswer:
    """One complete answer: the whole answer's bytes, as its door wrote them, or would have."""

    body: bytes = field(repr=False)
    target: Target
    """Who gave it."""
    content_type: str = "application/json"
    usage: Usage | None = None
    """What it cost, and a hit saves."""


@frozen
class CacheHit:
    """A kept answer, and how many seconds ago it was."""

    kept: CachedAnswer
    age: float


class AnswerStore(Protocol):
    """Keeps answers by key. A look-up that would take too long is a miss."""

    async def find(self, key: Key) -> CacheHit | None:
        """What is kept under `key`, unless it has expired."""

    def keep(self, key: Key, kept: CachedAnswer, ttl: float) -> None:
        """Keeps it for `ttl` seconds, if there is room."""

    def drop(self, key: Key) -> None:
        """Forgets it."""

    async def close(self) -> None:
        """Closes what is open."""


@define(eq=False)
class _Record:
    kept: CachedAnswer
    at: float
    ttl: float


@define(eq=False)
class MemoryAnswers:
    """See `AnswerStore`. Over ``limit`` bytes, the least recently used answers go. ``clock``: monotonic seconds."""

    clock: Callable[[], float]
    limit: int
    size: int = 0
    """Bytes kept, with their overhead."""
    _records: OrderedDict[Key, _Record] = field(factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self._records)

    async def find(self, key: Key) -> CacheHit | None:
        record = self._records.get(key)
        if record is None:
            return None
        age = self.clock() - record.at
        if age >= record.ttl:
            self.drop(key)
            return None
        self._records.move_to_end(key)
        return CacheHit(record.kept, age)

    def keep(self, key: Key, kept: CachedAnswer, ttl: float) -> None:
        self.drop(key)
        if _cost(kept) <= self.limit:
            self._records[key] = _Record(kept, self.clock(), ttl)
            self.size += _cost(kept)
            self.trim()

    def drop(self, key: Key) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            self.size -= _cost(record.kept)

    def trim(self) -> None:
        """Drops the least recently used until the rest is within ``limit``, which a reload may have lowered."""
        while self.size > self.limit:
            self.size -= _cost(self._records.popitem(last=False)[1].kept)

    async def close(self) -> None:
        self._records.clear()
        self.size = 0


def _cost(kept: CachedAnswer) -> int:
    return len(kept.body) + OVERHEAD
