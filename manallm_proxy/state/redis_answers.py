"""Answers kept in Redis, for all workers and instances. What is not an entry of ours is a miss, and deleted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.targets import Target
from manallm_proxy.state.kept import Aged, Kept, Key
from manallm_proxy.state.link import Away, Link, Refused

PREFIX: Final = "manallm:1:answer:"
"""Of our keys. Another version of the entries is another prefix."""
LARGEST: Final = 4 * 2**20
"""Bytes of an entry. No more is read, whatever stands there."""
WAITING: Final = 16 * 2**20
"""Bytes of entries that are on their way to the server; above it nothing is kept."""
_DIGEST: Final = 16
_HEAD: Final = 4


@frozen
class _Meta:
    """What stands before the body, as JSON. ``ttl`` in seconds."""

    provider: str
    model: str
    content_type: str
    ttl: float
    usage: Usage | None = None


_META: Final = msgspec.json.Decoder(_Meta)


def pack(name: bytes, kept: Kept, ttl: float) -> bytes:
    """The entry under `name`: a digest of all that follows and of the name, a length, `_Meta`, the body."""
    target = kept.target
    meta = msgspec.json.encode(_Meta(target.provider, target.model, kept.content_type, ttl, kept.usage))
    rest = len(meta).to_bytes(_HEAD, "big") + meta + kept.body
    return _digest(name, rest) + rest


def unpack(name: bytes, entry: bytes) -> tuple[Kept, float]:
    """What `pack` was given. ValueError for what it did not make, or not for this name."""
    rest = entry[_DIGEST:]
    if len(entry) < _DIGEST + _HEAD or _digest(name, rest) != entry[:_DIGEST]:
        raise ValueError("not ours, or not whole")
    end = _HEAD + int.from_bytes(rest[:_HEAD], "big")
    meta = _META.decode(rest[_HEAD:end])  # its errors are ValueErrors
    return Kept(rest[end:], Target(meta.provider, meta.model), meta.content_type, meta.usage), meta.ttl


def _digest(name: bytes, rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=_DIGEST, key=hashlib.sha256(name).digest()).digest()


@define(eq=False)
class RedisAnswers:
    """See `AnswerStore`. Writing waits for nobody: until it is done, this process knows what it wrote."""

    link: Link
    _writing: dict[Key, Kept] = field(factory=dict, repr=False)
    _waiting: int = 0
    """Bytes in ``_writing``."""
    _tasks: set[asyncio.Task[None]] = field(factory=set)

    async def find(self, key: Key) -> Aged | None:
        if (kept := self._writing.get(key)) is not None:
            return Aged(kept, 0.0)
        name = _name(key)

        async def read(client: Any) -> list[Any]:
            asked = client.pipeline(transaction=False)
            asked.getrange(name, 0, LARGEST)
            asked.pttl(name)
            found: list[Any] = await asked.execute(raise_on_error=False)  # which would put words before the server's
            for each in found:
                if isinstance(each, Exception):
                    raise each
            return found

        try:
            entry, left = await self.link.use(read)
        except Away:
            return None
        except Refused as refusal:
            if str(refusal) == "WRONGTYPE":
                self.drop(key)
            else:
                self.link.told(str(refusal))
            return None
        if not entry:
            return None
        try:
            kept, ttl = unpack(name.encode(), entry)
            age = ttl - left / 1000
            if left < 0 or age < -1:  # it never ends, or lives longer than it was given
                raise ValueError("not as we keep it")
        except (ValueError, TypeError):
            self.drop(key)
            return None
        return Aged(kept, max(0.0, age))

    def keep(self, key: Key, kept: Kept, ttl: float) -> None:
        name = _name(key)
        entry = pack(name.encode(), kept, ttl)
        if len(entry) > LARGEST or self._waiting + len(entry) > WAITING or not self.link.is_well:
            return
        self._writing[key] = kept
        self._waiting += len(entry)

        def done() -> None:
            self._waiting -= len(entry)
            if self._writing.get(key) is kept:
                del self._writing[key]

        self._start(lambda client: client.set(name, entry, px=max(1, int(ttl * 1000))), done)

    def drop(self, key: Key) -> None:
        self._writing.pop(key, None)
        self._start(lambda client: client.unlink(_name(key)))

    async def close(self) -> None:
        if self._tasks:  # what is kept now may still be
            await asyncio.wait(self._tasks, timeout=1.0)
        await self.link.close()

    def _start(self, command: Callable[[Any], Awaitable[Any]], done: Callable[[], None] = lambda: None) -> None:
        async def run() -> None:
            try:
                await self.link.use(command)
            except Away:
                pass
            except Refused as refusal:
                self.link.told(str(refusal))
            finally:
                done()

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(key: Key) -> str:
    return PREFIX + key.hex()
