"""Answers that we write ourselves, past aiohttp's `Response` and its writer.

Which takes 18 µs for a head and a body, a tenth of a request, since it may be anything. Of these two kinds, a whole
answer and a stream, there are thousands a second, so they are written as `Response` would write them. Whether the
connection goes on is left to aiohttp.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import HttpVersion10, web
from aiohttp.helpers import rfc822_formatted_time


class RawResponse(web.StreamResponse):
    """A 200 whose ``head`` is to leave with its first bytes. ``length`` of the body; None: not known yet.

    ValueError for a header that holds a line break. ``Connection`` among the headers is ``close``.
    """

    def __init__(self, request: web.BaseRequest, headers: Mapping[str, str], length: int | None) -> None:
        super().__init__()
        old = request.version == HttpVersion10
        self.chunked_body = length is None and not old
        keep = request.keep_alive and "Connection" not in headers and (length is not None or not old)
        told = dict(headers)
        if not keep:
            told["Connection"] = "close"
        elif old:
            told["Connection"] = "keep-alive"
        if length is not None:
            told["Content-Length"] = str(length)
        elif self.chunked_body:
            told["Transfer-Encoding"] = "chunked"
        told["Date"] = rfc822_formatted_time()
        lines = "".join([f"{name}: {value}\r\n" for name, value in told.items()])
        if lines.count("\n") != len(told) or lines.count("\r") != len(told) or "\0" in lines:
            raise ValueError("a header holds a line break")
        self.head = f"HTTP/1.{0 if old else 1} 200 OK\r\n{lines}\r\n".encode()
        self._request = request
        # for aiohttp, which asks when the handler returns: it is sent, and this is what becomes of the connection
        self._eof_sent = True
        self._keep_alive = keep

    def put(self, data: bytes) -> None:
        """Writes `data`, behind the head the first time. ConnectionResetError where the client left."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        if self.head:
            data, self.head = self.head + data, b""
            self._request.writer.output_size += len(data)  # so that aiohttp knows that no other answer may follow
        transport.write(data)

    def put_part(self, data: bytes, *, last: bool = False) -> None:
        """Likewise, a part of a body whose length is not known."""
        if self.chunked_body:
            data = b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if last else b"")
        self.put(data)

    async def drain(self) -> None:
        """Returns once the client has taken enough of it. ConnectionResetError where it left."""
        await self._request.writer.drain()
