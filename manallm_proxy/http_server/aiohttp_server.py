"""aiohttp's low-level server as a proxy needs it.

Parser errors never reach a handler: aiohttp answers and logs them itself, with the offending line in both, even if
it is ``Authorization: Bearer ...`` (aiohttp 3.14, ``RequestHandler.handle_error``). And its parser accepts what two
servers may parse differently: HTTP/0.9, and transfer codings other than plain ``chunked``. Here both get the error
body that `Refusal` makes, and nothing that was sent is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import EMPTY_PAYLOAD, HttpVersion10, HttpVersion11, StreamReader
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.contract.errors import (
    BodyTimeout,
    ExpectationFailed,
    HeadTooLarge,
    InternalError,
    InvalidRequest,
    Overloaded,
    ProxyError,
)
from manallm_proxy.http_server import aiohttp_internals as internals
from manallm_proxy.http_server import listening, web
from manallm_proxy.http_server.body_writer import Limits, stall_guard
from manallm_proxy.http_server.deadlines import Deadlines
from manallm_proxy.http_server.parser_internals import refusal_of, take_back, without_repeats

KEEP_ALIVE: Final = 75.0
"""Seconds an idle connection stays open: above nginx's 60 s, since nginx does not retry a POST that it has sent."""
HEADER_LIMIT: Final = 100
"""Max header lines of a request."""
HEAD_FACTOR: Final = 4
"""Max bytes of a whole head, as a multiple of the max bytes of one line."""
READ_BUFFER: Final = 125_000
"""aiohttp buffers twice as many bytes of a body before it is read: one read of the socket (uvloop: 256,000)."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

LINGER: Final = 0.2
"""Seconds between the last event of a broken answer and the end of its connection, unless the client ends it before.

