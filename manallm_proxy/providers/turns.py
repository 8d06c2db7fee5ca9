"""How much of a stream is worked on before the event loop gets its turn.

A provider may send as fast as the socket takes, or compress twenty megabytes to a few kilobytes: what has arrived
is cut so that no piece costs more than a few milliseconds, whatever is in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from attrs import define, field

PIECE_BYTES: Final = 16 * 1024
PIECE_LINES: Final = 160
"""Line ends in one piece: what is worked on for each event costs more than its bytes."""
_UNCOUNTED: Final = 2 * PIECE_LINES
"""Bytes which cannot hold so many events."""
_BUDGET: Final = 0.002
"""Seconds of work after which the loop gets a turn."""


def fits(data: bytes) -> bool:
    """Whether `data` may be worked on in one go."""
    size = len(data)
    return size <= _UNCOUNTED or (size <= PIECE_BYTES and _lines(data, 0, size) <= PIECE_LINES)


def _lines(data: bytes, start: int, end: int) -> int:
    return data.count(b"\n", start, end) + data.count(b"\r", start, end)


@define(eq=False)
class Turnstile:
    """Who works on pieces in this turn of the loop: so many as the budget allows, the others one in each later turn.

    One for all streams of a loop: a hundred that each keep a budget of their own would stop it a hundred times as long.
    """

    _since: float = 0.0
    """When work on pieces began in this turn, or in a turn that is over."""
    _waiting: deque[asyncio.Future[None]] = field(factory=deque)

    async def turn(self) -> None:
        """Returns when there is time for a piece. Who is cancelled meanwhile keeps nobody out."""
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
    """The running loop's."""
    return _TURNSTILES.setdefault(asyncio.get_running_loop(), Turnstile())


@define
class Pieces:
    """What has arrived and is not worked on yet, given out in pieces."""

    _data: bytes = field(default=b"", repr=False)
    _at: int = 0
    _size: int = PIECE_BYTES
    """Of the last piece: the next is likely to be as dense."""

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def add(self, data: bytes) -> None:
        """More has arrived; all that was there is out."""
        self._data, self._at = data, 0

    async def next(self) -> bytes:
        """The next piece, when there is time for it."""
        await turnstile().turn()
        start, size = self._at, min(2 * self._size, PIECE_BYTES)
        while size > _UNCOUNTED and _lines(self._data, start, start + size) > PIECE_LINES:
            size //= 2
        self._at, self._size = start + size, size
        piece = self._data[start : self._at]
        if not self:
            self._data, self._at = b"", 0
        return piece
