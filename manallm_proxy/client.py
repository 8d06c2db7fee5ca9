"""HTTP to one provider: what its wire shapes goes out, what comes back goes to the wire.

One session a provider, so that its connections, its TLS and its proxy are its own. The wire knows no
I/O, this file knows no dialect.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from attrs import define, field, frozen
from multidict import CIMultiDict

from manallm_proxy import transport
from manallm_proxy.chain import Entry, Timeouts
from manallm_proxy.errors import (
    BadResponse,
    Disconnected,
    ProviderError,
    ReadTimeout,
)
from manallm_proxy.schema import Usage
from manallm_proxy.upstream import Answer, Call, Listed, Piece
from manallm_proxy.wires import Translator, Wire
from manallm_proxy.wires.classify import scrubbed, widened

ANSWER_LIMIT: Final = 256 * 1024 * 1024
"""Bytes of one complete answer: thousands of embeddings fit, a flood does not."""
ERROR_LIMIT: Final = 64 * 1024
ERROR_TIMEOUT: Final = 5.0
"""Seconds for the body of a refusal."""
TRIES_LIMIT: Final = 100
"""More dead pooled connections than this in a row are not dead connections."""
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
class _Reuse:
    """Whether this request got a pooled connection (aiohttp tells its tracers)."""

    pooled: bool = False


async def _note_reuse(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.pooled = True


def new_session(verify_tls: bool = True) -> aiohttp.ClientSession:
    """A session as a proxy needs it; each setting answers a trap of libraries.md 1.6."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    connector = aiohttp.TCPConnector(
        limit=0,  # we count ourselves: a full pool would queue without bound
        keepalive_timeout=4.0,  # below the 5 s after which uvicorn (vLLM, SGLang) closes
        ttl_dns_cache=60,
        ssl=verify_tls,
        socket_factory=_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # the default jar would share cookies between our clients
        timeout=aiohttp.ClientTimeout(total=None),  # a total would cut long streams
        max_line_size=65536,
        max_field_size=65536,
        read_bufsize=65536,
        trust_env=False,
        auto_decompress=True,
        trace_configs=[trace],
    )


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices a peer which lost power in mid stream."""
    family, kind, proto = address[:3]
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


@define
class HttpUpstream:
    """One provider over HTTP."""

    address: Address
    wire: Wire
    extra_retryable_statuses: frozenset[int] = frozenset()
    _session: aiohttp.ClientSession = field(repr=False)
    _tails: set[asyncio.Task[None]] = field(factory=set, repr=False)

    @_session.default
    def _new_session(self) -> aiohttp.ClientSession:
        return new_session(self.address.verify_tls)

    async def complete(self, call: Call, entry: Entry) -> Answer:
        """A body, whole and checked: its first byte within ``first_byte``, then no silence over ``idle``."""
        times = entry.timeouts
        try:
            async with asyncio.timeout(times.first_byte):
                response = await self._post(call, entry)
        except TimeoutError:
            raise self.wire.first_byte_error(f"{self.address.name}: no answer within {times.first_byte:g} s") from None
        async with response:
            body = await self._read(response, ANSWER_LIMIT, times.first_byte, times.idle)
        try:
            return self.wire.answer(call, entry, body)
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
            async with self._session.get(url, **self._arguments(None, Timeouts())) as response:
                if response.status >= 500:
                    raise self.wire.failure(response.status, response.headers, b"")
                if response.status != 200:
                    return ()
                return self.wire.listed(await self._read(response, ANSWER_LIMIT, 60.0, 60.0))
        except transport.ERRORS as error:
            raise self._failed(error) from None

    async def close(self) -> None:
        for task in self._tails:
            task.cancel()
        await self._session.close()

    async def _post(self, call: Call, entry: Entry) -> aiohttp.ClientResponse:
        """A 200 with its headers in. A pooled connection that turns out dead costs another try, not the attempt."""
        request = self.wire.request(call, entry)
        for _ in range(TRIES_LIMIT):
            url = f"{self.address.base_url}/{request.path}"
            arguments = self._arguments(call.request_id, entry.timeouts)
            try:
                response = await self._session.post(url, data=_payload(request.body), **arguments)
            except transport.ERRORS as error:
                if arguments["trace_request_ctx"].pooled and transport.was_stale(error):
                    continue
                raise self._failed(error) from None
            if response.status == 200:
                return response
            async with response:
                body = await self._read(response, ERROR_LIMIT, ERROR_TIMEOUT, ERROR_TIMEOUT)
            before, request = request, self.wire.reshape(call, entry, response.status, body) or request
            if request is before:
                refusal = self.wire.failure(response.status, response.headers, body)
                refusal = widened(refusal, self.address.name, self.extra_retryable_statuses)
                raise scrubbed(refusal, self.address.api_key)
        raise Disconnected(f"{self.address.name}: it closed every connection", detail="closed")

    def _arguments(self, request_id: str | None, times: Timeouts) -> dict[str, Any]:
        return {
            "headers": self.address.headers_for(request_id),
            "allow_redirects": False,  # a redirect would take key and prompt to another host
            "proxy": self.address.proxy,
            "timeout": aiohttp.ClientTimeout(total=None, connect=times.connect, sock_connect=times.connect),
            "trace_request_ctx": _Reuse(),
        }

    async def _read(self, response: aiohttp.ClientResponse, most: int, first: float, idle: float) -> bytes:
        """The body, up to `most` bytes of it; ReadTimeout after `first`, then `idle` seconds of silence."""
        parts: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(first) as limit:
                while size < most and (part := await response.content.readany()):
                    parts.append(part)
                    size += len(part)
                    limit.reschedule(loop.time() + idle)
        except transport.ERRORS as error:
            raise self._failed(error) from None
        if size >= most and most == ANSWER_LIMIT:
            raise BadResponse(f"{self.address.name}: its answer does not end", detail="too long")
        return b"".join(parts)[:most]

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
