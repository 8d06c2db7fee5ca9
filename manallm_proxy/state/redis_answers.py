"""The answer cache in Redis, for all workers and instances. Anything but an entry of ours is a miss, and deleted."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Target
from manallm_proxy.state.answer_store import CachedAnswer, CacheHit, Key
from manallm_proxy.state.entries import LARGEST, WriteBehind, read, seal, unseal
from manallm_proxy.state.link import Link, Refused, ServerUnavailable
from manallm_proxy.state.names import PREFIX

_HEAD: Final = 4


@frozen
class _Meta:
    """The JSON header before the body. ``ttl`` in seconds."""

    provider: str
    model: str
    content_type: str
    ttl: float
    usage: Usage | None = None


_META: Final = msgspec.json.Decoder(_Meta)


def pack(name: str, kept: CachedAnswer, ttl: float) -> bytes:
    """The entry for `kept` under `name`: seal, length of `_Meta`, `_Meta`, body."""
    target = kept.target
    meta = msgspec.json.encode(_Meta(target.provider, target.model, kept.content_type, ttl, kept.usage))
    return seal(name, len(meta).to_bytes(_HEAD, "big") + meta + kept.body)


def unpack(name: str, entry: bytes) -> tuple[CachedAnswer, float]:
    """The inverse of `pack`: the answer and its ttl. Raises ValueError for any other entry."""
    content = unseal(name, entry)
    end = _HEAD + int.from_bytes(content[:_HEAD], "big")
    meta = _META.decode(content[_HEAD:end])  # its errors are ValueErrors
    return CachedAnswer(content[end:], Target(meta.provider, meta.model), meta.content_type, meta.usage), meta.ttl


@define(eq=False)
class RedisAnswers:
    """See `AnswerStore`. Writes run in the background; until one is done, this process finds the answer locally."""

    link: Link
    _behind: WriteBehind = field(init=False)
    _writing: dict[Key, CachedAnswer] = field(factory=dict, repr=False)

    def __attrs_post_init__(self) -> None:
        self._behind = WriteBehind(self.link)

    async def find(self, key: Key) -> CacheHit | None:
        if (kept := self._writing.get(key)) is not None:
            return CacheHit(kept, 0.0)
        name = name_of(key)
        try:
            entry, left = await read(self.link, name)
        except ServerUnavailable:
            return None
        except Refused as refusal:
            self.link.report_refusal(str(refusal))
            return None
        if not entry:
            return None
        try:
            kept, ttl = unpack(name, entry)
            age = ttl - left / 1000
            if left < 0 or age < -1:  # without an expiry, or longer than its ttl
                raise ValueError("not as we keep it")
        except (ValueError, TypeError):
            self.drop(key)
            return None
        return CacheHit(kept, max(0.0, age))

    def keep(self, key: Key, kept: CachedAnswer, ttl: float) -> None:
        if not self.link.is_well or len(kept.body) > LARGEST:
            return
        name = name_of(key)
        entry = pack(name, kept, ttl)

        def done() -> None:
            if self._writing.get(key) is kept:
                del self._writing[key]

        async def write(client: Any) -> None:
            await client.set(name, entry, px=max(1, int(ttl * 1000)))

        if self._behind.send(write, len(entry), done):
            self._writing[key] = kept

    def drop(self, key: Key) -> None:
        self._writing.pop(key, None)
        self._behind.send(lambda client: client.unlink(name_of(key)))

    async def close(self) -> None:
        await self._behind.close()


def name_of(key: Key) -> str:
    return f"{PREFIX}answer:{key.hex()}"
