"""Answers that we write ourselves, bypassing aiohttp's `Response` and its writer.

aiohttp's general-purpose `Response` takes 18 µs for a head and a body, a tenth of a request. The two shapes here, a
whole answer and a stream, are fixed. Whether the connection is kept alive is still aiohttp's decision.
"""

from __future__ import annotations

from typing import cast

from aiohttp import HttpVersion10
from aiohttp.helpers import rfc822_formatted_time

from manallm_proxy.contract.http_chunks import framed, framed_lines
from manallm_proxy.contract.spliced import Part
from manallm_proxy.http_server import web
from manallm_proxy.http_server.aiohttp_internals import OneTaskHandler, mark_answered, mark_sent, version_of

LAST_CHUNK = b"0\r\n\r\n"
LINES = "application/x-ndjson"
"""The content type whose lines are chunks of their own."""
COPIED = 64 * 1024
"""Max bytes of a body that is sent in one write with the head; copying more costs more than a second write."""


class RawResponse(web.StreamResponse):
    """A 200 whose head is sent with its first body bytes. ``ended``: nothing may follow.

    `headers` becomes the response's own. `length`: bytes of the body; None if it is not known yet. If `headers` has
    ``Connection``, it must be ``close``. Raises ValueError if a header holds a line break.
    """

    def __init__(self, request: web.BaseRequest, headers: dict[str, str], length: int | None) -> None:
        # StreamResponse's own __init__ is left out: it makes headers that nobody would send
        old = version_of(request) == HttpVersion10
        self.chunked_body = length is None and not old
        keep = request.keep_alive and "Connection" not in headers and (length is not None or not old)
        lines = headers
        if not keep:
            lines["Connection"] = "close"
        elif old:
            lines["Connection"] = "keep-alive"
        if length is not None:
            lines["Content-Length"] = str(length)
        elif self.chunked_body:
            lines["Transfer-Encoding"] = "chunked"
            self.frame = framed_lines if lines.get("Content-Type") == LINES else framed
        lines["Date"] = rfc822_formatted_time()
        head = "\r\n".join(map(": ".join, lines.items()))
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
            raise ValueError("a header holds a line break")
        self.head = f"HTTP/1.{0 if old else 1} 200 OK\r\n{head}\r\n\r\n".encode()
        self.ended = False
        self._request = request
        mark_sent(self, keep)

    def put(self, data: Part, *, last: bool = True) -> None:
        """Writes `data`, preceded by the head the first time. Raises ConnectionResetError if the client left.

        Raises RuntimeError after the end, when the client would read `data` as the next answer.
        """
        if self.ended:
            raise RuntimeError("this answer has ended: nothing may follow it")
        self.ended = last
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        if self.head:
            mark_answered(self._request, len(self.head) + len(data))
            if len(data) > COPIED:
                transport.write(self.head)
            else:
                data = self.head + data
            self.head = b""
        transport.write(data)

    def put_part(self, data: bytes, *, last: bool = False) -> None:
        """As `put`, for a part of a body of unknown length. Empty `data` writes no chunk: it would end the body."""
        if self.chunked_body:
            data = self.frame(data) if data else b""
            if last:
                data += LAST_CHUNK
        self.put(data, last=last)

    def break_off(self, data: bytes) -> None:
        """Writes `data` as the last part; the connection is closed (FIN) a moment later, without the terminating chunk.

        Some clients (langchain4j 1.19) take a cleanly ended chunked body for a complete answer, whatever its last
        event says; others do not hear an event that comes with the FIN.
        """
        self.put_part(data)
        self.ended = True
        mark_sent(self, keep_alive=False)
        cast(OneTaskHandler, self._request.protocol).broke_off = True

    async def drain(self) -> None:
        """Waits until the transport's buffer is low. Raises ConnectionResetError if the client left."""
        await self._request.writer.drain()
