"""Stored responses of ``/v1/responses``, shared by all instances in Redis; in this process alone while that is down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.doors.responses.store import LONGEST_ID, Bounds, Owner, Store, Stored
from manallm_proxy.state.entries import LARGEST, WriteBehind, read, seal, unseal
from manallm_proxy.state.link import Link, Refused, ServerUnavailable
from manallm_proxy.state.names import PREFIX

_STORED: Final = msgspec.msgpack.Decoder(Stored)
_GONE: Final = b"deleted"
"""Tombstone of a deleted response, so that no instance returns its own copy."""
_NOTHING: Final = b""
_TOGETHER: Final = 100
"""Items whose names are written in one go."""


@define(eq=False)
class SharedResponses:
    """See `store.Store`. ``link`` None: the current configuration shares nothing.

    ``own`` stores everything too: what was stored while the server was down is found here at least.
    """

    own: Store
    link: Callable[[], Link | None]
    bounds: Callable[[], Bounds]
    _behind: WriteBehind | None = field(default=None, init=False)

    def new_id(self, prefix: str) -> str:
        return self.own.new_id(prefix)

    def keep(self, owner: Owner, stored: Stored) -> None:
        self.own.keep(owner, stored)
        self._share(owner, stored)

    async def keep_in_turns(self, owner: Owner, stored: Stored) -> None:
        await self.own.keep_in_turns(owner, stored)
        self._share(owner, stored)

    def _share(self, owner: Owner, stored: Stored) -> None:
        size = len(stored.shell) + sum(map(len, stored.input)) + sum(map(len, stored.output))
        if self.link() is not None and size <= LARGEST:
            self._write(_name(owner, "response", stored.id), msgspec.msgpack.encode(stored))
            for at in range(0, len(stored.output_ids), _TOGETHER):
                self._write_items(owner, stored.output_ids[at : at + _TOGETHER], stored.id.encode())

    async def response(self, owner: Owner, id_: str) -> Stored | None:
        content = await self._read(owner, "response", id_)
        if content == _GONE:
            return None
        if content:
            try:
                return _STORED.decode(content)
            except ValueError:
                self._forget(_name(owner, "response", id_))
        return await self.own.response(owner, id_)

    async def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, bytes]:
        wanted = list(ids)
        found = await self.own.items(owner, wanted)
        for id_ in wanted:
            if id_ not in found and (response := (await self._read(owner, "item", id_)).decode(errors="replace")):
                stored = await self.response(owner, response)
                found |= dict(zip(stored.output_ids, stored.output, strict=True)) if stored is not None else {}
        return {id_: found[id_] for id_ in wanted if id_ in found}

    async def drop(self, owner: Owner, id_: str) -> bool:
        known = await self.response(owner, id_) is not None
        await self.own.drop(owner, id_)
        if known and self.link() is not None:
            self._write(_name(owner, "response", id_), _GONE)
        return known

    async def _read(self, owner: Owner, kind: str, id_: str) -> bytes:
        """The stored content, whose lifetime begins anew; `_NOTHING` if there is no entry of ours."""
        link = self.link()
        if link is None or len(id_) > LONGEST_ID:
            return _NOTHING
        name = _name(owner, kind, id_)
        try:
            entry, _ = await read(link, name, self._milliseconds())
        except ServerUnavailable:
            return _NOTHING
        except Refused as refusal:
            link.report_refusal(str(refusal))
            return _NOTHING
        try:
            return unseal(name, entry) if entry else _NOTHING
        except ValueError:
            self._forget(name)
            return _NOTHING

    def _milliseconds(self) -> int:
        return max(1, int(self.bounds().ttl * 1000))

    def _write(self, name: str, content: bytes) -> None:
        entry, lifetime = seal(name, content), self._milliseconds()

        async def write(client: Any) -> None:
            await client.set(name, entry, px=lifetime)

        self._send(write, len(entry))

    def _write_items(self, owner: Owner, ids: Sequence[str], content: bytes) -> None:
        """`content` under the names of items: what that takes is done in a turn of its own."""
        lifetime = self._milliseconds()

        async def write(client: Any) -> None:
            together = client.pipeline(transaction=False)
            for name in [_name(owner, "item", id_) for id_ in ids]:
                together.set(name, seal(name, content), px=lifetime)
            await together.execute()

        self._send(write, len(ids) * len(seal("", content)))

    def _forget(self, name: str) -> None:
        async def forget(client: Any) -> None:
            await client.unlink(name)

        self._send(forget, 0)

    def _send(self, command: Callable[[Any], Any], size: int) -> None:
        link = self.link()
        if link is None:
            return
        if self._behind is None or self._behind.link is not link:  # a reload has changed it
            self._behind = WriteBehind(link)
        self._behind.send(command, size)


def _name(owner: Owner, kind: str, id_: str) -> str:
    """The Redis key. Hashed, so that neither names of client keys nor ids chosen by clients reach the server."""
    whose = hashlib.sha256(b"" if owner is None else b"=" + owner.encode()).hexdigest()[:32]
    return f"{PREFIX}{kind}:{whose}:{hashlib.sha256(id_.encode()).hexdigest()[:48]}"
