"""Connections to one provider through aiohttp's client, which knows forward proxies, and which google-genai wants."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import aiohttp
from attrs import define, field

from manallm_proxy.contract.errors import ProviderError
from manallm_proxy.http_client.api import HEAD_LIMIT, KEEP_ALIVE, TAIL_TIMEOUT, Address, OnChunk, new_socket
from manallm_proxy.http_client.dns import Resolver
from manallm_proxy.http_client.errors import ERRORS, transport_error, was_stale


@define
class _Reuse:
    """Whether a request got a pooled connection (aiohttp tells its tracers)."""

    pooled: bool = False


async def _note_reuse(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.pooled = True


class _Connector(aiohttp.TCPConnector):
    async def _get(self, key: Any, traces: Any) -> Any:
        """A pooled connection, but none over which something has come since: aiohttp (3.14.5) would take it for the
        next request's answer, which is another client's.
        """
        while (found := await super()._get(key, [])) is not None:
            if found.protocol is not None and not found.protocol.should_close:
                for trace in traces:
                    await trace.send_connection_reuseconn()
                return found
            found.close()
        return None


def new_session(verify_tls: bool = True, *, pooled: bool = True) -> aiohttp.ClientSession:
    """A session as a proxy needs it; each setting answers a trap of libraries.md 1.6."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    kept: dict[str, Any] = {"keepalive_timeout": KEEP_ALIVE} if pooled else {"force_close": True}
    connector = _Connector(
        limit=0,  # we count ourselves: a full pool would queue without bound
        ttl_dns_cache=60,
        resolver=Resolver(),
        ssl=verify_tls,
        socket_factory=new_socket,
        **kept,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # the default jar would share cookies between our clients
        timeout=aiohttp.ClientTimeout(total=None),  # a total would cut long streams
        max_line_size=HEAD_LIMIT,
        max_field_size=HEAD_LIMIT,
        read_bufsize=65536,
        trust_env=False,
        auto_decompress=True,
        trace_configs=[trace],
    )


@define(eq=False)
class Session:
    """A pool, and a way around it for the one time that a pooled connection was dead."""

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
        """A status with its headers, connected within `connect` seconds; aiohttp's errors as they are.

        The second try is as `connections.Connections` says. `data` is a callable where it can be read once only.
        """
        reuse = _Reuse()
        arguments: dict[str, Any] = {
            "headers": headers,
            "allow_redirects": False,  # a redirect would take key and prompt to another host
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
        """Gives them back, those in use too."""
        self.closed = True
        await self._pool.close()
        if self._fresh is not None:
            await self._fresh.close()


@define(eq=False)
class SessionResponse:
    """See `connections.Response`. What was pulled is never offered to a `on_chunk`: the task is awake anyway."""

    _name: str
    _response: aiohttp.ClientResponse = field(repr=False)
    silent_since: float | None = None
    _tail: asyncio.Task[None] | None = None

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def read(self, on_chunk: OnChunk | None = None, until: float | None = None) -> bytes:
        self.silent_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(until) as limit:
                return await self._response.content.readany()
        except ERRORS as error:
            if limit.expired():
                raise
            raise transport_error(error, self._name) or error from None
        finally:
            self.silent_since = None

    def fail(self, error: ProviderError) -> None:
        # sock_read would not fire behind a broken chunk (libraries.md 1.4); this wakes the reader in any state
        self._response.content.set_exception(error)

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
    """See `connections.Connections`."""

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
        body: bytes | None = None,
        content_type: str | None = None,
        connect: float,
        until: float | None = None,
    ) -> SessionResponse:
        name = self.address.name
        headers = self.address.headers_for(request_id)
        if content_type is not None:
            headers["Content-Type"] = content_type
        try:
            async with asyncio.timeout_at(until) as limit:
                response = await self._session.request(
                    method,
                    f"{self.address.base_url}/{path}",
                    headers=headers,
                    data=None if body is None else lambda: _payload(body),
                    connect=connect,
                )
        except ERRORS as error:
            if limit.expired():
                raise
            raise transport_error(error, name) or error from None
        return SessionResponse(name, response)

    async def close(self) -> None:
        await self._session.close()


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Above a mebibyte aiohttp wants a file, which it writes piece by piece, giving way to others between."""
    return body if len(body) <= 2**20 else io.BytesIO(body)
