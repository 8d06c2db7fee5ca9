"""The answer cache: its interface, and the implementation in the memory of one process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Target

Key = bytes
"""SHA-256 of everything that an answer depends on."""
OVERHEAD: Final = 900
"""Bytes of a cached answer in addition to its body: objects, key, place in the LRU order."""


@frozen
class CachedAnswer:
    """One complete answer, as its door wrote it, or would have written it, for a request that does not stream."""

    body: bytes = field(repr=False)
    target: Target
    """The target that gave it."""
    content_type: str = "application/json"
    usage: Usage | None = None
    """Its tokens, which a hit saves."""


@frozen
class CacheHit:
    """A cached answer, and its age in seconds."""

    kept: CachedAnswer
    age: float


class AnswerStore(Protocol):
    """A cache of answers by key. A look-up that would take too long is a miss."""

    async def find(self, key: Key) -> CacheHit | None:
        """The answer under `key`; None if there is none, or it has expired."""

    def keep(self, key: Key, kept: CachedAnswer, ttl: float) -> None:
        """Stores an answer for `ttl` seconds, if there is room."""

    def drop(self, key: Key) -> None:
        """Removes the answer under `key`."""

    async def close(self) -> None:
        """Closes connections, if any."""


@define(eq=False)
class _Record:
    kept: CachedAnswer
    at: float
    ttl: float


@define(eq=False)
class MemoryAnswers:
    """See `AnswerStore`. Above ``limit`` bytes the least recently used are evicted. ``clock``: monotonic seconds."""

    clock: Callable[[], float]
    limit: int
    size: int = 0
    """Bytes in use, with overhead."""
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
        """Evicts the least recently used until the rest fits ``limit``, which a reload may have lowered."""
        while self.size > self.limit:
            self.size -= _cost(self._records.popitem(last=False)[1].kept)

    async def close(self) -> None:
        self._records.clear()
        self.size = 0


def _cost(kept: CachedAnswer) -> int:
    return len(kept.body) + OVERHEAD
