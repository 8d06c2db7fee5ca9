"""The private names of aiohttp's server that we use, each checked at import.

aiohttp may rename any of them in any release. Then the import fails with the name and the version, rather than a
request in production; ``tests/test_server_internals.py`` shows that each still has its effect.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import aiohttp
from aiohttp import EMPTY_PAYLOAD, HttpVersion, HttpVersion11, StreamReader
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy
from yarl import URL

from manallm_proxy.http_server import web
from manallm_proxy.http_server.deadlines import Deadlines


def _check() -> None:
    wanted: tuple[tuple[type, tuple[str, ...]], ...] = (
        (RequestHandler, ("_request_count", "_messages", "_current_request", "force_close", "_keepalive")),
        (
            RequestHandler,
            ("start", "_handle_request", "finish_response", "log_exception", "_request_handler", "handle_error"),
        ),
        (RequestHandler, ("_waiter", "_manager", "_parser", "_upgraded", "_buffer_paused", "_force_close", "_close")),
        (RequestHandler, ("connection_made", "connection_lost", "close", "ssl_context", "peername", "sockname")),
        (web.Server, ("connection_made", "connection_lost")),
        (RequestHandler, ("_read_bufsize", "max_line_size", "max_field_size", "max_headers", "_task_handler")),
        (RequestHandler, ("_message_tail", "_resume_reading_if_drained", "resume_reading", "_lingering_time")),
        (BaseProtocol, ("_reading_paused",)),
        (StreamReader, ("_buffer", "_buffer_offset", "_eof", "_exception", "_size")),
        (HttpRequestParser, ("message_consumed", "set_upgraded")),
        (web.StreamResponse, ("_eof_sent", "_keep_alive")),
        (web.BaseRequest, ("_version", "_task", "_loop", "_finish", "keep_alive", "writer")),
    )
    missing = [f"{owner.__name__}.{name}" for owner, names in wanted for name in names if not _has_name(owner, name)]
    if missing:
        raise ImportError(
            f"aiohttp {aiohttp.__version__} has no {', '.join(missing)}, which manallm-proxy builds on: "
            "install the version of constraints.txt (pip install -c constraints.txt), and report this"
        )


def _has_name(owner: type, name: str) -> bool:
    """Whether `name` is a method, a class attribute, a slot, or an attribute that ``__init__`` sets."""
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    return hasattr(owner, name) or (code is not None and name in code.co_names)


_check()


class Request(web.BaseRequest):
    """A request whose usual properties, at which it has some 20 looks, are attributes: a fourth of the time."""

    headers: CIMultiDictProxy[str] = None  # type: ignore[assignment]  # in the place of aiohttp's property
    method: str = ""
    rel_url: URL = None  # type: ignore[assignment]  # as above
    content: StreamReader = None  # type: ignore[assignment]  # as above

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> None:
        super().__init__(message, payload, connection, writer, task, connection._loop)
        self.headers, self.method, self.rel_url, self.content = message.headers, message.method, self._rel_url, payload


class OneTaskHandler(RequestHandler):
    """A connection whose requests are handled in its own task, which begins with the first of them.

    aiohttp makes a task for each request, so that each has its own context variables, of which we have none. A request
    then takes three turns of the event loop where one would do. And it has one wait for the first request, and cancels
    it when the connection is lost. Whatever is unusual is left to aiohttp's own `start`.

    Whoever makes one limits the wait for the first request, and sets `_idle`, which ends the wait for another.
    """

    __slots__ = ("_idle", "_is_left", "broke_off")
    _idle: Deadlines[Any]
    _is_left: bool
    """Whether aiohttp's `start` handles the rest of the connection: it waits for requests only."""
    broke_off: bool  # whether its last answer did

    # what aiohttp asks the transport for each connection, for properties of requests that nobody reads here
    ssl_context = None
    peername = None
    sockname = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiohttp's, without its timer and its task.

        Nor does it set the socket's options, which it has from the listening one (`listening.Runner`).
        """
        assert self._manager is not None
        self.transport = cast(asyncio.Transport, transport)
        self._is_left = self.broke_off = False
        self._manager.connection_made(self, self.transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """As aiohttp's. A task that waits for a request ends by itself, at a third of what it takes to cancel it."""
        self._idle.end(self)
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not self._is_left:
            self._waiter = self._task_handler = None
            waiter.set_result(None)
        super().connection_lost(exc)

    def close(self) -> None:
        """As aiohttp's, whose task would close a connection that has no request."""
        super().close()
        if self._task_handler is None and self.transport is not None:
            self.transport.close()

    def close_if_idle(self) -> None:
        """Closes the connection if it waits for another request."""
        if self._waiter is not None and not self._waiter.done():
            self.force_close()

    def take(self, data: bytes) -> StreamReader | None:
        """Parses what has come, and has its requests handled. The body of the last of them; None if there was none."""
        before = self._request_count
        RequestHandler.data_received(self, data)
        if self._request_count == before:
            return None
        if self._task_handler is None:
            self._task_handler = self._loop.create_task(self.start())
        return self._messages[-1][1]

    def resume_reading(self, resume_parser: bool = True) -> None:
        """As aiohttp's, which for every body, paused or not, looks for more in its parser and resumes the transport."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Handles the connection's requests, one after the other, until it closes."""
        transport = self.transport
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                    continue
                message, payload = self._messages[0]
                if self._upgraded or self._buffer_paused or not isinstance(message, RawRequestMessage):
                    self._is_left = True
                    self._idle.end(self)  # aiohttp has a timer of its own
                    await super().start()
                    return
                self._messages.popleft()
                if not await self._serve(message, payload):
                    break
            if not self._force_close:
                self._task_handler = None
                self.close()
        except asyncio.CancelledError:
            self.force_close()
            raise
        finally:
            self._close = True  # whatever comes is not looked at, and begins no other task
            if transport is not None and transport.get_write_buffer_size():
                self.closed_unread(transport)

    def closed_unread(self, transport: asyncio.Transport) -> None:
        """Called when the connection is closed although its client has not read everything."""

    async def _serve(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Handles one request. Returns whether another may follow."""
        if self._parser is not None:
            self._parser.message_consumed()
        assert self._manager is not None
        assert self._request_handler is not None
        assert self._task_handler is not None
        self._manager.requests_count += 1
        request = Request(message, payload, self, StreamWriter(self, self._loop), self._task_handler)
        try:
            response, left = await self._handle_request(request, None, self._request_handler)
            if left:
                return False
            if not payload.is_eof():
                await self._read_rest(payload)
        except ConnectionError:
            return False
        except Exception as error:
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
            return False
        finally:
            request._task = None  # type: ignore[assignment]  # aiohttp does so: else a failure's traceback is a cycle
        self._keepalive = bool(response.keep_alive)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._idle.begin(self)
        return True

    async def _read_rest(self, payload: StreamReader) -> None:
        """Drops the rest of a body that the handler did not read: closing at once would send RST, on which the client's
        system drops the answer. If it does not arrive in time, or breaks, the connection ends."""
        with contextlib.suppress(TimeoutError, web.RequestPayloadError):
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof() and not self._force_close:
                    await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's: the answer, and whether the client left. For an answer that has been sent it does nothing."""
        if resp._eof_sent and not self._upgraded:
            request._finish()
            return resp, False
        if self._upgraded and not self._messages:
            self._decline_upgrade()
        return await self.send_response(request, resp, start_time)

    async def send_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As `finish_response`, for an answer that is still to be sent."""
        return await super().finish_response(request, resp, start_time)

    def _decline_upgrade(self) -> None:
        """Treats what follows a request for another protocol as ordinary requests: aiohttp would queue them itself,
        bypassing `data_received`, in which a subclass distinguishes heads and bodies."""
        if self._parser is not None:
            self._parser.set_upgraded(False)
            self._upgraded = False
            tail, self._message_tail = self._message_tail, b""
            self.data_received(tail)
            if self._buffer_paused:
                self._resume_reading_if_drained()


def running_task(request: web.BaseRequest) -> asyncio.Task[object] | None:
    """The task that handles `request`. Told the loop, ``asyncio.current_task`` needs no system call (Python 3.11)."""
    return asyncio.current_task(request._loop)


def version_of(request: web.BaseRequest) -> HttpVersion:
    """``request.version``, without caching it as that property does: `force_http11` may still change it."""
    return request._version


def force_http11(request: web.BaseRequest) -> None:
    """Makes the answer HTTP/1.1, whatever the request said: aiohttp would answer HTTP/0.9 in its own way."""
    request._version = HttpVersion11


def is_answered(request: web.BaseRequest) -> bool:
    """Whether any byte of an answer has been handed to the connection."""
    return request.writer.output_size > 0


def mark_answered(request: web.BaseRequest, size: int) -> None:
    """Counts `size` bytes of an answer that bypassed aiohttp's writer, so that aiohttp sends no other."""
    request.writer.output_size += size


def mark_sent(response: web.StreamResponse, keep_alive: bool) -> None:
    """Marks `response` as sent, so that aiohttp writes nothing more for it; `keep_alive`: the connection stays open."""
    response._eof_sent = True
    response._keep_alive = keep_alive


def requests_begun(connection: RequestHandler) -> int:
    """The number of requests whose head has arrived over `connection`."""
    return connection._request_count


def is_handling(connection: RequestHandler) -> bool:
    """Whether a request of `connection` is being handled or is queued."""
    return connection._current_request is not None or bool(connection._messages)


def unusual(connection: RequestHandler) -> RawRequestMessage | BaseException | None:
    """The latest request, if it is for a protocol to which nobody upgrades, such as ``h2c``; or why it was refused."""
    message = connection._messages[-1][0]
    if not isinstance(message, RawRequestMessage):
        return message.exc
    return message if message.upgrade and not connection._upgraded else None


def end_after_latest(connection: RequestHandler) -> None:
    """The answer to the latest request will end `connection`, as a refusal does anyway."""
    message, payload = connection._messages[-1]
    if isinstance(message, RawRequestMessage):
        connection._messages[-1] = message._replace(should_close=True), payload


def is_unparsed(connection: RequestHandler) -> bool:
    """Whether incoming bytes are held until a request for another protocol is answered."""
    return connection._upgraded


def take_body(payload: StreamReader) -> bytes:
    """As ``read_nowait``, for a body that is in. Most came in one piece with their head, which is taken as it is."""
    buffer = None if payload is EMPTY_PAYLOAD or payload._exception or payload._buffer_offset else payload._buffer
    if buffer is None or len(buffer) != 1 or not payload._eof:
        return payload.read_nowait()
    payload._size = 0
    return buffer.popleft()
