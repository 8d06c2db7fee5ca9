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

from manallm_proxy.http_client.aiohttp_session import Session


@define(eq=False)
class Exchange:
    """One request on its way through the SDK: what the door must know of it, and what only the door sees."""

    request_id: str
    connect: float
    """Seconds for name look-up, TCP and TLS."""
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

    _session: Session = field(repr=False)

    @property  # type: ignore[misc]  # object's can be written, this one need not
    def __class__(self) -> type:
        return aiohttp.ClientSession

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], data: bytes | None, **_: Any
    ) -> aiohttp.ClientResponse:
        """Sends it our way: our limits, no redirects, our TLS and proxy, one more try where a pooled one was dead."""
        exchange = _EXCHANGE.get()
        exchange.response = await self._session.request(
            method,
            url,
            headers={**headers, "Accept-Encoding": "identity", "X-Request-Id": exchange.request_id},
            data=data,
            connect=exchange.connect,
        )
        return exchange.response
