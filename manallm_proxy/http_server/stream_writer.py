"""The client's end of a stream: status, headers and the first event leave together, then event by event.

Two of them: `StreamWriter` hands on bytes, `ComposedSink` lets aiohttp-sse write the events that we compose.
Both are cut where a client stops reading, and both speak up in a long silence, between events only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import web
from aiohttp_sse import EventSourceResponse
from attrs import define, field

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import StreamBatch
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.openai import sse
from manallm_proxy.openai.schema import encode, error_body

NEVER = 10.0 * 365 * 24 * 3600
"""Seconds; aiohttp-sse's ping cannot be switched off."""
WRITE_HIGH_WATER = 64 * 1024
"""Bytes that a transport takes without asking to wait."""
KEEP_ALIVE = sse.comment(b"keep-alive")
HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@define  # not frozen: as `events.RequestEnded`
class Pace:
    """Seconds: between signs of life on a silent stream (0: none), and for a client that does not read."""

    heartbeat: float
    write_timeout: float


class _EventSourceResponse(EventSourceResponse):
    _send_headers_immediately = False  # they leave with the first event, in one packet


@define
class Progress:
    """Whether a client takes what is written to it. ``since``: loop time of the last sign that it does."""

    since: float
    _backlog: int = 0

    def stalled_for(self, transport: asyncio.Transport, now: float) -> float:
        """Seconds without one: what waits in our buffer has not become less."""
        backlog = transport.get_write_buffer_size()
        if backlog < self._backlog:
            self.since = now
        self._backlog = backlog
        return now - self.since


@define
class StreamWriter:
    """Frames as they are. One timer serves heartbeat and write guard, however many frames there are."""

    request: web.Request
    headers: dict[str, str]
    pace: Pace
    commentable: Callable[[], bool] = field(default=lambda: True)
    bytes_sent: int = 0
    first_at: float | None = None
    """Loop time of the first event's leaving."""
    _response: RawResponse | None = None
    _last_write: float = 0.0
    _writing: Progress | None = None
    _timer: asyncio.TimerHandle | None = None
    _beat: asyncio.Task[None] | None = None

    @property
    def response(self) -> web.StreamResponse | None:
        """None until something has left."""
        return self._response

    def _begin(self) -> RawResponse:
        """Status and headers; they leave with what is written next."""
        self._response = RawResponse(self.request, HEADERS | self.headers, None)
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        self._timer = loop.call_later(self._patience, self._look)
        return self._response

    async def send(self, batch: StreamBatch) -> None:
        data = batch.frames
        if batch.events:
            data += b"".join(map(sse.event, batch.events))
        if data:
            await self._write(data)

    def try_write(self, batch: StreamBatch) -> bool:
        """Writes frames at once, without a task: where the head has left, nothing waits, and the client reads."""
        transport = self.request.transport
        if (
            self._response is None
            or self.first_at is None
            or self._writing is not None
            or batch.events
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size() > WRITE_HIGH_WATER
        ):
            return False
        data = batch.frames
        if data:
            self._response.put_part(data)
            self._last_write = asyncio.get_running_loop().time()
            self.bytes_sent += len(data)
        return True

    async def say_something(self) -> None:
        """A comment, to keep client and boxes between awake (``early_heartbeat``)."""
        await self._write(KEEP_ALIVE, counts=False)

    async def finish(self) -> None:
        await self._write(sse.DONE, last=True)

    async def fail(self, error: ProxyError) -> None:
        await self._write(sse.event(encode(error_body(error))), last=True)

    def close(self) -> None:
        """Stops the timer. Harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    async def _write(self, data: bytes, *, counts: bool = True, last: bool = False) -> None:
        response = self._response or self._begin()
        loop = asyncio.get_running_loop()
        self._writing = Progress(loop.time())
        if counts and self.first_at is None:
            self.first_at = self._writing.since
        response.put_part(data, last=last)
        await response.drain()
        self._writing = None
        self._last_write = loop.time()
        self.bytes_sent += len(data)

    @property
    def _patience(self) -> float:
        return min(self.pace.heartbeat or NEVER, self.pace.write_timeout)

    def _look(self) -> None:
        """Cuts a client that does not read; speaks up in a silence; looks again when the next is due."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        transport = self.request.transport
        if transport is None:
            return
        due = NEVER
        if self._writing is not None:
            stalled = self._writing.stalled_for(transport, now)
            if stalled >= self.pace.write_timeout:
                transport.abort()
                return
            due = self.pace.write_timeout - stalled
        elif self.pace.heartbeat:
            if now - self._last_write >= self.pace.heartbeat and self.commentable():
                self._beat = loop.create_task(self._heartbeat())
                self._last_write = now
            due = max(self._last_write + self.pace.heartbeat - now, self.pace.heartbeat / 4)
        self._timer = loop.call_later(min(due, self._patience), self._look)

    async def _heartbeat(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # the relay will notice too
            await self._write(KEEP_ALIVE, counts=False)


@define
class ComposedSink:
    """Events that we compose, written by aiohttp-sse: its ping is the heartbeat, its timeout the write guard."""

    request: web.Request
    headers: dict[str, str]
    pace: Pace
    bytes_sent: int = 0
    first_at: float | None = None
    _response: _EventSourceResponse | None = None

    @property
    def response(self) -> web.StreamResponse | None:
        """None until something has left."""
        return self._response

    async def send(self, batch: StreamBatch) -> None:
        for event in batch.events:
            await self._event(event)

    def try_write(self, batch: StreamBatch) -> bool:
        """Never at once: aiohttp-sse writes from a task."""
        return False

    async def finish(self) -> None:
        await self._event(b"[DONE]")
        await self._end()

    async def fail(self, error: ProxyError) -> None:
        await self._event(encode(error_body(error)))
        await self._end()

    def close(self) -> None:
        """Stops the ping. Harmless when repeated."""
        if self._response is not None and self._response.prepared:
            self._response.stop_streaming()

    async def _event(self, data: bytes) -> None:
        if self._response is None:
            self._response = _EventSourceResponse(
                headers=self.headers,
                sep="\n",
                allow_all_methods=True,  # else it answers 405 to a POST
                send_timeout=self.pace.write_timeout,
                ping_interval=self.pace.heartbeat or NEVER,
            )
            if "Connection" in self.headers:  # aiohttp-sse says keep-alive, whatever it is told
                self._response.headers.update(self.headers)
                self._response.force_close()
            await self._response.prepare(self.request)
        if self.first_at is None:
            self.first_at = asyncio.get_running_loop().time()
        try:
            await self._response.send(data.decode())
        except TimeoutError:  # aiohttp-sse has cut a client that does not read
            raise ConnectionResetError("the client does not read") from None
        self.bytes_sent += len(data) + len(b"data: \n\n")

    async def _end(self) -> None:
        assert self._response is not None
        self._response.stop_streaming()
        await self._response.write_eof()
