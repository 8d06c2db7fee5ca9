"""One HTTP/1.1 connection to a provider: one request and its response at a time.

httptools (llhttp, in C) parses strictly; what it rejects is the provider's failure. Body bytes are pushed: `on_chunk`
gets them in the callback in which they arrive, and the reading task is woken only if it does not consume them.
Above `READ_HIGH_WATER` unread bytes, reading from the socket pauses. A read that is one whole chunk of a chunked body
goes past the parser, where that is known to await one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, Protocol, cast

import httptools

from manallm_proxy.contract.http_chunks import unframed
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected
from manallm_proxy.contract.spliced import Body, Part, Spliced, in_portions
from manallm_proxy.http_client.api import HEAD_LIMIT, TAIL_TIMEOUT
from manallm_proxy.http_client.errors import malformed
from manallm_proxy.http_client.response import Response

_LENGTHS: Final = frozenset(map(len, (b"content-length", b"transfer-encoding", b"content-encoding")))
"""Lengths of the header names that matter for how a body is framed and coded."""
_SIZE_LINE: Final = 3
"""Bytes of the shortest line with the size of a chunk."""
COALESCE_LIMIT: Final = 16 * 1024
"""Max bytes of a request body that is copied to the end of its head; copying more costs more than a second write."""


class Keeper(Protocol):
    """The pool, as its connections see it."""

    def keep(self, connection: Connection) -> None:
        """`connection` is free for another request."""

    def lost(self, connection: Connection) -> None:
        """`connection` is closed."""

    def watch(self, deadline: float) -> None:
        """Schedules a call of `Connection.expire` at loop time `deadline`."""


class Connection(asyncio.Protocol):
    """asyncio's protocol for one connection."""

    __slots__ = (
        "_bodies",
        "_clogged",
        "_drain_timer",
        "_framed",
        "_head_left",
        "_is_between",
        "_keeper",
        "_lines",
        "_overhead",
        "_parser",
        "_refused",
        "_response",
        "_reusable",
        "_send_timer",
        "_surplus",
        "_transport",
        "_unsent",
        "has_answer",
        "loop",
        "name",
        "on_body",
        "open",
        "paused",
    )

    def __init__(self, name: str, keeper: Keeper, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.loop = loop
        self.has_answer = False
        """Bytes of the response to the current request have arrived."""
        self.paused = False
        self.open = True
        self._keeper = keeper
        self._transport: asyncio.Transport | None = None
        self._bodies: list[bytes] = []
        """Body bytes of one read, as the parser found them."""
        self.on_body = self._bodies.append
        """Called by the parser for each chunk of a body: no function of Python's, of which a read may have hundreds."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._framed = False
        """The head has ``Content-Length`` or ``Transfer-Encoding``; otherwise the body ends with the connection."""
        self._refused = False
        """The response breaks one of our rules."""
        self._reusable = False
        self._surplus = False
        """A second response has begun."""
        self._overhead = 0
        """Bytes received since the last body byte: of a head, a trailer or chunk extensions."""
        self._is_between = False
        """The parser awaits the next chunk, or the end, of a chunked body."""
        self._head_left = HEAD_LIMIT
        """Bytes that the names and values of the response's head and trailer may still have."""
        self._lines: list[tuple[bytes, bytes]] | None = None
        """The header lines of a head that is not complete."""
        self._drain_timer: asyncio.TimerHandle | None = None
        self._unsent: Iterator[list[Part]] | None = None
        """The rest of a long request."""
        self._clogged = False
        """The transport has more to send than it likes."""
        self._send_timer: asyncio.Handle | None = None

    def send(self, head: bytes, body: Body) -> Response:
        """Sends a request. The previous response must be complete."""
        assert self._transport is not None
        assert self._response is None
        self._response = Response(self)
        self.has_answer = self._framed = self._refused = self._reusable = self._is_between = False
        self._overhead, self._head_left, self._lines = 0, HEAD_LIMIT, []
        if len(body) <= COALESCE_LIMIT:
            self._transport.write(head + bytes(body))
        else:
            parts = body.parts if isinstance(body, Spliced) else (body,)
            self._unsent = in_portions(
                (head + parts[0], *parts[1:]) if len(parts[0]) <= COALESCE_LIMIT else (head, *parts)
            )
            self._send_portion()
        return self._response

    def _send_portion(self) -> None:
        """Sends as much of a long request as one write takes; the rest once that is read and others had a turn."""
        self._send_timer = None
        if self._unsent is None or self._transport is None or not self.open:
            return
        portion = next(self._unsent, None)
        if portion is None:
            self._unsent = None
            return
        self._transport.writelines(portion)
        self._send_soon()

    def _send_soon(self) -> None:
        if self._unsent is not None and not self._clogged and self._send_timer is None:
            self._send_timer = self.loop.call_soon(self._send_portion)

    # called by Response

    def abandon(self, response: Response) -> None:
        """Closes the connection, unless another response is using it by now."""
        if self._response is response:
            self.abort()

    def complete(self, response: Response) -> None:
        if self._response is not response:
            return
        self._response = None
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        assert self._transport is not None
        if self._reusable and self.open and self._unsent is None and not self._transport.get_write_buffer_size():
            if self.paused:
                self.resume()
            self._keeper.keep(self)
        else:
            self.abort()

    def watch(self, deadline: float) -> None:
        self._keeper.watch(deadline)

    def drain_later(self) -> None:
        """Closes the connection unless the response ends within TAIL_TIMEOUT."""
        self._drain_timer = self.loop.call_later(TAIL_TIMEOUT, self.abort)

    def expire(self, now: float) -> float | None:
        """See `Response.expire`."""
        return self._response.expire(now) if self._response is not None else None

    def abort(self) -> None:
        self.open, self._is_between, self._unsent = False, False, None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self.paused and self.open:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.paused and self.open:
            self.paused = False
            self._transport.resume_reading()

    def malformed(self) -> BadResponse:
        return malformed(self.name)

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or self._parser is None:  # unsolicited bytes
            self.abort()
            return
        chunk = unframed(data)
        if chunk and self._is_between:
            response.push(chunk, self.loop.time())
            return
        self.has_answer = True
        self._overhead += len(data)
        is_broken = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            is_broken = True
        # If it saw nothing but what is in that frame, it stands behind the frame now. Where both begin alike, it may
        # have seen the end of a longer chunk, and behind that the size of the next.
        self._is_between = self._bodies == [chunk] and not data.startswith(chunk[:_SIZE_LINE])
        if self._bodies:
            self._add_bodies(response)
        if is_broken or self._refused or self._overhead > HEAD_LIMIT:
            self._break(response)
            return
        if self._response is response:
            response.deliver(self.loop.time())
        if self._surplus:
            self.abort()

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False
        self._send_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open, self._unsent = False, None
        response, self._parser = self._response, None
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        self._response = None
        if response is not None and not response.ended:
            if exc is None and response.head_in and not self._framed:
                response.end()  # RFC 9112, section 6.3, rule 8: the body ends with the connection
            elif exc is None:
                message = f"{self.name}: closed the connection before its answer was complete"
                response.fail(Disconnected(message, detail="closed"))
            else:
                response.fail(Disconnected(f"{self.name}: the connection was reset", detail="reset"))
            response.deliver(self.loop.time())
        self._keeper.lost(self)

    def _break(self, response: Response) -> None:
        if response.ended:
            self._reusable = False  # a complete response, then garbage
            response.deliver(self.loop.time())
        else:
            response.fail(self.malformed())
        self.abort()

    # called by httptools

    def on_message_begin(self) -> None:
        if self._response is None or self._response.ended:
            self._surplus, self._reusable = True, False  # a response without a request

    def on_header(self, name: bytes, value: bytes) -> None:
        if (size := len(name) + len(value)) > self._head_left:
            self._refused = True
        self._head_left -= size
        if self._lines is not None:
            self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser, lines = self._response, self._parser, self._lines
        if response is None or lines is None or parser is None:
            return
        status = parser.get_status_code()
        if status < 200:
            lines.clear()
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._refused = True
        for name, value in lines:
            if len(name) in _LENGTHS:
                self._note(response, name.lower(), value.strip(b" \t").lower())
        response.status = status
        response.lines = lines
        response.head_in = True
        self._lines = None  # from now on headers belong to a trailer

    def _note(self, response: Response, name: bytes, value: bytes) -> None:
        """Records a header that says how the body is framed or coded."""
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = True
            if value != b"chunked":
                self._refused = True  # no other coding is supported
        elif name == b"content-encoding":
            response.encoding = value

    def _add_bodies(self, response: Response) -> None:
        self._overhead = 0
        if not response.ended:
            response.add(self._bodies)
        self._bodies.clear()

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or not response.head_in or response.ended or self._refused:
            return
        self._add_bodies(response)  # what comes behind is another response's
        self._reusable = parser.should_keep_alive()
        response.end()
