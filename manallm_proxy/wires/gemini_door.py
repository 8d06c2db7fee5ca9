"""Our session as google-genai gets to see it.

The SDK speaks HTTP by itself, through an aiohttp session that it is given, in a way that does not suit a
proxy: it follows redirects with prompt and key, waits for a connection without limit, brings its own TLS
settings, and keeps the response to itself, so that a stream which nobody reads any more could not be ended
(wire.md D.1). So it gets this in place of the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import aiohttp
from attrs import define, field

from manallm_proxy.transport import was_stale

_TRIES_LIMIT: Final = 100
"""More dead pooled connections than this in a row are not dead connections."""


@define(eq=False)
class Exchange:
    """One request on its way through the SDK: what the door must know of it, and what only the door sees."""

    request_id: str
    connect: float
    """Seconds for name look-up, TCP and TLS."""
    pooled: bool = False
    """Whether it got a pooled connection; the session's tracer notes it."""
    response: aiohttp.ClientResponse | None = field(default=None, repr=False)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """What the SDK sends within belongs to this exchange."""
        token = _EXCHANGE.set(self)
        try:
            yield
        finally:
            _EXCHANGE.reset(token)


_EXCHANGE: Final[ContextVar[Exchange]] = ContextVar("exchange")
"""The SDK hands nothing of ours through to its session, but calls it from the task that asked."""


@define(eq=False)
class Door:
    """The part of ClientSession that the SDK uses. The SDK insists on one, and a subclass may not be made of it."""

    _session: aiohttp.ClientSession = field(repr=False)
    _proxy: str | None = field(default=None, repr=False)

    @property  # type: ignore[misc]  # object's can be written, this one need not
    def __class__(self) -> type:
        return aiohttp.ClientSession

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], data: bytes | None, **_: Any
    ) -> aiohttp.ClientResponse:
        """Sends it our way. A pooled connection that turns out dead costs another try, not the attempt."""
        exchange = _EXCHANGE.get()
        arguments: dict[str, Any] = {
            "headers": {**headers, "Accept-Encoding": "identity", "X-Request-Id": exchange.request_id},
            "data": data,
            "allow_redirects": False,
            "proxy": self._proxy,
            "timeout": aiohttp.ClientTimeout(total=None, connect=exchange.connect, sock_connect=exchange.connect),
            "trace_request_ctx": exchange,
        }
        for left in reversed(range(_TRIES_LIMIT)):
            exchange.pooled = False
            try:
                exchange.response = await self._session.request(method, url, **arguments)
                break
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if not (left and exchange.pooled and was_stale(error)):
                    raise
        assert exchange.response is not None
        return exchange.response
