"""The client's end of a stream: status, headers and the first event are sent together, then event by event.

A client that stops reading is cut off. In a long silence a heartbeat is sent, between events only. One timer serves
both, however many events there are; until it is due for the first time, it is one for all streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.http_server import web
from manallm_proxy.http_server.deadlines import Deadlines
from manallm_proxy.http_server.raw_response import RawResponse

NEVER: Final = 10.0 * 365 * 24 * 3600
"""Delay in seconds of a timer that is not wanted."""
WRITE_HIGH_WATER: Final = 64 * 1024
"""Write high-water mark of the transport's buffer in bytes; a write above it waits for the client."""
WRITE_LOW_WATER: Final = WRITE_HIGH_WATER // 4
"""What asyncio makes of it: up to here no transport is paused, so there is nothing to wait for."""
PART_BYTES: Final = 256 * 1024
"""More than this is written in parts, as the client reads: copying 30 MB to a buffer would block the event loop."""


AFTER_LAST: Final = b"\n"
"""A blank line more behind the last event of a broken stream. Some SDKs hand an event on when the next byte comes
(openai 4.40 to 4.85 and @anthropic-ai/sdk 0.20 to 0.36 for Node), and after that one nothing else would come."""


@define(eq=False)
class StreamTiming:
    """Seconds between heartbeats on a silent stream (0: none), and until a client that does not read is cut off.

    ``write_rate``: bytes per second that it must read while data waits for it. Must be made in a running event loop;
    all streams of one configuration share one.
    """

    heartbeat: float
    write_timeout: float
    write_rate: float
    interval: float = field(init=False)
    """Seconds between two checks of a stream."""
    first_checks: Deadlines[StreamWriter] = field(init=False, repr=False)
    """Nearly all streams end before theirs."""

    def __attrs_post_init__(self) -> None:
        self.interval = min(self.heartbeat or NEVER, self.write_timeout)
        self.first_checks = Deadlines(lambda: self.interval, StreamWriter.check)


@define
class Progress:
    """Tracks whether a client reads what is written to it. ``since``: loop time of the last evidence."""

    since: float
    rate: float
    """Min bytes per second."""
    debt: float = 0.0
    """Seconds by which the client was already behind schedule."""
    _backlog: int = 0
    _due: float = field(init=False)
    """Loop time up to which the bytes read satisfy ``rate``."""

    def __attrs_post_init__(self) -> None:
        self._due = self.since - self.debt

    def stalled_for(self, transport: asyncio.Transport, now: float, later: int = 0) -> float:
        """Seconds since the transport's buffer last shrank, or by which the client is behind. `now`: loop time.

        `later`: bytes still to be written.
        """
        backlog = transport.get_write_buffer_size() + later
        if backlog < self._backlog:
            self.since = now
            self._due += (self._backlog - backlog) / self.rate
        self._backlog = backlog
        self.debt = max(0.0, now - self._due)
        return max(now - self.since, self.debt)


