"""A complete answer on its way to the client: in one write where that is sure to do, else watched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web
from attrs import define

from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.http_server.stream_writer import WRITE_HIGH_WATER, Progress


@define
class _Guard:
    """Cuts a client that takes nothing of what waits for it for ``patience`` seconds. In force from `watch` on."""

    transport: asyncio.Transport
    patience: float
    _progress: Progress
    _timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self._progress.stalled_for(self.transport, loop.time()) >= self.patience:
            self.transport.abort()
        else:
            self._timer = loop.call_later(self.patience / 4, self.watch)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def json_response(request: web.BaseRequest, body: bytes, headers: Mapping[str, str]) -> web.Response | RawResponse:
    """A JSON answer, to be sent by `write_json`: `RawResponse` where it is small, and nothing waits before it."""
    transport = request.transport
    told = {"Content-Type": "application/json", **headers}
    if len(body) <= WRITE_HIGH_WATER and transport is not None and not transport.get_write_buffer_size():
        return RawResponse(request, told, len(body))
    response = web.Response(body=body, headers=told)
    if "Connection" in headers:
        response.force_close()
    return response


async def write_json(
    request: web.BaseRequest, response: web.Response | RawResponse, body: bytes, write_timeout: float
) -> None:
    """Returns when it has left our buffer: it is not over before.

    A client that takes nothing for `write_timeout` seconds is cut, which ends this as its leaving would.
    """
    if isinstance(response, RawResponse):
        response.put(body)
        return
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    guard = _Guard(transport, write_timeout, Progress(asyncio.get_running_loop().time()))
    transport.set_write_buffer_limits(high=0)  # so that the write waits for the last byte
    guard.watch()
    try:
        await response.prepare(request)
        await response.write_eof()
    finally:
        guard.close()
        transport.set_write_buffer_limits()