Bun's fetch, which opencode runs on, mostly drops an event that comes with the end (1.4.5): its user is not told why,
and it asks six times within a minute. It needs 2 ms, on a busy machine up to 100.
"""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refusal = Callable[[ProxyError], tuple[str, bytes]]
"""Reports a request that reached no handler; returns its new id and the response body."""


def reject_ambiguous(request: web.BaseRequest) -> ProxyError | None:
    """The error for a request that two parsers could read differently, or that is not supported; else None."""
    version, headers = internals.version_of(request), request.headers
    if version != HttpVersion11 and version != HttpVersion10:
        return InvalidRequest("speak HTTP/1.1")
    coding = headers.get("Transfer-Encoding")
    if coding is not None and (coding.lower() != "chunked" or version == HttpVersion10):
        return InvalidRequest("the only transfer coding is 'chunked', over HTTP/1.1")
    if request.method == "CONNECT":
        return InvalidRequest("no tunnels are opened here")
    expected = headers.get("Expect")
    if expected is not None and expected.lower() != "100-continue":
        return ExpectationFailed("nothing but 'Expect: 100-continue' is known here")
    return None


def ask_for_body(request: web.BaseRequest) -> None:
    """Sends ``100 Continue`` if the client waits for it before sending its body.

    HTTP/1.0 has no such answer, and its clients would take it for the one to their request (RFC 9110, section 10.1.1).
    """
    if "Expect" not in request.headers or request.transport is None or internals.is_answered(request):
        return
    if internals.version_of(request) == HttpVersion11:
        request.transport.write(CONTINUE)


class _Connection(internals.OneTaskHandler):
    """One connection. A request's head has limits of time and size: a slow client must not hold a connection."""

    __slots__ = (
        "_all",
        "_head_limit",
        "_head_size",
        "_heads",
        "_is_awaited",
        "_is_over",
        "_left",
        "_limits",
        "_payload",
        "_refusal",
    )

    def __init__(self, server: Server) -> None:
        super().__init__(server, **server.options)
        self._heads, self._idle, self._refusal, self._limits = server.heads, server.idle, server.refusal, server.limits
        self._all = server
        self._head_limit = HEAD_FACTOR * self.max_line_size
        self._is_awaited = False
        """Whether there is a limit to the wait for a head."""
        self._is_over = False
        """Whether its last answer has been written: what comes is dropped."""
        self._head_size = 0
        """Bytes received of a head that is not complete."""
        self._left = 0
        """See `_body_left`."""
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the last request whose head was complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._all.open += 1
        if self._all.open > self._all.most:
            self._end_with(Overloaded("no more connections are taken here, see RLIMIT_NOFILE; try again soon"))
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._left:
            end, self._left = data[: self._left], max(0, self._left - len(data))
            if len(end) < len(data):
                self.data_received(end)
                data = data[len(end) :]
        between = self._payload.is_eof()
        if between and self._head_size + len(data) > self._head_limit and self._refuse_long_head(data):
            return
        payload = self.take(data)
        if payload is not None:
            if not between and not self._payload.is_eof():
                # its chunks broke off: aiohttp only queues the error, and whoever reads the body would wait on
                self._payload.set_exception(web.RequestPayloadError("a chunk is malformed"))
            self._payload = payload
            self._left = self._body_left(data, payload)
            self._head_size = 0
            if self._is_awaited:
                self._is_awaited = False
                self._heads.end(self)
        elif data and between and not internals.is_unparsed(self):
            self._head_size += len(data)
            if not self._is_awaited:
                self._await_head()

    def _body_left(self, data: bytes, payload: StreamReader) -> int:
        """Of a request for a protocol that is not spoken here, whose head ended in `data`: how many bytes of its body
        are still to come; 0 for any other.

        aiohttp's parser drops what stands behind such a request in the read that ends it: the next one would be cut. So
        these bytes are read alone, and where something may have been dropped the answer ends the connection.
        """
        message = internals.unusual(self)
        if message is None:
            return 0
        if isinstance(message, BaseException):
            return self._take_again(data, message)
        length, head = int(message.headers.get("Content-Length", 0)), data.find(b"\r\n\r\n")
        if not (message.chunked or payload.is_eof()):
            return length - payload.total_bytes
        if message.chunked or head < 0 or head + 4 + length != len(data):
            internals.end_after_latest(self)
        return 0

    def _take_again(self, data: bytes, refusal: BaseException) -> int:
        """Takes a head once more, if only a harmless repetition in it was refused. As `_body_left`.

        Only the first head of a connection, and only if it came in one read: then `data` is all that has ever come, and
        begins with it. A later read may begin in the middle of a head or of a body, which would be taken for a request.
        """
        if self._head_size or (once := without_repeats(refusal, data)) is None or not take_back(self):
            return 0
        self.data_received(once)
        internals.end_after_latest(self)  # so that this client's next request begins a connection, too
        return self._left

    def connection_lost(self, exc: BaseException | None) -> None:
        self._all.open -= 1
        self._heads.end(self)
        self._all.broken.end(self)
        self._payload = EMPTY_PAYLOAD  # which refers to its connection: a cycle
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._is_awaited = True
        self._heads.begin(self)

    def _refuse_long_head(self, data: bytes) -> bool:
        """Whether `data` makes the head exceed its limit; then the connection is closed."""
        if internals.is_unparsed(self):
            return False
        end = data.find(b"\r\n\r\n")
        if self._head_size + (len(data) if end < 0 else end) <= self._head_limit:
            return False
        self._end_with(HeadTooLarge(f"the request's headers are over the limit of {self._head_limit} bytes in all"))
        return True

    def head_overdue(self) -> None:
        """The head did not come in time."""
        self._is_awaited = False
        if internals.is_handling(self):
            if self._head_size:  # the next request's head has begun already
                self._await_head()
        elif self._head_size:
            self._end_with(BodyTimeout("the request's head did not come in time"))
        else:
            self.force_close()

    def _end_with(self, error: ProxyError) -> None:
        """Closes the connection, after writing `error` unless a handler is active, whose answer it would corrupt."""
        transport = self.transport
        if transport is not None and not internals.is_handling(self):
            id_, body = self._refusal(error)
            transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nConnection: close\r\nX-Request-Id: %b\r\n"
                b"Content-Length: %d\r\n\r\n%b"
                % (error.status, type(error).__name__.encode(), id_.encode(), len(body), body)
            )
        self.force_close()

    async def send_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's, with a limit: that one waits for ever for a client that does not read."""
        if self.transport is None:
            return await super().send_response(request, resp, start_time)
        with stall_guard(self.transport, self._limits()):
            return await super().send_response(request, resp, start_time)

    def close(self) -> None:
        """Closes the connection: after an answer that broke off, a moment later, or when it is called again."""
        if not self.broke_off or self._is_over:
            super().close()
            return
        self._is_over = True
        self._heads.end(self)  # a late head is answered, which would stand inside the answer that broke off
        self._all.broken.begin(self)

    def closed_unread(self, transport: asyncio.Transport) -> None:
        self._loop.call_later(self._limits().write_timeout, transport.abort)

    def refuse(self, request: web.BaseRequest, error: ProxyError) -> web.Response:
        """The response for `error`, after which the connection is closed."""
        id_, body = self._refusal(error)
        headers = {"Server": "manallm-proxy", "X-Request-Id": id_}
        response = web.Response(body=body, status=error.status, content_type="application/json", headers=headers)
        internals.force_http11(request)
        response.force_close()
        return response

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response for a request that no handler could answer; the connection is closed after it.

        Raises ConnectionError if an answer has begun already.
        """
        if internals.is_answered(request):
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            return self.refuse(request, InternalError("an internal error"))
        return self.refuse(request, refusal_of(exc, HEADER_LIMIT))


class Server(web.Server):
    """Makes a `_Connection` for each client. Must be constructed in a running event loop.

    `header`: max bytes of one header line. `head_timeout`: returns the max seconds for a head; called for each.
    `limits`: returns those for clients that read slowly. `open`: how many connections there are; `most`: may be.
    """

    open: int = 0

    def __init__(
        self,
        handler: Handler,
        *,
        header: int,
        head_timeout: Callable[[], float],
        limits: Callable[[], Limits],
        refusal: Refusal,
    ) -> None:
        self.refusal, self.limits = refusal, limits
        self.most = listening.most_connections()
        self.heads = Deadlines(lambda: min(head_timeout(), KEEP_ALIVE), _Connection.head_overdue)
        self.idle = Deadlines(lambda: KEEP_ALIVE, _Connection.close_if_idle)
        self.broken = Deadlines(lambda: LINGER, _Connection.close)
        self.options: dict[str, Any] = {
            "loop": asyncio.get_running_loop(),
            "access_log": None,
            "keepalive_timeout": KEEP_ALIVE,
            "max_line_size": header,
            "max_field_size": header,
            "max_headers": HEADER_LIMIT,
            "auto_decompress": False,
            "read_bufsize": READ_BUFFER,
            "lingering_time": 1.0,  # max seconds to drain an unread request body
        }
        super().__init__(
            _unambiguous(handler),
            request_factory=internals.Request,
            handler_cancellation=True,  # a client that disconnects thereby ends the upstream request too
        )

    def __call__(self) -> RequestHandler:
        return _Connection(self)


def _unambiguous(handler: Handler) -> Handler:
    """Wraps `handler`: requests that `reject_ambiguous` refuses do not reach it."""

    async def refuse(request: web.BaseRequest, error: ProxyError) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        return connection.refuse(request, error)

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        error = reject_ambiguous(request)
        return handler(request) if error is None else refuse(request, error)

    return handle


class Runner(listening.Runner):
    """Holds the listening sockets of one `Server`, and closes its connections in `cleanup`."""

    def awaits_first_requests(self) -> bool:
        """Whether any open connection has not sent a request yet."""
        return any(internals.requests_begun(connection) == 0 for connection in self.server.connections)
