"""Cuts received stream data into pieces, so that translating it does not block the event loop.

A provider may send as fast as the socket allows, or compress twenty megabytes to a few kilobytes. A piece takes at most
a few milliseconds, whatever it contains.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.openai.sse import CR

PIECE_BYTES: Final = 32 * 1024
"""An answer of a hundred chunks that came in one read is one piece, and one write: it takes 0.88 of the CPU of two."""
PIECE_LINES: Final = 240
"""Line ends in one piece: an event costs more than its bytes. It has two of them, three with a name, four as CR LF."""
UNCOUNTED: Final = 2 * PIECE_LINES
"""So few bytes cannot hold that many events, so their line ends are not counted."""
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\n")
"""What ends an event; of a format that has one in each line, the line."""
_LAST: Final = 2048
"""Bytes at the end of a piece in which an event's end is looked for: nearly all events have less."""
_BUDGET: Final = 0.002
"""Seconds of work after which the event loop gets a turn."""


def fits(data: bytes) -> bool:
    """Whether `data` may be read in one piece."""
    size = len(data)
    return size <= UNCOUNTED or (size <= PIECE_BYTES and not _is_dense(data))


def _is_dense(data: bytes) -> bool:
    """Whether it has more than PIECE_LINES line ends. To count them looks at each byte alone: up to 4 µs a kilobyte."""
    ends = len(data.split(b"\n", PIECE_LINES + 1)) - 1
    if CR in data:
        ends += len(data.split(b"\r", PIECE_LINES + 1)) - 1
    return ends > PIECE_LINES


def _end_of_event(data: bytes, start: int, end: int) -> int:
    """Where the last event ends that ends shortly before `end`, or `end`: one that is cut costs as much as many."""
    if end < len(data):
        for ended in _ENDS:
            if (at := data.rfind(ended, max(start, end - _LAST), end)) >= 0:
                return at + len(ended)
    return end


@define(eq=False)
class Turnstile:
    """Lets streams read pieces in one loop iteration until the budget is spent, then one piece per later iteration.

    All streams of a loop share one: a hundred with a budget each would block the loop a hundred times as long.
    """

    _since: float = 0.0
    """When the first piece since the budget was renewed was let through; monotonic seconds."""
    _waiting: deque[asyncio.Future[None]] = field(factory=deque)

    async def turn(self) -> None:
        """Returns when there is time for a piece. A caller that is cancelled meanwhile only loses its place."""
        now = time.monotonic()
        if not self._waiting and now - self._since <= _BUDGET:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        if len(self._waiting) == 1:
            loop.call_soon(self._let_in)
        await future

    def _let_in(self) -> None:
        self._since = time.monotonic()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._let_in)


_TURNSTILES: WeakKeyDictionary[asyncio.AbstractEventLoop, Turnstile] = WeakKeyDictionary()


def turnstile() -> Turnstile:
    """The running loop's turnstile."""
    loop = asyncio.get_running_loop()
    if (found := _TURNSTILES.get(loop)) is None:
        found = _TURNSTILES[loop] = Turnstile()
    return found


@define
class Pieces:
    """Received data that has not been translated yet, returned in pieces."""

    _data: bytes = field(default=b"", repr=False)
    _at: int = 0
    _size: int = PIECE_BYTES
    """Size of the last piece: the next one is likely to be as dense."""
    _turnstile: Turnstile | None = None
    """The loop's, once there was a piece."""

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def add(self, data: bytes) -> None:
        """Adds new data. All earlier data must have been returned."""
        self._data, self._at = data, 0

    async def next(self) -> bytes:
        """The next piece, when there is time for it."""
        if self._turnstile is None:
            self._turnstile = turnstile()
        await self._turnstile.turn()
        start, size = self._at, min(2 * self._size, PIECE_BYTES)
        piece = self._data[start : start + size]
        while size > UNCOUNTED and _is_dense(piece):
            size //= 2
            piece = piece[:size]
        self._at, self._size = _end_of_event(self._data, start, start + size), size
        piece = self._data[start : self._at]
        if not self:
            self._data, self._at = b"", 0
        return piece
