"""Stored responses of ``/v1/responses``, shared by all instances in Redis; in this process alone while that is down.

A deleted one leaves a tombstone there, which is written until the server has confirmed it: no copy comes back, whether
the server was away or a write was still on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.doors.responses.not_found import NotLookedUp
from manallm_proxy.doors.responses.store import LONGEST_ID, Bounds, Owner, Store, Stored
from manallm_proxy.state.entries import LARGEST, WriteBehind, read, seal, unseal
from manallm_proxy.state.link import AGAIN, AT_A_TIME, Link, Refused, ServerUnavailable
from manallm_proxy.state.names import PREFIX
from manallm_proxy.state.settlements import LAST, REFUSED_AGAIN

_STORED: Final = msgspec.msgpack.Decoder(Stored)
_GONE: Final = b"deleted"
"""Tombstone of a deleted response, so that no instance returns its own copy."""
_NOTHING: Final = b""
_KEEPER: Final = "the Redis that 'state' names"
_TOGETHER: Final = 100
"""Items whose names are written in one go."""
MOST_DELETED: Final = 50_000
"""Max tombstones that wait for the server."""


@define(eq=False)
class SharedResponses:
    """See `store.Store`. ``link`` None: the current configuration shares nothing.

    ``own`` stores everything too: what was stored while the server was down is found here at least.
    """

    own: Store
    link: Callable[[], Link | None]
    bounds: Callable[[], Bounds]
    _behind: WriteBehind | None = field(default=None, init=False)
    _deleted: dict[str, float] = field(factory=dict, init=False, repr=False)
    """By name, oldest first: responses whose tombstone the server has not confirmed yet, and when they were deleted."""
    _burying: asyncio.Task[None] | None = field(default=None, init=False)

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
            with contextlib.suppress(NotLookedUp):  # our own copy would be found while the server is away
                await self.own.drop(owner, id_)
        if content == _GONE or (self._deleted and self._is_deleted(_name(owner, "response", id_))):
            return None
        if content:
            try:
                return _STORED.decode(content)
            except ValueError:
                self._forget(_name(owner, "response", id_))
        found = await self.own.response(owner, id_)
        if found is None and content is None:
            raise NotLookedUp(_KEEPER)
        return found

    async def items(self, owner: Owner, ids: Iterable[str], required: Collection[str] = ()) -> dict[str, bytes]:
        wanted = list(ids)
        found, unread = await self.own.items(owner, wanted), False
        missing = [id_ for id_ in wanted if id_ not in found] if self.link() is not None else []
        for at in range(0, len(missing), AT_A_TIME):  # one after the other, a hundred take a hundred round trips
            some = [id_ for id_ in missing[at : at + AT_A_TIME] if id_ not in found]
            entries = await asyncio.gather(*(self._read(owner, "item", id_) for id_ in some))
            unread = unread or None in entries
            for id_, entry in zip(some, entries, strict=True):
                if id_ not in found and entry:
                    found |= await self._items_of(owner, entry.decode(errors="replace"), is_required=id_ in required)
        if missing_too := [id_ for id_ in required if id_ not in found]:
            if unread:
                raise NotLookedUp(_KEEPER)
            found |= await self.own.items(owner, missing_too, missing_too)  # which says if it cannot tell
        return {id_: found[id_] for id_ in wanted if id_ in found}

    async def _items_of(self, owner: Owner, response: str, *, is_required: bool) -> dict[str, bytes]:
        try:
            stored = await self.response(owner, response)
        except NotLookedUp:
            if is_required:
                raise
            stored = None
        return dict(zip(stored.output_ids, stored.output, strict=True)) if stored is not None else {}

    async def drop(self, owner: Owner, id_: str) -> bool:
        known = await self.response(owner, id_) is not None
        await self.own.drop(owner, id_)
        if known and self.link() is not None:
            self._deleted[_name(owner, "response", id_)] = asyncio.get_running_loop().time()
            if len(self._deleted) > MOST_DELETED:
                del self._deleted[next(iter(self._deleted))]
            self._bury()
        return known

    async def close(self) -> None:
        """Gives what is being written a second to end."""
        if self._behind is not None:
            await self._behind.close()
        if self._burying is not None:
            link = self.link()
            await asyncio.wait([self._burying], timeout=LAST if link is not None and link.is_well else 0)
            self._burying.cancel()
            await asyncio.wait([self._burying])

    def _is_deleted(self, name: str) -> bool:
        if name not in self._deleted:
            return False
        self._bury()  # which ends where a reload takes the server away, and this one may have brought it back
        return True

    def _bury(self) -> None:
        if self._burying is None or self._burying.done():
            self._burying = asyncio.get_running_loop().create_task(self._bury_all())

    async def _bury_all(self) -> None:
        """Writes the tombstones, for as long as that takes: without a use, what is at the server expires by then."""
        clock = asyncio.get_running_loop().time
        while self._deleted and (link := self.link()) is not None:
            name, since = next(iter(self._deleted.items()))
            if clock() - since < self.bounds().ttl:
                try:
                    await link.use(partial(_put_tombstone, name=name, lifetime=self._milliseconds()))
                except ServerUnavailable:
                    await asyncio.sleep(AGAIN)
                    continue
                except Refused as refusal:
                    link.report_refusal(str(refusal))
                    await asyncio.sleep(REFUSED_AGAIN)
                    continue
            self._deleted.pop(name, None)

    async def _read(self, owner: Owner, kind: str, id_: str) -> bytes | None:
        """The stored content, whose lifetime begins anew; `_NOTHING` if there is no entry of ours, None if the server
        does not say."""
        link = self.link()
        if link is None or len(id_) > LONGEST_ID:
            return _NOTHING
        name = _name(owner, kind, id_)
        try:
            entry, _ = await read(link, name, self._milliseconds())
        except ServerUnavailable:
            return None
        except Refused as refusal:
            link.report_refusal(str(refusal))
            return None
        try:
            return unseal(name, entry) if entry else _NOTHING
        except ValueError:
            self._forget(name)
            return _NOTHING

    def _milliseconds(self) -> int:
        return max(1, int(self.bounds().ttl * 1000))

    def _write(self, name: str, content: bytes) -> None:
        """Writes a response, unless it is there: a tombstone may have overtaken it."""
        entry, lifetime = seal(name, content), self._milliseconds()

        async def write(client: Any) -> None:
            await client.set(name, entry, px=lifetime, nx=True)

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


async def _put_tombstone(client: Any, *, name: str, lifetime: int) -> None:
    """Removes the response first: a server without memory refuses the tombstone, but not that."""
    both = client.pipeline(transaction=False)
    both.execute_command("UNLINK", name)  # a cluster's own `unlink` is not of the pipeline
    both.set(name, seal(name, _GONE), px=lifetime)
    await both.execute()


def _name(owner: Owner, kind: str, id_: str) -> str:
    """The Redis key. Hashed, so that neither names of client keys nor ids chosen by clients reach the server."""
    whose = hashlib.sha256(b"" if owner is None else b"=" + owner.encode()).hexdigest()[:32]
    return f"{PREFIX}{kind}:{whose}:{hashlib.sha256(id_.encode()).hexdigest()[:48]}"
