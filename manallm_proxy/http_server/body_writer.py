"""A complete answer on its way to the client: in one write where that is sure to succeed, else watched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web
from attrs import define

from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.http_server.stream_writer import WRITE_HIGH_WATER, Progress


@define
class _Guard:
    """From `watch` on, cuts a client that takes nothing for ``write_timeout`` seconds."""

    transport: asyncio.Transport
    write_timeout: float
    _progress: Progress
    _timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self._progress.stalled_for(self.transport, loop.time()) >= self.write_timeout:
            self.transport.abort()
        else:
            self._timer = loop.call_later(self.write_timeout / 4, self.watch)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def json_response(request: web.BaseRequest, size: int, headers: Mapping[str, str]) -> RawResponse:
    """A 200 with `size` bytes of JSON, to be sent by `write_json`."""
    return RawResponse(request, {"Content-Type": "application/json", **headers}, size)


async def write_json(request: web.BaseRequest, response: RawResponse, body: bytes, write_timeout: float) -> None:
    """Sends `body`. Returns when it has left our buffer, since the answer is not over before.

    A client that takes nothing for `write_timeout` seconds is cut, which ends this as its leaving would, by
    ConnectionResetError.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    if len(body) <= WRITE_HIGH_WATER and not transport.get_write_buffer_size():
        response.put(body)
        return
    guard = _Guard(transport, write_timeout, Progress(asyncio.get_running_loop().time()))
    transport.set_write_buffer_limits(high=0)  # so that the write waits for the last byte
    guard.watch()
    try:
        response.put(body)
        await response.drain()
    finally:
        guard.close()
        transport.set_write_buffer_limits()
