"""Responses that clients may refer to: by ``previous_response_id``, ``item_reference`` or ``GET``.

Providers always get the whole history, so a response is stored with all items that led to it. A conversation's turns
share most of their items: each distinct item is stored once, and counted once.

1. A response belongs to the client key that made it. For all others it does not exist.
2. A response expires once it has not been used (read, continued, referred to) for ``ttl``.
3. All that is stored, including overhead, takes at most ``memory`` bytes; the least recently used is evicted first.

`MemoryStore` is synchronous and takes the time from its clock; `Store` is what the door needs of any store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from os import urandom
from typing import Final, Protocol

from attrs import evolve, field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.openai.large import LARGE_BYTES, free_aside

Owner = str | None
"""The name of a client key; None if none is required: then all clients share one store."""

RECORD_COST: Final = 1200
"""Bytes of overhead per response: objects and dictionary entries."""
HASHED: Final = 2**20
"""Max bytes of an item for which an equal one is searched."""
ITEM_COST: Final = 300
"""Bytes of overhead per distinct item."""
NAME_COST: Final = 500
"""Bytes of overhead per id of an output item."""
REFERENCE_COST: Final = 8
"""Bytes of overhead per item of each response, shared or not."""
STEP: Final = 1000
"""Items that are looked at in one turn of the loop."""
_ID_BYTES: Final = 22
LONGEST_ID: Final = 64
"""Max characters of an id that may be ours."""


@frozen
class Stored:
    """One stored response. All bytes are JSON."""

    id: str
    shell: bytes = field(repr=False)
    """The response object with an empty ``output``."""
    input: tuple[bytes, ...] = field(repr=False)
    """All items that led to it, oldest first: the history that it continued, then its own input."""
    output: tuple[bytes, ...] = field(repr=False)
    output_ids: tuple[str, ...] = ()
    """The ids of the items in ``output``, in the same order."""
    alone: int = 0
    """Bytes that it takes if it shares no items, where that is known already: see `weighed`."""


@frozen
class Bounds:
    """Limits of a store. ``memory`` in bytes; ``ttl`` in seconds since the last use."""

    memory: int = 64 * 2**20
    ttl: float = 3600.0


class Store(Protocol):
    """Stores responses. Unknown, expired, and other clients' ids are treated alike."""

    def new_id(self, prefix: str) -> str:
        """A new, unguessable id, such as ``resp_...``."""

    def keep(self, owner: Owner, stored: Stored) -> None:
        """Stores `stored`, unless it alone exceeds the memory limit."""

    async def keep_in_turns(self, owner: Owner, stored: Stored) -> None:
        """The same of one with thousands of items, a few in each turn of the loop."""

    async def response(self, owner: Owner, id_: str) -> Stored | None:
        """The response with that id; None if unknown. Raises NotLookedUp."""

    async def items(self, owner: Owner, ids: Iterable[str], required: Collection[str] = ()) -> dict[str, bytes]:
        """Output items by id, as JSON; unknown ids are left out. Raises NotLookedUp for those that are `required`."""

    async def drop(self, owner: Owner, id_: str) -> bool:
        """Deletes a response. Returns whether there was one. Raises NotLookedUp."""


@define(eq=False)
class _Item:
    data: bytes = field(repr=False)
    uses: int = 0


@define(eq=False)
class _Record:
    owner: Owner
    stored: Stored
    used_at: float


