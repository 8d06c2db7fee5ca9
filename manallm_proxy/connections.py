"""Connections to one provider: a pool, and a way around it for the one time that a pooled one was dead."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from attrs import define, field

from manallm_proxy.transport import was_stale

KEEP_ALIVE: Final = 4.0
"""Seconds an idle connection is kept: below the 5 s after which uvicorn (vLLM, SGLang) closes."""


@define
class _Reuse:
    """Whether a request got a pooled connection (aiohttp tells its tracers)."""

    pooled: bool = False


async def _note_reuse(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.pooled = True


def new_session(verify_tls: bool = True, *, pooled: bool = True) -> aiohttp.ClientSession:
    """A session as a proxy needs it; each setting answers a trap of libraries.md 1.6."""
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    kept: dict[str, Any] = {"keepalive_timeout": KEEP_ALIVE} if pooled else {"force_close": True}
    connector = aiohttp.TCPConnector(
        limit=0,  # we count ourselves: a full pool would queue without bound
        ttl_dns_cache=60,
        ssl=verify_tls,
        socket_factory=_socket,
        **kept,
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


@define(eq=False)
class Connections:
    """All connections to one provider. ``closed`` once they are given back for good."""

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

        Where a pooled connection turned out dead, the request goes once more, over a fresh one. Once and no
        more: a provider that reads a request and then closes has begun to work on it. `data` is a callable
        where it can be read once only.
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
