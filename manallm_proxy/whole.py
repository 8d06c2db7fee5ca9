"""A complete answer on its way to the client: in one write where that is sure to do, else watched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from attrs import define

from manallm_proxy.sinks import AT_ONCE, Progress

HEAD: Final = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class AtOnce(web.StreamResponse):
    """A JSON answer that leaves as one piece, head and all, past aiohttp's `Response`.

    Which takes 18 µs for it, an eighth of a request, since it may be anything. This is the one kind of answer that
    there are thousands of, so it writes what `Response` would. `aiohttp` is left with whether the connection goes on.
    """

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._told = headers
        self._whole = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Writes it, the first time. ConnectionResetError where the client left."""
        if self._eof_sent:
            return None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        self._eof_sent = True
        self._keep_alive = request.keep_alive and "Connection" not in self._told
        told = self._told if self._keep_alive else {**self._told, "Connection": "close"}
        lines = "".join([f"{name}: {value}\r\n" for name, value in told.items()])
        if lines.count("\n") != len(told) or lines.count("\r") != len(told) or "\0" in lines:
            raise ValueError("a header holds a line break")
        date = rfc822_formatted_time()
        data = f"{HEAD}{lines}Content-Length: {len(self._whole)}\r\nDate: {date}\r\n\r\n".encode() + self._whole
        request.writer.output_size += len(data)  # so that aiohttp knows that no other answer may follow
        transport.write(data)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Done already."""


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


def whole(request: web.BaseRequest, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """A JSON answer, to be sent by `send`: at once where HTTP is 1.1, it is small, and nothing waits before it."""
    transport = request.transport
    waits = transport is not None and transport.get_write_buffer_size()
    if len(body) <= AT_ONCE and not waits and request.version == HttpVersion11:
        return AtOnce(body, headers)
    response = web.Response(body=body, content_type="application/json", headers=headers)
    if "Connection" in headers:
        response.force_close()
    return response


async def send(request: web.BaseRequest, response: web.StreamResponse, write_timeout: float) -> None:
    """Returns when it has left our buffer: it is not over before.

    A client that takes nothing for `write_timeout` seconds is cut, which ends this as its leaving would.
    """
    if isinstance(response, AtOnce):
        await response.prepare(request)
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