@define(eq=False)
class MemoryStore:
    """A store in this process. ``clock``: monotonic time in seconds; ``bounds`` may change with each reload."""

    clock: Callable[[], float]
    bounds: Callable[[], Bounds] = Bounds
    worker: int = 0
    """The number of this worker process, which is part of its ids."""
    size: int = 0
    """Bytes stored, including overhead."""
    _random: list[str] = field(factory=list, repr=False)
    """Random bytes for new ids."""
    _records: OrderedDict[tuple[Owner, str], _Record] = field(factory=OrderedDict)
    """Least recently used first. An OrderedDict, since a dict finds its first key slowly after many removals."""
    _items: dict[bytes | int, _Item] = field(factory=dict, repr=False)
    _names: dict[tuple[Owner, str], tuple[bytes, str]] = field(factory=dict, repr=False)
    """By owner and id of an output item: the item, and the id of its response."""

    def __len__(self) -> int:
        return len(self._records)

    def new_id(self, prefix: str) -> str:
        if not self._random:  # one system call for many ids
            drawn = urandom(_ID_BYTES * 64)
            self._random = [drawn[n : n + _ID_BYTES].hex() for n in range(0, len(drawn), _ID_BYTES)]
        return f"{prefix}_{self.worker:04x}{self._random.pop()}"

    def keep(self, owner: Owner, stored: Stored) -> None:
        for _ in self._keep(owner, stored):
            pass

    async def keep_in_turns(self, owner: Owner, stored: Stored) -> None:
        for _ in self._keep(owner, stored):
            await asyncio.sleep(0)

    def _keep(self, owner: Owner, stored: Stored) -> Iterator[None]:
        """See `Store.keep`, in steps of as many items as others may wait for. It is there after the last of them."""
        if (stored.alone or _alone(stored)) > self.bounds().memory:
            return
        self.forget(owner, stored.id)
        input_: list[bytes] = []
        output: list[bytes] = []
        for items, shared in ((stored.input, input_), (stored.output, output)):
            for at in range(0, len(items), STEP):
                shared += [self._share(data) for data in items[at : at + STEP]]
                if len(items) > STEP:
                    yield
        kept = Stored(stored.id, stored.shell, tuple(input_), tuple(output), stored.output_ids)
        for n, (name, data) in enumerate(zip(kept.output_ids, kept.output, strict=True), 1):
            self._names[owner, name] = (data, kept.id)
            if not n % STEP:
                yield
        self._records[owner, kept.id] = _Record(owner, kept, self.clock())
        self.size += _own(kept)
        yield from self._trimming()

    def find(self, owner: Owner, id_: str) -> Stored | None:
        """See `Store.response`."""
        self.trim()
        record = self._records.get((owner, id_))
        if record is None or self._is_expired(record):
            return None
        record.used_at = self.clock()
        self._records.move_to_end((owner, id_))
        return record.stored

    def find_items(self, owner: Owner, ids: Iterable[str]) -> dict[str, bytes]:
        """See `Store.items`."""
        self.trim()
        found = {id_: self._names[owner, id_] for id_ in ids if (owner, id_) in self._names}
        known = {response for _, response in found.values() if self.find(owner, response) is not None}
        return {id_: data for id_, (data, response) in found.items() if response in known}

    def forget(self, owner: Owner, id_: str) -> bool:
        """See `Store.drop`."""
        self.trim()
        record = self._records.pop((owner, id_), None)
        if record is None:
            return False
        self._release(record)
        was_there = not self._is_expired(record)
        held = [record]
        del record
        _free(held)
        return was_there

    def trim(self) -> None:
        """Removes expired responses, and the least recently used until the rest fits: of those with thousands of items
        one, since that takes milliseconds; the next call goes on."""
        next(self._trimming(), None)

    def _trimming(self) -> Iterator[None]:
        """See `trim`, in steps of as many items as others may wait for."""
        items = 0
        while self._records:
            record = next(iter(self._records.values()))
            if self.size <= self.bounds().memory and not self._is_expired(record):
                return
            self._records.popitem(last=False)
            self._release(record)
            items += len(record.stored.input) + len(record.stored.output)
            held = [record]
            del record
            _free(held)
            if items > STEP:
                items = 0
                yield

    async def response(self, owner: Owner, id_: str) -> Stored | None:
        return self.find(owner, id_)

    async def items(self, owner: Owner, ids: Iterable[str], required: Collection[str] = ()) -> dict[str, bytes]:
        return self.find_items(owner, ids)

    async def drop(self, owner: Owner, id_: str) -> bool:
        return self.forget(owner, id_)

    def _is_expired(self, record: _Record) -> bool:
        return record.used_at <= self.clock() - self.bounds().ttl

    def _share(self, data: bytes) -> bytes:
        """Stores an item, or counts one more use of an equal one. Returns the stored bytes."""
        item = self._items.get(key := _key(data))
        if item is None:
            item = self._items[key] = _Item(data)
            self.size += len(data) + ITEM_COST
        item.uses += 1
        return item.data

    def _release(self, record: _Record) -> None:
        self.size -= _own(record.stored)
        for name in record.stored.output_ids:
            key = record.owner, name
            if (named := self._names.get(key)) is not None and named[1] == record.stored.id:  # not that of a later one
                del self._names[key]
        for data in (*record.stored.input, *record.stored.output):
            item = self._items[content := _key(data)]
            item.uses -= 1
            if not item.uses:
                del self._items[content]
                self.size -= len(data) + ITEM_COST


def _free(held: list[_Record]) -> None:
    """Frees a removed record, which nobody else may hold; in a thread if it has megabytes: 60 of them take 8 ms."""
    stored = held[0].stored
    is_long = sum(map(len, (*stored.input, *stored.output))) > LARGE_BYTES
    del stored
    free_aside(held, is_long)
    if not is_long:
        held.clear()


def _own(stored: Stored) -> int:
    """Bytes that a response takes without its items."""
    references = REFERENCE_COST * (len(stored.input) + len(stored.output))
    return len(stored.shell) + RECORD_COST + NAME_COST * len(stored.output_ids) + references


def _alone(stored: Stored) -> int:
    """Bytes that a response would take if it shared no items."""
    items = {_key(data): data for data in (*stored.input, *stored.output)}
    return _own(stored) + sum(len(data) + ITEM_COST for data in items.values())


def weighed(stored: Stored) -> Stored:
    """`stored` with ``alone``: to tell it takes a while where there are thousands of items, in whichever thread."""
    return evolve(stored, alone=_alone(stored))


def _key(data: bytes) -> bytes | int:
    """The key of equal items. A long item equals only itself, since hashing takes a millisecond per megabyte."""
    return data if len(data) <= HASHED else id(data)
