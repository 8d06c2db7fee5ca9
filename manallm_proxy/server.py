"""aiohttp's server as a proxy needs it: what it cannot parse is told in OpenAI's shape, and not repeated.

Parser errors never reach the middlewares; aiohttp answers and logs them itself, with the offending line in
both, be it ``Authorization: Bearer ...`` (libraries.md 1.8).
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.errors import InternalError, InvalidRequest
from manallm_proxy.schema import encode, error_body

KEEP_ALIVE = 75.0
"""Seconds an idle connection stays open, above nginx's 60 s: nginx does not repeat a POST that it has sent."""


class _Handler(RequestHandler):
    __slots__ = ()

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
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """`header`: bytes that one header line or field may have."""

    def __init__(self, app: web.Application, *, header: int) -> None:
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

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=True,
            loop=made._loop,
            **made._kwargs,
        )