@define(eq=False)
class StreamWriter:
    """Writes one streamed answer. ``heartbeat`` returns the bytes of a heartbeat; empty: none is sent."""

    request: web.BaseRequest
    headers: dict[str, str]
    timing: StreamTiming
    heartbeat: Callable[[], bytes]
    bytes_sent: int = 0
    first_at: float | None = None
    """Loop time at which the first event was sent."""
    _response: RawResponse | None = None
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop, repr=False)
    """Cached: in Python 3.11, getting the running loop takes a system call."""
    _ready: asyncio.Transport | None = None
    """The client's, where `try_write` may use it: from the first event to the last, while no other write is pending."""
    _frame: Callable[[bytes], bytes] = bytes
    """Makes a chunk, or one for each line; over HTTP/1.0 a body has none."""
    _last_write: float = 0.0
    _writing: Progress | None = None
    _debt: float = 0.0
    """See `Progress`: carried over, so that a client that is slow in each write is slow overall."""
    _unsent: memoryview = memoryview(b"")
    """The rest of an event that is being written in parts; nothing else may be written before it."""
    _timer: asyncio.TimerHandle | None = None
    _heartbeat_task: asyncio.Task[None] | None = None
    _closed: bool = False
    holds_heartbeats: bool = False
    """None is sent: in a thread, the events that come next are made by the reply that makes heartbeats."""

    @property
    def response(self) -> RawResponse | None:
        """None until something has been sent."""
        return self._response

    @property
    def is_writable(self) -> bool:
        """Whether `try_write` writes: the first event was sent, no write is pending, the buffer is low."""
        transport = self._ready
        return (
            transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() <= WRITE_HIGH_WATER
        )

    def try_write(self, data: bytes) -> bool:
        """Writes whole events at once, without a task, if `is_writable`; else returns False.

        Nearly all chunks of a stream go this way, each in caches that are cold: so it is one function, on few objects.
        """
        transport = self._ready
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > WRITE_HIGH_WATER:
            return False
        if data:
            transport.write(self._frame(data))
            self._last_write = self._loop.time()
            self.bytes_sent += len(data)
        return True

    async def write(self, data: bytes) -> None:
        """Writes whole events, and waits while the client is slow. Raises ConnectionResetError if it left."""
        if data:
            await self._put(data)

    async def beat(self) -> None:
        """Sends a heartbeat; it may be the first thing sent, before a provider has answered."""
        if data := self.heartbeat():
            await self._put(data, counts=False)

    async def finish(self, data: bytes) -> None:
        """Writes the last events of a complete answer."""
        await self._put(data, last=True)

    async def break_off(self, data: bytes) -> None:
        """Writes the last event of a broken answer; closes the connection, so that it is not taken for complete."""
        response = self._response or self._begin()
        self._ready = None
        is_event = data and self.headers.get("Content-Type", "").startswith("text/event-stream")
        data = bytes(self._unsent) + data + (AFTER_LAST if is_event else b"")
        self._note_write(data)
        response.break_off(data)
        await response.drain()

    def stop_heartbeats(self) -> None:
        """Sends no heartbeat from now on."""
        self.heartbeat = bytes

    def close(self) -> None:
        """Stops the timer, and drops the heartbeat function, which may hold much memory. Harmless when repeated."""
        self.heartbeat, self._closed = bytes, True
        self.timing.first_checks.end(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._heartbeat_task is not None:
            self._heartbeat_task.cancel()

    def _begin(self) -> RawResponse:
        """Prepares status and headers, which are sent with the next write."""
        self._response = RawResponse(self.request, self.headers, None)
        if self._response.chunked_body:
            self._frame = self._response.frame
        self._last_write = self._loop.time()
        self.timing.first_checks.begin(self)
        return self._response

    async def _put(self, data: bytes, *, counts: bool = True, last: bool = False) -> None:
        if len(data) > PART_BYTES:
            self._unsent = memoryview(data)
            while len(self._unsent) > PART_BYTES:
                part, self._unsent = bytes(self._unsent[:PART_BYTES]), self._unsent[PART_BYTES:]
                await self._put_part(part, counts=counts, last=False)
                await asyncio.sleep(0)  # a client that reads as fast as we write must not occupy the loop
            data, self._unsent = bytes(self._unsent), memoryview(b"")
        await self._put_part(data, counts=counts, last=last)

    async def _put_part(self, data: bytes, *, counts: bool, last: bool) -> None:
        response = self._response if self._response is not None else self._begin()
        self._ready = None
        loop = self._loop
        transport = self.request.transport
        now = loop.time()
        if counts and self.first_at is None:
            self.first_at = now
        response.put_part(data, last=last)
        if transport is None or (size := transport.get_write_buffer_size()) > WRITE_LOW_WATER:
            self._writing = progress = Progress(now, self.timing.write_rate, self._debt)
            if transport is not None and size > WRITE_HIGH_WATER:
                progress.stalled_for(transport, now)
                await response.drain()
                progress.stalled_for(transport, loop.time())
                self._debt = progress.debt
            else:
                await response.drain()
            self._writing = None
        if self.first_at is not None and not last:
            self._ready = transport
        self._last_write = loop.time()
        self.bytes_sent += len(data)

    def _note_write(self, data: bytes) -> None:
        now = self._loop.time()
        self._writing = Progress(now, self.timing.write_rate)
        self.first_at = now if self.first_at is None else self.first_at
        self.bytes_sent += len(data)

    def check(self) -> None:
        """Cuts off a client that does not read; sends a heartbeat in a silence; reschedules itself."""
        loop = self._loop
        now = loop.time()
        transport = self.request.transport
        if transport is None or self._closed:
            return
        due = NEVER
        if self._writing is not None:
            stalled = self._writing.stalled_for(transport, now)
            if stalled >= self.timing.write_timeout:
                transport.abort()
                return
            due = self.timing.write_timeout - stalled
        elif self.timing.heartbeat:
            if now - self._last_write >= self.timing.heartbeat:
                self._heartbeat_task = loop.create_task(self._send_heartbeat())
                self._last_write = now
            due = max(self._last_write + self.timing.heartbeat - now, self.timing.heartbeat / 4)
        self._timer = loop.call_later(min(due, self.timing.interval), self.check)

    async def _send_heartbeat(self) -> None:
        """Runs one loop iteration after it was due: the answer may have ended, or another write be pending."""
        if self._response is None or self._response.ended or self._writing is not None or self._unsent:
            return
        if self.holds_heartbeats:
            return
        with contextlib.suppress(ConnectionResetError):  # the relay will notice too
            await self.beat()
