"""Connections to one provider through aiohttp's client, for forward proxies."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Mapping
from typing import Any

import aiohttp
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.contract.spliced import Body
from manallm_proxy.contract.trace import TraceHeaders
from manallm_proxy.http_client import tls
from manallm_proxy.http_client.aiohttp_internals import Connector
from manallm_proxy.http_client.api import HEAD_LIMIT, KEEP_ALIVE_TIMEOUT, TAIL_TIMEOUT, Address, OnChunk, new_socket
from manallm_proxy.http_client.dns import Resolver
from manallm_proxy.http_client.errors import ERRORS, malformed, transport_error, was_stale
from manallm_proxy.http_client.inflate import IDENTITY, INFLATE_LIMIT, Inflater, inflater


@define
class _Reuse:
    """Whether a request got a pooled connection, which aiohttp reports to tracers only."""

    pooled: bool = False


async def _note_reuse(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.pooled = True


def new_session(verify_tls: bool = True, *, pooled: bool = True) -> aiohttp.ClientSession:
    """An aiohttp session whose defaults are replaced where they would hurt a proxy (seen with aiohttp 3.14.5)."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    reuse: dict[str, Any] = {"keepalive_timeout": KEEP_ALIVE_TIMEOUT} if pooled else {"force_close": True}
    connector = Connector(
        limit=0,  # at the default of 100, requests queue without bound; limits are ours (max_concurrent)
        ttl_dns_cache=60,
        resolver=Resolver(),
        ssl=tls.context(verify_tls, "http/1.1"),
        socket_factory=new_socket,
        **reuse,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # the default jar would share cookies among our clients
        timeout=aiohttp.ClientTimeout(total=None),  # the default of 300 s would cut long streams
        max_line_size=HEAD_LIMIT,
        max_field_size=HEAD_LIMIT,
        read_bufsize=65536,  # the default of 256 KiB doubles the memory of a client that does not read
        trust_env=False,
        auto_decompress=False,  # it would inflate a whole socket read at once: 64 KiB may hold 64 MiB
        trace_configs=[trace],
    )


@define(eq=False)
class Session:
    """A connection pool, and an unpooled session for requests whose pooled connection was dead."""

    verify_tls: bool = True
    proxy: str | None = field(default=None, repr=False)
    closed: bool = False
    _pool: aiohttp.ClientSession = field(repr=False)
    _fresh: aiohttp.ClientSession | None = field(default=None, repr=False)

    @_pool.default
    def _new_pool(self) -> aiohttp.ClientSession:
        return new_session(self.verify_tls)

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], data: Any = None, connect: float
    ) -> aiohttp.ClientResponse:
        """Returns when status and headers have arrived. Raises aiohttp's own errors.

        `connect`: max seconds for DNS lookup, TCP and TLS. `data`: the body, or a callable that makes it if it can
        only be read once, since it may be sent twice; see `api.Connections.request`.
        """
        reuse = _Reuse()
        arguments: dict[str, Any] = {
            "headers": headers,
            "allow_redirects": False,  # aiohttp would resend prompt and custom key headers to another host
            "proxy": self.proxy,
            "timeout": aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect),
            "trace_request_ctx": reuse,
        }
        body = data if callable(data) else lambda: data
        try:
            return await self._pool.request(method, url, data=body(), **arguments)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if not (reuse.pooled and was_stale(error)):
                raise
        if self._fresh is None:
            self._fresh = new_session(self.verify_tls, pooled=False)
        return await self._fresh.request(method, url, data=body(), **arguments)

    async def close(self) -> None:
        """Closes all connections, including those in use. Raises ExceptionGroup of failures after trying them all."""
        self.closed = True
        sessions = [session for session in (self._pool, self._fresh) if session is not None]
        outcomes = await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failures:
            raise ExceptionGroup("closing connections", failures)


@define(eq=False)
class SessionResponse:
    """See `api.Response`. `on_chunk` is never called: aiohttp wakes the reading task for each chunk anyway."""

    _name: str
    _response: aiohttp.ClientResponse = field(repr=False)
    _inflater: Inflater | None = field(default=None, repr=False)
    """None for a body that is not compressed."""
    _tail: asyncio.Task[None] | None = None

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def content_type(self) -> str:
        return self._response.headers.get("Content-Type", "")

    async def read(
        self, on_chunk: OnChunk | None = None, until: float | None = None, idle: float | None = None
    ) -> bytes:
        if idle is not None:
            until = asyncio.get_running_loop().time() + idle
        if self._inflater is None:
            return await self._read(until)
        while True:
            if data := self._inflater.unconsumed_tail:
                await asyncio.sleep(0)  # a zip bomb takes as many reads as it has pieces
            elif not (data := await self._read(until)):
                if not self._inflater.eof:
                    raise malformed(self._name)
                return b""
            try:
                plain = self._inflater.decompress(data, INFLATE_LIMIT)
            except zlib.error:
                raise malformed(self._name) from None
            if plain:
                return plain

    async def _read(self, until: float | None) -> bytes:
        try:
            async with asyncio.timeout_at(until) as limit:
                return await self._response.content.readany()
        except ERRORS as error:
            if limit.expired():
                raise
            raise transport_error(error, self._name) or error from None

    def release(self) -> None:
        if self._response.content.is_eof():
            self._response.release()
        elif self._tail is None and not self._response.closed:
            self._tail = asyncio.get_running_loop().create_task(self._read_tail())

    def close(self) -> None:
        self._response.close()

    async def _read_tail(self) -> None:
        try:
            async with asyncio.timeout(TAIL_TIMEOUT):
                while await self._response.content.readany():
                    pass
            self._response.release()
        except ERRORS:
            self._response.close()


@define(eq=False)
class SessionConnections:
    """See `api.Connections`."""

    address: Address
    _session: Session = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._session = Session(self.address.verify_tls, self.address.proxy)

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def request(
        self,
        method: str,
        path: str,
        *,
        request_id: str | None,
        body: Body | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        connect: float,
        until: float | None = None,
        trace: TraceHeaders | None = None,
    ) -> SessionResponse:
        name = self.address.name
        lines = self.address.headers_for(request_id, headers)
        if trace:
            lines.update(trace)
        if content_type is not None:
            lines["Content-Type"] = content_type
        try:
            async with asyncio.timeout_at(until) as limit:
                response = await self._session.request(
                    method,
                    f"{self.address.base_url}/{path}",
                    headers=lines,
                    data=None if body is None else lambda: _payload(body),
                    connect=connect,
                )
        except ERRORS as error:
            if limit.expired():
                raise
            raise transport_error(error, name) or error from None
        encoding = response.headers.get("Content-Encoding", "").lower().encode("latin-1", "replace")
        if encoding in IDENTITY:
            return SessionResponse(name, response)
        if (inflating := inflater(encoding)) is None:
            response.close()
            raise malformed(name)
        return SessionResponse(name, response, inflating)

    async def close(self) -> None:
        await self._session.close()


def _payload(body: Body) -> bytes | io.BytesIO:
    """A file object above 1 MiB: aiohttp writes it in parts, yielding in between; for large bytes it warns."""
    return bytes(body) if len(body) <= 2**20 else io.BytesIO(bytes(body))
