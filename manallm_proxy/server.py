"""aiohttp's server as a proxy needs it: what it cannot parse is told in OpenAI's shape, and not repeated.

Parser errors never reach the middlewares; aiohttp answers and logs them itself, with the offending line in
both, be it ``Authorization: Bearer ...`` (libraries.md 1.8).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.errors import BodyTimeout, InternalError, InvalidRequest
from manallm_proxy.schema import encode, error_body

KEEP_ALIVE = 75.0
"""Seconds an idle connection stays open, above nginx's 60 s: nginx does not repeat a POST that it has sent."""


class _Handler(RequestHandler):
    """One connection. A request's head has ``patience`` seconds: a slow client must not hold a place."""

    __slots__ = ("_begun", "_patience", "_timer")

    def __init__(self, server: web.Server, *, patience: Callable[[], float], **options: Any) -> None:
        super().__init__(server, **options)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._disarm()
        elif data and self._current_request is None and not self._messages:
            self._begun = True
            if self._timer is None:
                self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._patience(), self._too_slow)

    def _disarm(self) -> None:
        self._begun = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        transport = self.transport
        if transport is None or self._current_request is not None or self._messages:
            return
        if self._begun:
            body = encode(error_body(BodyTimeout("the request's head did not come in time")))
            transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.force_close()

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
        error = InvalidRequest("this is not valid HTTP") if status < 500 else InternalError("an internal error")
        response = web.Response(
            body=encode(error_body(error)),
            status=status,
            content_type="application/json",
            headers={"Server": "manallm-proxy"},
        )
        response.force_close()
        return response


class _Server(web.Server):
    patience: Callable[[], float]

    def __call__(self) -> RequestHandler:
        return _Handler(self, patience=self.patience, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """`header`: bytes that one header line or field may have; `patience`: seconds that a head may take."""

    def __init__(self, app: web.Application, *, header: int, patience: Callable[[], float]) -> None:
        self._patience = patience
        super().__init__(
            app,
            handler_cancellation=True,  # a client that leaves cancels its handler, which ends the upstream request
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            shutdown_timeout=1.0,
            max_line_size=header,
            max_field_size=header,
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
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=True,
            loop=made._loop,
            **made._kwargs,
        )
        server.patience = self._patience
        return server
