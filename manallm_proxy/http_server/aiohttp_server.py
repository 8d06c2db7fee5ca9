"""aiohttp's server as a proxy needs it: what is no sound request is told in OpenAI's shape, and not repeated.

Parser errors never reach the middlewares; aiohttp answers and logs them itself, with the offending line in
both, be it ``Authorization: Bearer ...`` (libraries.md 1.8). And its parser lets through what two servers
may read in two ways: HTTP/0.9, and transfer codings that are not plainly ``chunked``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import EMPTY_PAYLOAD, HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.contract.errors import (
    BodyTimeout,
    ExpectationFailed,
    HeadTooLarge,
    InternalError,
    InvalidRequest,
    ProxyError,
)
from manallm_proxy.contract.events import Observer, RequestEnded
from manallm_proxy.openai.schema import encode, error_body

KEEP_ALIVE: Final = 75.0
"""Seconds an idle connection stays open, above nginx's 60 s: nginx does not repeat a POST that it has sent."""
HEADERS: Final = 100
"""Header lines that a request may have."""
WHOLE_HEAD: Final = 4
"""A whole head may have so many times what one of its lines may have."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def reject_ambiguous(request: web.BaseRequest) -> ProxyError | None:
    """Why a request that aiohttp could parse is refused all the same; None for nearly all."""
    version, headers = request._version, request.headers  # .version would be kept, see `refusal`
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


class _Handler(RequestHandler):
    """One connection. A request's head has limits of time and size: a slow client must not hold a place."""

    __slots__ = ("_head", "_most", "_observe", "_patience", "_payload", "_timer")

    def __init__(self, server: _Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._patience, self._observe = server.patience, server.observe
        self._most = WHOLE_HEAD * self.max_line_size
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0
        """Bytes of a head that has begun."""
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the last request whose head was complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        between = self._payload.is_eof()
        if between and self._head + len(data) > self._most and self._outgrows(data):
            return
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            if self._messages:
                self._payload = self._messages[-1][1]
            self._disarm()
        elif data and between:
            self._head += len(data)
            if self._timer is None:
                self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._patience(), self._too_slow)

    def _disarm(self) -> None:
        self._head = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _outgrows(self, data: bytes) -> bool:
        """Whether `data` holds more of a head than it may have; then the connection is at its end."""
        end = data.find(b"\r\n\r\n")
        if self._head + (len(data) if end < 0 else end) <= self._most:
            return False
        self._end_with(HeadTooLarge(f"the request's headers are over the limit of {self._most} bytes in all"))
        return True

    def _too_slow(self) -> None:
        self._timer = None
        if self._current_request is not None or self._messages:
            if self._head:  # the next request's head has begun already
                self._arm()
        elif self._head:
            self._end_with(BodyTimeout("the request's head did not come in time"))
        else:
            self.force_close()

    def _end_with(self, error: ProxyError) -> None:
        """The connection's last words, where no handler runs; none where an answer is on its way."""
        transport = self.transport
        if transport is not None and self._current_request is None and not self._messages:
            id_, body = self._told(error)
            transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nConnection: close\r\nX-Request-Id: %b\r\n"
                b"Content-Length: %d\r\n\r\n%b"
                % (error.status, type(error).__name__.encode(), id_.encode(), len(body), body)
            )
        self.force_close()

    def _told(self, error: ProxyError) -> tuple[str, bytes]:
        """A request id and the body, once the refusal is a fact."""
        id_ = secrets.token_hex(16)
        self._observe(RequestEnded.refused(error, id_))
        return id_, encode(error_body(error))

    def refusal(self, request: web.BaseRequest, error: ProxyError) -> web.Response:
        """The connection's last answer."""
        id_, body = self._told(error)
        response = web.Response(
            body=body,
            status=error.status,
            content_type="application/json",
            headers={"Server": "manallm-proxy", "X-Request-Id": id_},
        )
        request._version = HttpVersion11  # aiohttp would answer HTTP/0.9 in its own tongue
        response.force_close()
        return response

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is sent where no handler could answer; always the connection's last answer."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            return self.refusal(request, InternalError("an internal error"))
        if isinstance(exc, LineTooLong):
            return self.refusal(request, HeadTooLarge("a header, or the path, is over the limit (limits.header)"))
        if isinstance(exc, BadHttpMessage) and exc.message == "Too many headers received":
            return self.refusal(request, HeadTooLarge(f"a request may have {HEADERS} headers"))
        return self.refusal(request, InvalidRequest("this is not valid HTTP"))


class _Server(web.Server):
    patience: Callable[[], float]
    observe: Observer

    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


def _checked(handler: Handler, pipeline: Mapping[str, Handler]) -> Handler:
    """`handler` behind `reject_ambiguous`: before routes, middlewares, and whatever they cost.

    A POST to a path of the `pipeline` goes there straight, which saves an eighth of its time: all that aiohttp's
    application adds for it is ``100 Continue``.
    """

    async def refuse(request: web.Request, error: ProxyError) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Handler)
        return connection.refusal(request, error)

    def handle(request: web.Request) -> Awaitable[web.StreamResponse]:
        error = reject_ambiguous(request)
        if error is not None:
            return refuse(request, error)
        if request.method == "POST" and "Expect" not in request.headers:
            return pipeline.get(request.rel_url.raw_path, handler)(request)
        return handler(request)

    return handle


class Runner(web.AppRunner):
    """`header`: bytes that one header line or field may have; `patience`: seconds that a head may take.

    `pipeline`: by path, what takes a POST there without `app`. It raises nothing.
    """

    def __init__(
        self,
        app: web.Application,
        pipeline: Mapping[str, Handler],
        *,
        header: int,
        patience: Callable[[], float],
        observe: Observer,
    ) -> None:
        self._pipeline, self._patience, self._observe = pipeline, patience, observe
        super().__init__(
            app,
            handler_cancellation=True,  # a client that leaves cancels its handler, which ends the upstream request
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=1.0,
            max_line_size=header,
            max_field_size=header,
            max_headers=HEADERS,
            auto_decompress=False,
            lingering_time=1.0,  # for the rest of a body that nobody will read
        )

    def awaits_first_requests(self) -> bool:
        """Whether somebody has connected and asked nothing yet."""
        return self.server is not None and any(
            isinstance(each, _Handler) and each._request_count == 0 for each in self.server.connections
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(
            _checked(made.request_handler, self._pipeline),  # type: ignore[arg-type]  # the factory makes web.Request
            request_factory=made.request_factory,
            handler_cancellation=True,
            loop=made._loop,
            **made._kwargs,
        )
        server.patience, server.observe = self._patience, self._observe
        return server
