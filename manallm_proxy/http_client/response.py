"""The response to one request over a connection: its head, and its body as it arrives."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from typing import Final, Protocol

from attrs import field
from multidict import CIMultiDict

from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.http_client.api import OnChunk
from manallm_proxy.http_client.inflate import IDENTITY, INFLATE_LIMIT, Inflater, inflater

_CONTENT_TYPE: Final = b"content-type"
READ_HIGH_WATER: Final = 64 * 1024
"""Read high-water mark in bytes: above it the socket is not read until the body is."""


class Owner(Protocol):
    """The connection, as its response sees it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def paused(self) -> bool:
        """Whether reading from the socket is paused."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def watch(self, deadline: float) -> None:
        """Schedules a call of `Response.expire` at loop time `deadline`."""

    def complete(self, response: Response) -> None:
        """`response` has ended and is no longer wanted."""

    def abandon(self, response: Response) -> None:
        """`response` was closed before its end."""

    def drain_later(self) -> None:
        """The response was released before its end."""

    def malformed(self) -> BadResponse: ...


@define(eq=False)
class Response:
    """See `api.Response`. It is complete once ``ended``, whether or not its body was read."""

    _owner: Owner = field(repr=False)
    status: int = 0
    silent_since: float | None = None
    """Loop time since when a pending read has received nothing; None if no read is pending."""
    head_in: bool = False
    ended: bool = False
    lines: list[tuple[bytes, bytes]] = field(factory=list, repr=False)
    """The header lines as received: a value may end in blanks that are not part of it (RFC 9110, section 5.5)."""
    encoding: bytes = field(default=b"", repr=False)
    """The value of ``Content-Encoding``."""
    _headers: CIMultiDict[str] | None = field(default=None, repr=False)
    _chunks: list[bytes] = field(factory=list, repr=False)
    """Body bytes that have not been read yet, as they arrived."""
    _size: int = 0
    """Bytes in ``_chunks``."""
    _error: BaseException | None = None
    _waiter: asyncio.Future[None] | None = None
    _on_chunk: OnChunk | None = None
    _refused: bytes | None = field(default=None, repr=False)
    """The chunk that `on_chunk` did not consume. `read` returns it on its own."""
    _deadline: float | None = None
    _idle: float | None = None
    """Of the pending `read`."""
    _wanted: bool = True
    """False after `release` and `close`: the rest of the body is dropped."""
    _broken: bool = False
    _inflater: Inflater | None = None
    """Of a compressed body."""

    @property
    def headers(self) -> Mapping[str, str]:
        if self._headers is None:
            pairs = ((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")) for name, value in self.lines)
            self._headers = CIMultiDict(pairs)
        return self._headers

    @property
    def content_type(self) -> str:
        if self._headers is not None:
            return self._headers.get("Content-Type", "")
        for name, value in self.lines:
            if len(name) == len(_CONTENT_TYPE) and name.lower() == _CONTENT_TYPE:
                return value.strip(b" \t").decode("latin-1")
        return ""

    async def head(self, until: float | None) -> None:
        """Waits for status and headers.

        Raises TimeoutError at loop time `until`, BadResponse if the content coding is unknown.
        """
        while not self.head_in:
            if self._error is not None:
                raise self._error
            await self._wait(None, until)
        if self.encoding not in IDENTITY:
            self._inflater = inflater(self.encoding)
            if self._inflater is None:
                raise self._unreadable()

    async def read(
        self, on_chunk: OnChunk | None = None, until: float | None = None, idle: float | None = None
    ) -> bytes:
        while True:
            if self._refused is not None:
                data, self._refused = self._refused, None
                return data
            if self._chunks:
                if self._inflater is not None:  # a zip bomb takes as many reads as it has pieces
                    await asyncio.sleep(0)
                data = self._next()
                if data or self._inflater is None:
                    return data
                continue  # so far only the header of the compressed format
            if self._error is not None:
                raise self._error
            if self.ended:
                if self._inflater is not None and not self._inflater.eof:
                    raise self._unreadable()
                return b""
            if self._owner.paused:
                self._owner.resume()
            await self._wait(on_chunk if self._inflater is None else None, until, idle)

    def expire(self, now: float) -> float | None:
        """Fails the pending wait with TimeoutError if its deadline has passed, else returns that deadline."""
        if self._waiter is None or self._deadline is None or self._waiter.done():
            return None
        if self._idle is not None and self.silent_since is not None:
            self._deadline = self.silent_since + self._idle
        if self._deadline > now:
            return self._deadline
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
            self._owner.complete(self)
        else:
            self._owner.resume()
            self._owner.drain_later()

    def close(self) -> None:
        self._wanted = False
        self._drop()
        if self.ended and not self._broken:  # it has arrived in full, read or not: nothing is left to stop
            self._owner.complete(self)
        else:
            self._owner.abandon(self)

    def add(self, chunks: list[bytes]) -> None:
        """Body bytes have arrived; the connection calls `deliver` after the last ones of a socket read."""
        if self._wanted:
            self._chunks += chunks
            self._size += sum(map(len, chunks))

    def deliver(self, now: float) -> None:
        """Passes what has arrived to `on_chunk`, or wakes the reader. `now`: loop time."""
        if not self.head_in and self._error is None:
            return
        if self._on_chunk is not None and self._chunks:
            if len(self._chunks) == 1 and self._inflater is None:
                data = self._chunks.pop()
                self._size = 0
            else:
                data = self._next()
            self.push(data, now)
        else:
            self._settle()

    def push(self, chunk: bytes, now: float) -> None:
        """As `add` and `deliver`, for a chunk before which all were delivered."""
        if self._on_chunk is None:
            self.add([chunk])
        else:
            try:
                consumed = self._on_chunk(chunk)
            except BaseException as error:  # a bug in the callback: it must reach the reader, not the event loop
                self._error = error
            else:
                if consumed and not self.ended and self._error is None:
                    self.silent_since = now
                    return
                self._refused = None if consumed else chunk
            self._on_chunk = None  # bytes that arrive before the reader runs belong to its next read
        self._settle()

    def _settle(self) -> None:
        """Wakes the reader; where none waits, does not let too much come in."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif self._size > READ_HIGH_WATER and not self.ended:
            self._owner.pause()

    def end(self) -> None:
        """The body has arrived in full."""
        self.ended = True
        if not self._wanted:
            self._owner.complete(self)

    def _next(self) -> bytes:
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        self._drop()
        if self._inflater is None:
            return data
        try:
            plain = self._inflater.decompress(data, INFLATE_LIMIT)
        except zlib.error:
            raise self._unreadable() from None
        if self._inflater.unconsumed_tail:
            self.add([self._inflater.unconsumed_tail])
        return plain

    def _unreadable(self) -> BadResponse:
        """The error for a body that is not in the coding it claims. The connection is not reused."""
        self._broken = True
        return self._owner.malformed()

    def _drop(self) -> None:
        self._chunks = []
        self._size = 0

    async def _wait(self, on_chunk: OnChunk | None, until: float | None, idle: float | None = None) -> None:
        loop = self._owner.loop
        self._waiter = loop.create_future()
        self._on_chunk = on_chunk
        self.silent_since = now = loop.time()
        self._deadline = until = until if idle is None else now + idle
        self._idle = idle
        if until is not None:
            self._owner.watch(until)
        try:
            await self._waiter
        finally:
            self._waiter = self._on_chunk = self.silent_since = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
