"""HTTP to one provider: what its wire shapes goes out, what comes back goes to the wire.

Each provider has connections of its own, and so its own TLS and proxy. The wire knows no
I/O, this file knows no dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
from attrs import define, field, frozen
from multidict import CIMultiDict

from manallm_proxy import transport
from manallm_proxy.chain import Entry, Timeouts
from manallm_proxy.connections import Connections
from manallm_proxy.errors import (
    BadResponse,
    ProviderError,
    ReadTimeout,
)
from manallm_proxy.schema import Usage
from manallm_proxy.upstream import Answer, Call, Listed, Piece
from manallm_proxy.wires import Request, Translator, Wire
from manallm_proxy.wires.classify import scrubbed, widened

ANSWER_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of one complete answer: thousands of embeddings fit, a flood does not."""
ERROR_LIMIT: Final = 64 * 1024
ERROR_TIMEOUT: Final = 5.0
"""Seconds for the body of a refusal."""
TAIL_TIMEOUT: Final = 1.0
"""Seconds for a provider to end its body behind ``[DONE]``, so that the connection can be used again."""


@frozen
class Address:
    """Where a provider is, and how it is reached. Whatever may hold a key stays out of ``repr``."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    verify_tls: bool = True
    proxy: str | None = field(default=None, repr=False)

    def headers_for(self, request_id: str | None) -> CIMultiDict[str]:
        """What every request carries: nothing of the client's own but the request id (contract, section 3)."""
        headers = CIMultiDict({"Content-Type": "application/json", "Accept-Encoding": "identity"})
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if request_id:
            headers["X-Request-Id"] = request_id
        headers.update(self.headers)
        return headers


