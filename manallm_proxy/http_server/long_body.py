"""A long request body, read from the socket straight into the `bytes` that it becomes.

aiohttp's parser copies its input, its stream holds the copies in a list, and joining them is one more copy. For a body
of megabytes that is most of the proxy's work, since each copy touches memory for the first time. If the length is
known, nothing has to be parsed: the transport gets another protocol until the body is complete.
"""

from __future__ import annotations

import asyncio
import io
from typing import Final

from aiohttp.web_protocol import RequestHandler

from manallm_proxy.http_server import web
from manallm_proxy.http_server.parser_internals import forget_body

LEAST: Final = 64 * 1024
"""Min bytes of a body that is received in this way."""
A_TURN: Final = 2**20
"""Max bytes received in one loop iteration."""
_SINK: Final = bytearray(64 * 1024)
"""Receives bytes that are no longer wanted."""


def is_long(request: web.BaseRequest) -> bool:
    """Whether the rest of the body may be received by a `LongBody`. Nothing may have been read of it before."""
    return (request.content_length or 0) > LEAST and request.transport is not None and not request.content.is_eof()


class LongBody(asyncio.BufferedProtocol):
    """Receives one body. `whole` must be awaited in the same loop iteration in which this is made."""

    def __init__(self, request: web.BaseRequest, transport: asyncio.Transport, size: int) -> None:
        self.size = 0
        """Bytes received."""
        self._connection: RequestHandler = request.protocol
        self._payload = request.content
        self._transport = transport
        self._left = size
        self._loop = asyncio.get_running_loop()
        self._begun = self._last = self._loop.time()
        self._turn = 0
        """Bytes received in this loop iteration."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._buffer = io.BytesIO(bytes(size))  # which is not copied: nothing else refers to it
        self._view: memoryview | None = self._buffer.getbuffer()
        self._piece = self._view[:0]
        """The part of the buffer that the transport reads into."""
        first = self._payload.read_nowait()
        self._view[: len(first)] = first
        self._count(len(first))
        if self._left:
            transport.set_protocol(self)

    async def whole(self, timeout: float, rate: int) -> bytes:
        """The body. Raises TimeoutError if for `timeout` seconds nothing arrives, or less than `rate` bytes/s."""
        try:
            if self._left:
                self._waiter = self._loop.create_future()
                self._check(timeout, rate)
                await self._waiter
            self._release()
            return self._buffer.getvalue()  # without a copy, since nothing else refers to it any more
        finally:
            self._waiter = None  # the rest is read and dropped, as the server waits a while for it
            self._release()
            self._buffer = io.BytesIO()
            if self._timer is not None:
                self._timer.cancel()

    def _release(self) -> None:
        """Drops all references to the body's memory but `_buffer`, even from the traceback of a failed read."""
        self._piece.release()
        self._view = None

    def _check(self, timeout: float, rate: int) -> None:
        due = min(self._last, self.due(rate)) + timeout
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._check, timeout, rate)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def due(self, rate: int) -> float:
        """Loop time up to which the bytes received satisfy `rate`, in bytes per second."""
        return self._begun + self.size / rate

    def _count(self, number: int) -> None:
        self.size += number
        self._left -= number
        self._last = self._loop.time()

    # for the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._view is None:
            return memoryview(_SINK)[: self._left]
        self._piece = self._view[self.size : self.size + A_TURN - self._turn]
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        self._count(nbytes)
        if not self._left:
            self._transport.set_protocol(self._connection)
            forget_body(self._connection, self._payload)
            self._let_go()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            return
        self._turn += nbytes
        if self._turn >= A_TURN:  # lets other connections run before more is read
            self._turn = 0
            self._transport.pause_reading()
            self._loop.call_soon(self._resume)

    def _let_go(self) -> None:
        """Clears this object: uvloop's transport keeps a reference to its last buffered protocol
        (``findings/uvloop-last-buffered-protocol.sh``)."""
        del self._connection, self._payload, self._transport

    def _resume(self) -> None:
        if hasattr(self, "_transport") and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        connection = self._connection
        self._let_go()
        connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
