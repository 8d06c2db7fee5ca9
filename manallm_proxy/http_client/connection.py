"""One HTTP/1.1 connection to a provider: a request out, its answer in, then perhaps the next.

httptools (llhttp, in C) parses, strictly: what it refuses is the provider's failure. Bytes are pushed, not
pulled: a part goes to whoever takes it in the very call in which it arrived, and wakes a task only where
nobody does. Where parts pile up the transport is not read any more.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from typing import Final, Protocol, cast

import httptools
from attrs import define, field
from multidict import CIMultiDict

from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.http_client.api import HEAD_LIMIT, TAIL_TIMEOUT, OnChunk

READ_HIGH_WATER: Final = 64 * 1024
"""Bytes that nobody has read yet, above which the transport is not read either."""
COALESCE_LIMIT: Final = 16 * 1024
"""Bytes of a body that leave in one write with their head; copying more costs more than a second write."""
INFLATED: Final = 1024 * 1024
"""Bytes that one read of a compressed body gives: a bomb goes off in small pieces, and the reader counts them."""
_INFLATERS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": zlib.MAX_WBITS}


class Keeper(Protocol):
    """Whose connection it is."""

    def keep(self, connection: Connection) -> None:
        """It is free for another request."""

    def lost(self, connection: Connection) -> None:
        """It is no more."""

    def watch(self, until: float) -> None:
        """Somebody waits until loop time `until` and no longer: then `Connection.look` is to be called."""


@define(eq=False)
class Response:
    """One answer; see `connections.Response`. It is complete once ``ended``, whether or not anybody read it."""

    _connection: Connection = field(repr=False)
    status: int = 0
    silent_since: float | None = None
    head_in: bool = False
    ended: bool = False
    lines: list[tuple[bytes, bytes]] = field(factory=list, repr=False)
    encoding: bytes = field(default=b"", repr=False)
    """The value of ``Content-Encoding``."""
    _headers: CIMultiDict[str] | None = field(default=None, repr=False)
    _parts: list[bytes] = field(factory=list, repr=False)
    _size: int = 0
    _error: BaseException | None = None
    _waiter: asyncio.Future[None] | None = None
    _take: OnChunk | None = None
    _untaken: bytes | None = field(default=None, repr=False)
    """What was offered and not taken: it is read next, alone."""
    _until: float | None = None
    _wanted: bool = True
    _inflater: zlib._Decompress | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        if self._headers is None:
            pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in self.lines)
            self._headers = CIMultiDict(pairs)
        return self._headers

    async def head(self, until: float | None) -> None:
        """Returns when status and headers are in. TimeoutError at loop time `until`."""
        while not self.head_in:
            if self._error is not None:
                raise self._error
            await self._wait(None, until)
        if self.encoding and self.encoding != b"identity":
            bits = _INFLATERS.get(self.encoding)
            if bits is None:
                raise self._connection.malformed()
            self._inflater = zlib.decompressobj(bits)

    async def read(self, on_chunk: OnChunk | None = None, until: float | None = None) -> bytes:
        while True:
            if self._untaken is not None:
                data, self._untaken = self._untaken, None
                return data
            if self._parts:
                data = self._next()
                if data or self._inflater is None:
                    return data
                continue  # a compressed body's own head
            if self._error is not None:
                raise self._error
            if self.ended:
                if self._inflater is not None and not self._inflater.eof:
                    raise self._connection.malformed()
                return b""
            if self._connection.paused:
                self._connection.resume()
            await self._wait(on_chunk if self._inflater is None else None, until)

    def look(self, now: float) -> float | None:
        """Ends a wait that has lasted long enough; the loop time at which to look again."""
        if self._waiter is None or self._until is None or self._waiter.done():
            return None
        if self._until > now:
            return self._until
        self._waiter.set_exception(TimeoutError())
        return None

    def fail(self, error: ProviderError) -> None:
        self._error = error
        self._wake()

    def release(self) -> None:
        if not self._wanted:
            return
        self._wanted = False
        self._drop()
        if self.ended:
            self._connection.done(self)
        else:
            self._connection.resume()
            self._connection.give_up_later()

    def close(self) -> None:
        self._wanted = False
        self._drop()
        self._connection.forsake(self)

    def add(self, part: bytes) -> None:
        """Some of the body; `settle` follows once all that came at once is in."""
        if self._wanted:
            self._parts.append(part)
            self._size += len(part)

    def settle(self, now: float) -> None:
        """Hands on what arrived."""
        if not self.head_in and self._error is None:
            return
        if self._take is not None and self._parts:
            data = self._next()
            try:
                taken = self._take(data)
            except BaseException as error:  # a bug above must reach the reader, not the event loop
                self._error = error
            else:
                self._untaken = None if taken else data
                if taken and not self.ended and self._error is None:
                    self.silent_since = now
                    return
            self._take = None  # more may arrive before the reader runs: it is for the next read
        if self._waiter is not None and not self._waiter.done():
            self._wake()
        elif self._size > READ_HIGH_WATER and not self.ended:
            self._connection.pause()

    def end(self) -> None:
        """The body's end is in."""
        self.ended = True
        if not self._wanted:
            self._connection.done(self)

    def _next(self) -> bytes:
        data = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._drop()
        if self._inflater is None:
            return data
        try:
            plain = self._inflater.decompress(data, INFLATED)
        except zlib.error:
            raise self._connection.malformed() from None
        if self._inflater.unconsumed_tail:
            self.add(self._inflater.unconsumed_tail)
        return plain

    def _drop(self) -> None:
        self._parts = []
        self._size = 0

    async def _wait(self, on_chunk: OnChunk | None, until: float | None) -> None:
        loop = self._connection.loop
        self._waiter = loop.create_future()
        self._take = on_chunk
        self.silent_since = loop.time()
        self._until = until
        if until is not None:
            self._connection.keeper.watch(until)
        try:
            await self._waiter
        finally:
            self._waiter = self._take = self.silent_since = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """The transport's end. ``heard``: bytes of an answer to the request under way have come."""

    def __init__(self, name: str, keeper: Keeper, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.loop = loop
        self.heard = False
        self.paused = False
        self.open = True
        self.keeper = keeper
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._framed = False
        self._refused = False
        self._reusable = False
        self._surplus = False
        self._quiet = 0
        self._head_size = 0
        self._giving_up: asyncio.TimerHandle | None = None

    def send(self, head: bytes, body: bytes) -> Response:
        """A request; nothing else may be under way."""
        assert self._transport is not None
        assert self._response is None
        self._response = Response(self)
        self.heard = self._framed = self._refused = self._reusable = False
        self._quiet = self._head_size = 0
        if len(body) <= COALESCE_LIMIT:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return self._response

    def forsake(self, response: Response) -> None:
        """Nobody waits for the rest of `response`: the connection ends. Harmless where another is served already."""
        if self._response is response:
            self.abort()

    def done(self, response: Response) -> None:
        """`response` is complete and was read: the connection is free."""
        if self._response is not response:
            return
        self._response = None
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        assert self._transport is not None
        if self._reusable and self.open and not self._transport.get_write_buffer_size():
            self.resume()
            self.keeper.keep(self)
        else:
            self.abort()

    def look(self, now: float) -> float | None:
        """See `Response.look`."""
        return self._response.look(now) if self._response is not None else None

    def give_up_later(self) -> None:
        """Unless the answer's end comes soon."""
        self._giving_up = self.loop.call_later(TAIL_TIMEOUT, self.abort)

    def abort(self) -> None:
        self.open = False
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

    def malformed(self, detail: str = "malformed http") -> BadResponse:
        return BadResponse(f"{self.name}: its answer is not valid HTTP", detail=detail)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or self._parser is None:  # nobody asked
            self.abort()
            return
        self.heard = True
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break(response)
            return
        if self._refused or self._quiet > HEAD_LIMIT:  # too much of a head, a trailer, or a chunk's extension
            self._break(response)
            return
        if self._response is response:
            response.settle(self.loop.time())
        if self._surplus:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        response, self._parser = self._response, None
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._response = None
        if response is not None and not response.ended:
            if exc is None and response.head_in and not self._framed:
                response.end()  # HTTP/1.0's way: the body is all that comes
            elif exc is None:
                said = f"{self.name}: closed the connection before its answer was complete"
                response.fail(Disconnected(said, detail="closed"))
            else:
                response.fail(Disconnected(f"{self.name}: the connection was reset", detail="reset"))
            response.settle(self.loop.time())
        self.keeper.lost(self)

    def _break(self, response: Response) -> None:
        if response.ended:
            self._reusable = False  # a complete answer, and rubbish behind it
            response.settle(self.loop.time())
        else:
            response.fail(self.malformed())
        self.abort()

    # httptools' side

    def on_message_begin(self) -> None:
        if self._response is None or self._response.ended:
            self._surplus, self._reusable = True, False  # a second answer, that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        self._refused = self._refused or self._head_size > HEAD_LIMIT
        response = self._response
        if response is None or response.ended or response.head_in:
            return  # a trailer
        response.lines.append((name, value))
        lowered = name.lower()
        if lowered == b"content-length":
            self._framed = True
        elif lowered == b"transfer-encoding":
            self._framed = True
            if value.lower() != b"chunked":
                self._refused = True  # no coding that we could undo
        elif lowered == b"content-encoding":
            response.encoding = value.lower()

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or response.ended or parser is None:
            return
        status = parser.get_status_code()
        if status < 200:
            response.lines.clear()
            response.encoding = b""
            return
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._refused = True
        response.status = status
        response.head_in = True

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        if self._response is not None and not self._response.ended:
            self._response.add(body)

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or not response.head_in or response.ended or self._refused:
            return
        self._quiet = 0
        self._reusable = parser.should_keep_alive()
        response.end()
