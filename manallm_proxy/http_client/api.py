"""What the client needs of HTTP to one provider, whoever speaks it: `pool` (our own), or `session` (aiohttp's).

Both pass the same tests. `pool` costs less CPU; `session` knows forward proxies.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from attrs import field, frozen
from multidict import CIMultiDict

from manallm_proxy import __version__
from manallm_proxy.contract.errors import ProviderError

KEEP_ALIVE: Final = 4.0
"""Seconds an idle connection is kept: below the 5 s after which uvicorn (vLLM, SGLang) closes."""
TAIL_TIMEOUT: Final = 1.0
"""Seconds for a provider to end its body behind ``[DONE]``, so that the connection can be used again."""
HEAD_LIMIT: Final = 64 * 1024
"""Bytes of one header line, and of a whole head where it is ours to count."""
SECRET_LENGTH: Final = 8
"""Characters of a header's value that may be a secret; a shorter one is a flag or a version, part of other words."""

OnChunk = Callable[[bytes], bool]
"""Is offered each part of a body as it arrives; True: it has dealt with it."""


def secrets_of(api_key: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """What a provider may quote, and nobody else is to read: the key, and headers of our own that may be one."""
    held = tuple(value for value in headers.values() if len(value) >= SECRET_LENGTH)
    return (api_key, *held) if api_key else held


@frozen
class Address:
    """Where a provider is, and how it is reached. Whatever may hold a key stays out of ``repr``."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    verify_tls: bool = True
    proxy: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """See `secrets_of`."""
        return secrets_of(self.api_key, self.headers)

    def headers_for(self, request_id: str | None) -> CIMultiDict[str]:
        """What every request carries: nothing of the client's own but the request id (contract, section 3)."""
        headers = CIMultiDict(
            {
                "User-Agent": f"manallm-proxy/{__version__}",
                "Accept": "*/*",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            }
        )
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if request_id:
            headers["X-Request-Id"] = request_id
        headers.update(self.headers)
        return headers


class Response(Protocol):
    """One answer whose head is in. Every method that waits raises ProviderError where the network or peer fails."""

    @property
    def status(self) -> int:
        """200 to 599."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names compare without case."""

    @property
    def silent_since(self) -> float | None:
        """Loop time of the last byte, or of the wait's begin; None while nobody waits for one."""

    async def read(self, on_chunk: OnChunk | None = None, until: float | None = None) -> bytes:
        """The body's next part that `on_chunk` does not take; ``b""`` at its end. TimeoutError at loop time `until`."""

    def fail(self, error: ProviderError) -> None:
        """Wakes who waits with `error`."""

    def release(self) -> None:
        """Nothing more of it is wanted: its connection serves another once the body's end is in."""

    def close(self) -> None:
        """Ends it, and its connection, now. Harmless when repeated or behind `release`."""


class Connections(Protocol):
    """All connections to one provider."""

    @property
    def closed(self) -> bool:
        """They were given back for good."""

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
    ) -> Response:
        """A status with its headers, for `path` below the base URL; connected within `connect` seconds.

        `content_type` None: `body` is JSON.

        TimeoutError at loop time `until`.

        Where a pooled connection turned out dead, the request goes once more, over a fresh one. Once and no
        more: a provider that reads a request and then closes has begun to work on it. Redirects are not
        followed: they would take key and prompt to another host.
        """

    async def close(self) -> None:
        """Gives them back, those in use too."""


def new_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices a peer which lost power in mid stream."""
    family, kind, proto = address[:3]
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