@define
class HttpUpstream:
    """One provider over HTTP."""

    address: Address
    wire: Wire
    extra_retryable_statuses: frozenset[int] = frozenset()
    _connections: Connections = field(repr=False)
    _tails: set[asyncio.Task[None]] = field(factory=set, repr=False)

    @_connections.default
    def _new_connections(self) -> Connections:
        return Connections(self.address.verify_tls, self.address.proxy)

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """A body, whole and checked: its first byte within ``first_byte``, then no silence over ``idle``."""
        times, name = entry.timeouts, self.address.name
        loop = asyncio.get_running_loop()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(times.first_byte) as limit:
                async with await self._post(call, entry) as response:
                    async for part in self._parts(response, ANSWER_LIMIT):
                        parts.append(part)
                        limit.reschedule(loop.time() + times.idle)
        except TimeoutError:
            if parts:
                raise ReadTimeout(f"{name}: fell silent for {times.idle:g} s") from None
            raise self.first_byte_error(times.first_byte) from None
        try:
            return self.wire.answer(call, entry, b"".join(parts))
        except ProviderError as error:
            raise scrubbed(error, self.address.api_key) from None

    async def stream(self, call: Call, entry: Entry) -> HttpStream:
        """Whoever calls bounds the time to the first byte: only it knows which event commits."""
        response = await self._post(call, entry)
        translator = self.wire.translator(call, entry, response.headers.get("Content-Type", ""))
        return HttpStream(self, response, translator)

    def first_byte_error(self, seconds: float) -> ProviderError:
        return self.wire.first_byte_error(f"{self.address.name}: nothing said within {seconds:g} s")

    async def probe(self) -> tuple[Listed, ...]:
        """Anything below 500 is alive; a 200 brings the list of models."""
        url = f"{self.address.base_url}/{self.wire.probe_path}"
        try:
            asked = self._connections.request(
                "GET", url, headers=self.address.headers_for(None), connect=Timeouts().connect
            )
            async with await asked as response:
                if response.status >= 500:
                    raise self.wire.failure(response.status, response.headers, b"")
                if response.status != 200:
                    return ()
                body = b"".join([part async for part in self._parts(response, ANSWER_LIMIT)])
                return self.wire.listed(body)
        except transport.ERRORS as error:
            raise self._failed(error) from None

    async def close(self) -> None:
        for task in self._tails:
            task.cancel()
        await self._connections.close()

    async def _post(self, call: Call, entry: Entry) -> aiohttp.ClientResponse:
        """A 200 with its headers in. ProviderError for any other status."""
        request = self.wire.request(call, entry)
        response = await self._send(request, call, entry)
        if response.status == 200:
            return response
        body = await self._refusal(response)
        again = self.wire.reshape(call, entry, response.status, body)
        if again is not None and again.body != request.body:
            response = await self._send(again, call, entry)
            if response.status == 200:
                self.wire.took(again)
                return response
            body = await self._refusal(response)
        refusal = self.wire.failure(response.status, response.headers, body)
        refusal = widened(refusal, self.address.name, self.extra_retryable_statuses)
        raise scrubbed(refusal, self.address.api_key)

    async def _send(self, request: Request, call: Call, entry: Entry) -> aiohttp.ClientResponse:
        """A status with its headers."""
        try:
            return await self._connections.request(
                "POST",
                f"{self.address.base_url}/{request.path}",
                headers=self.address.headers_for(call.request_id),
                data=lambda: _payload(request.body),
                connect=entry.timeouts.connect,
            )
        except transport.ERRORS as error:
            raise self._failed(error) from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> bytes:
        """The body of a refusal, as far as it comes: the status has said already what it is."""
        parts: list[bytes] = []
        with contextlib.suppress(ProviderError, TimeoutError):
            async with response, asyncio.timeout(ERROR_TIMEOUT):
                async for part in self._parts(response, ERROR_LIMIT):
                    parts.append(part)  # noqa: PERF401  # what came before a break counts
        return b"".join(parts)[:ERROR_LIMIT]

    async def _parts(self, response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
        """The body as it comes. BadResponse behind `most` bytes of an answer; a refusal just ends there."""
        size = 0
        try:
            while part := await response.content.readany():
                yield part
                size += len(part)
                if size >= most:
                    break
        except transport.ERRORS as error:
            raise self._failed(error) from None
        if size >= most and most == ANSWER_LIMIT:
            raise BadResponse(f"{self.address.name}: its answer does not end", detail="too long")

    def _failed(self, error: BaseException) -> BaseException:
        return transport.transport_error(error, self.address.name) or error

    def finish(self, response: aiohttp.ClientResponse) -> None:
        """The answer is complete: its connection goes back to the pool once the body's end is in too."""
        if response.content.is_eof():
            response.release()
            return
        task = asyncio.get_running_loop().create_task(_read_tail(response))
        self._tails.add(task)
        task.add_done_callback(self._tails.discard)


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Above a mebibyte aiohttp wants a file, which it writes piece by piece, giving way to others between."""
    return body if len(body) <= 2**20 else io.BytesIO(body)


async def _read_tail(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(TAIL_TIMEOUT):
            while await response.content.readany():
                pass
        response.release()
    except transport.ERRORS:
        response.close()


@define
class HttpStream:
    """One streamed answer over HTTP. One timer guards it, however many chunks it has."""

    _upstream: HttpUpstream
    _response: aiohttp.ClientResponse
    _translator: Translator
    _idle: float = 0.0
    _reading_since: float | None = None
    _guard: asyncio.TimerHandle | None = None
    _complete: bool = False
    _closed: bool = False

    @property
    def usage(self) -> Usage | None:
        return self._translator.usage

    @property
    def commentable(self) -> bool:
        return self._translator.commentable

    async def next(self) -> Piece:
        """See `upstream.Stream`."""
        loop = asyncio.get_running_loop()
        try:
            self._reading_since = loop.time()
            data = await self._response.content.readany()
        except transport.ERRORS as error:
            raise self._upstream._failed(error) from None
        finally:
            self._reading_since = None
        piece = self._translator.feed(data) if data else self._translator.close()
        self._complete = piece.done
        if piece.error is not None:
            scrubbed(piece.error, self._upstream.address.api_key)
        return piece

    def commit(self, idle: float) -> None:
        """Arms the guard. Only the time that we wait for the provider counts, not what the client takes."""
        self._idle = idle
        loop = asyncio.get_running_loop()
        self._guard = loop.call_later(idle, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        silent = now - self._reading_since if self._reading_since is not None else 0.0
        if silent < self._idle:
            self._guard = loop.call_later(self._idle - silent, self._look)
            return
        # sock_read would not fire behind a broken chunk (libraries.md 1.4); this wakes the reader in any state
        name = self._upstream.address.name
        self._response.content.set_exception(ReadTimeout(f"{name}: fell silent for {self._idle:g} s"))

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._guard is not None:
            self._guard.cancel()
        if self._complete:
            self._upstream.finish(self._response)
        else:
            self._response.close()
