"""HTTP to one provider, as the provider dialects see it.

Two implementations pass the same tests: `pool` is ours and costs less CPU; `aiohttp_session` supports forward proxies.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from attrs import field
from multidict import CIMultiDict

from manallm_proxy import __version__
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.spliced import Body
from manallm_proxy.contract.trace import TraceHeaders

KEEP_ALIVE_TIMEOUT: Final = 4.0
"""Seconds an idle connection is kept: below the 5 of uvicorn's ``timeout_keep_alive`` (vLLM, SGLang)."""
TAIL_TIMEOUT: Final = 1.0
"""Seconds for a provider to end its body after ``[DONE]``, so that the connection can be reused."""
HEAD_LIMIT: Final = 64 * 1024
"""Max bytes of one header line, and of a whole head where we parse it ourselves."""
SECRET_MIN_LENGTH: Final = 8
"""Min characters of a key or header value that counts as a secret; shorter ones are flags, versions, words."""
PLACEHOLDERS: Final = frozenset(
    {"lm-studio", "no-key-required", "not-needed", "not-required", "placeholder", "sk-no-key-required", "your-api-key"}
)
"""Lower-case dummy keys, for servers that need none, that reach this length (``ollama`` and ``EMPTY`` do not)."""
PASSWORD_MIN_LENGTH: Final = 4
"""Min characters of a password; it is lower because a password is certainly secret."""
_HOLDS_SECRETS: Final = re.compile(r"auth|key|token|secret|cookie|password|credential", re.IGNORECASE)
"""Names of headers whose parts are secrets too; in any other, such as ``X-Title``, a part is a plain word."""

OnChunk = Callable[[bytes], bool]
"""Called with each body chunk in the reader callback; returns True if it consumed the chunk."""


def secrets_of(api_key: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """What to redact from a provider's messages: the key, and the values of configured headers, whole and in parts.

    Non-secrets are left out: redacting ``ollama`` or ``1`` would garble messages and hide nothing.
    """
    held = {api_key} if api_key and _is_secret(api_key) else set()
    for name, value in headers.items():
        if _is_secret(value):
            held.add(value)
        if _HOLDS_SECRETS.search(name):
            held.update(_parts(value))
    return tuple(sorted(held))


def _is_secret(value: str) -> bool:
    return len(value) >= SECRET_MIN_LENGTH and value.lower() not in PLACEHOLDERS


def _parts(value: str) -> Iterator[str]:
    """The token of ``Bearer T``, the values of ``a=T; b=T``, the user and password of ``Basic``."""
    for word in re.split(r"[\s,;]+", value):
        for part in (word, word.partition("=")[2].strip('"')):
            if len(part) >= SECRET_MIN_LENGTH:
                yield part
    scheme, _, packed = value.strip().partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            pair = base64.b64decode(packed.strip(), validate=True).decode()
            user, _, password = pair.partition(":")
            yield from (part for part in (pair, user) if len(part) >= SECRET_MIN_LENGTH)
            if len(password) >= PASSWORD_MIN_LENGTH:
                yield password


@frozen
class Address:
    """A provider's base URL and how to reach it. Fields that may contain a key stay out of ``repr``."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    verify_tls: bool = True
    proxy: str | None = field(default=None, repr=False)
    key_header: str | None = field(default=None, repr=False)
    """The header that holds the bare key; None: ``Authorization: Bearer``."""
    defaults: Mapping[str, str] = field(factory=dict, repr=False)
    """Headers that each request has unless the configuration, or the request, has its own."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """See `secrets_of`."""
        return secrets_of(self.api_key, self.headers)

    def headers_for(self, request_id: str | None, extra: Mapping[str, str] | None = None) -> CIMultiDict[str]:
        """The headers of a request. Of the client's, only the request id and `extra` pass; configured headers win."""
        headers = CIMultiDict(
            {
                "User-Agent": f"manallm-proxy/{__version__}",
                "Accept": "*/*",
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
            }
        )
        if self.api_key and self.key_header:
            headers[self.key_header] = self.api_key
        elif self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if request_id:
            headers["X-Request-Id"] = request_id
        headers.update(self.defaults)
        headers.update(extra or {})
        headers.update(self.headers)
        return headers


class Response(Protocol):
    """One response whose status and headers have arrived. Waiting methods raise ProviderError if the peer fails."""

    @property
    def status(self) -> int:
        """200 to 599."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are case-insensitive."""

    @property
    def content_type(self) -> str:
        """The value of ``Content-Type``; empty if there is none."""

    async def read(
        self, on_chunk: OnChunk | None = None, until: float | None = None, idle: float | None = None
    ) -> bytes:
        """The next chunk not consumed by `on_chunk`; ``b""`` at EOF.

        Raises TimeoutError at loop time `until`, or if nothing arrives for `idle` seconds; not both may be given.
        """

    def release(self) -> None:
        """Drops the rest of the body. The connection can be reused if the body ends within TAIL_TIMEOUT."""

    def close(self) -> None:
        """Closes the connection, unless the response has arrived in full: then it is reused, as after `release`.

        May be repeated, and called after `release`.
        """


class Connections(Protocol):
    """All connections to one provider."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

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
    ) -> Response:
        """Requests `path` below the base URL; returns when status and headers have arrived.

        `connect`: max seconds for DNS lookup, TCP and TLS. `content_type` None: `body` is JSON. `headers`: of this
        request alone.

        Raises TimeoutError at loop time `until`, ProviderError if the attempt fails.

        If a pooled connection turns out to be dead, the request is sent once more over a new one. There is no other
        retry: a provider that reads a request and then closes may have started to work on it. Redirects are not
        followed, since they would send key and prompt to another host.
        """

    async def close(self) -> None:
        """Closes all connections, including those in use. Raises ExceptionGroup of failures after trying them all."""


def new_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices within 30 s if the peer loses power mid-stream (tcp(7))."""
    family, kind, proto = address[:3]
    new = socket.socket(family, kind, proto)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, name):
            new.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return new
