"""Coalesces identical requests (single flight): several clients receive one answer.

A task of its own asks the provider, so that it outlives the client whose request began it; it is cancelled when the
last client has left. Each client has a seat, reads at its own pace, and also gets the parts sent before it joined. The
parts held are bounded: above the bound nobody can join, and the provider waits for the slowest client.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.door import Reply
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Entry
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.state.answer_store import CachedAnswer, Key

HELD: Final = 4 * 2**20
"""Max bytes of a stream that are held for clients that join late."""


@frozen
class Form:
    """How an answer is sent: whole or as a stream, and whether the stream ends with its usage."""

    stream: bool
    with_usage: bool = False


@define(eq=False)
class Flight:
    """One shared answer. ``form``: that of the request that began it."""

    form: Form
    entry: Entry | None = None
    """The chain's entry that answers; None until the commit."""
    kept: CachedAnswer | None = None
    """The whole answer, once complete; None if it grew beyond the bytes held."""
    last: bytes = field(default=b"", repr=False)
    """The final bytes of a complete stream, after all parts."""
    error: BaseException | None = None
    """Why there is no answer."""
    broken: tuple[bytes, str] | None = field(default=None, repr=False)
    """The final bytes of a broken stream, and the reason for metrics."""
    reply: Reply | None = field(default=None, repr=False)
    """The writer of the answer: one for all clients, since it creates the ids in it."""
    usage: Usage | None = None
    is_claimed: bool = False
    """Whether a client has reported ``usage`` as its own."""
    leader_left: bool = False
    """Whether the client whose request began it has left: then another one reports the tokens."""
    is_paid_on_landing: bool = False
    """Whether that client had to leave the payment open: it is due once the flight is over."""
    has_landed: bool = False
    bytes_put: int = 0
    """Size of all parts so far."""
    is_over: bool = False
    overflown: bool = False
    """Some parts are no longer held: nobody can join."""
    _task: asyncio.Task[None] | None = None
    _seats: set[Seat] = field(factory=set)
    _parts: list[bytes] = field(factory=list, repr=False)
    _gone: int = 0
    """Number of parts that are no longer held."""
    _size: int = 0
    _news: set[asyncio.Future[None]] = field(factory=set)

    def start(self, produce: Callable[[Flight], Awaitable[None]], landed: Callable[[], None]) -> None:
        """Runs `produce`, which calls `put` and finally `complete` or `break_off`; `landed` is called last."""

        async def run() -> None:
            try:
                await produce(self)
            except BaseException as error:
                clear_tracebacks(error)
                self.error = error
            finally:
                self.is_over = True
                self._tell()

        self._task = asyncio.get_running_loop().create_task(run())
        self._task.add_done_callback(lambda _: landed())

    def put(self, data: bytes) -> None:
        """Adds the next part of a stream."""
        if data:
            self._parts.append(data)
            self._size += len(data)
            self.bytes_put += len(data)
            self._trim()
            self._tell()

    @property
    def part_count(self) -> int:
        """Number of parts so far."""
        return self._gone + len(self._parts)

    @property
    def has_room(self) -> bool:
        """Whether another part may be added: the slowest client is not too far behind."""
        return self._size <= HELD

    async def room(self) -> None:
        """Waits until `has_room`."""
        while not self.has_room:
            await self._wait()
            self._trim()

    def held(self) -> bytes | None:
        """All parts; None if some have been dropped."""
        return None if self.overflown else b"".join(self._parts)

    def complete(self, kept: CachedAnswer | None, last: bytes = b"") -> None:
        """The answer is complete."""
        self.kept, self.last = kept, last

    def break_off(self, data: bytes, error: str) -> None:
        """The stream has broken after its commit."""
        self.broken = data, error

    def claim(self) -> Usage | None:
        """Its usage, for the first caller only, so that it is counted once."""
        if self.is_claimed:
            return None
        self.is_claimed = True
        return self.usage

    @contextmanager
    def join(self) -> Iterator[Seat]:
        """A seat until the context is left. A flight without seats is cancelled."""
        seat = Seat(self)
        self._seats.add(seat)
        try:
            yield seat
        finally:
            self._seats.discard(seat)
            self._tell()  # the provider may have been waiting for this client
            if not self._seats and self._task is not None:
                self._task.cancel()

    @property
    def is_open(self) -> bool:
        """Whether others may join."""
        return not (self.is_over or self.overflown) and bool(self._seats)

    def _trim(self) -> None:
        """Drops parts that all clients have read, once there are more than `HELD` bytes."""
        read = min(min((seat.read for seat in self._seats), default=0), self.part_count)
        if self._size > HELD and self._gone < read:
            self._size -= sum(map(len, self._parts[: read - self._gone]))
            del self._parts[: read - self._gone]
            self._gone, self.overflown = read, True

    def _tell(self) -> None:
        news, self._news = self._news, set()
        for waiting in news:
            if not waiting.done():
                waiting.set_result(None)

    async def _wait(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._news.add(waiting)
        try:
            await waiting
        finally:
            self._news.discard(waiting)


@define(eq=False)
class Seat:
    """One client of a flight. ``read``: number of parts that it has taken."""

    flight: Flight
    read: int = 0

    async def parts(self) -> AsyncIterator[bytes]:
        """All parts from the first on, joined if several have arrived, until the flight is over."""
        flight = self.flight
        while True:
            new = self.read - flight._gone
            if new < len(flight._parts):
                data = b"".join(flight._parts[new:])
                self.read = flight.part_count
                flight._tell()
                yield data
            elif flight.is_over:
                return
            else:
                await flight._wait()

    async def over(self) -> None:
        """Waits until the flight is over."""
        self.read = sys.maxsize  # a client that waits for the whole answer reads no parts
        while not self.flight.is_over:
            await self.flight._wait()


@define(eq=False)
class Flights:
    """Flights that others may join, by key."""

    _by_key: dict[Key, Flight] = field(factory=dict)

    def find(self, key: Key) -> Flight | None:
        """A flight to join."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.is_open else None

    def add(self, key: Key, flight: Flight) -> None:
        self._by_key[key] = flight

    def remove(self, key: Key, flight: Flight) -> None:
        if self._by_key.get(key) is flight:
            del self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)
