"""A pool of our own HTTP/1.1 connections to one provider."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Final

import aiohappyeyeballs
from attrs import field
from yarl import URL

from manallm_proxy.contract.provider_errors import ConnectTimeout, Disconnected
from manallm_proxy.contract.records import define
from manallm_proxy.contract.spliced import Body
from manallm_proxy.contract.trace import TraceHeaders
from manallm_proxy.http_client import tls
from manallm_proxy.http_client.api import KEEP_ALIVE_TIMEOUT, Address, new_socket
from manallm_proxy.http_client.connection import Connection
from manallm_proxy.http_client.dns import AddrInfo, look_up
from manallm_proxy.http_client.errors import connect_error
from manallm_proxy.http_client.response import Response

DNS_TTL: Final = 60.0
"""Seconds that looked-up addresses are used for new connections, unless connecting fails."""
HAPPY_EYEBALLS_DELAY: Final = 0.25
"""Seconds until the host's next address is tried in parallel (RFC 8305, section 5)."""

LATE: Final = 0.5
"""A timer that fires so many seconds after it was due shows that this process has stood still."""
CATCH_UP: Final = 0.05
"""Seconds in which it then reads what came meanwhile, before anything counts as missing."""


@define(eq=False)
class Pool:
    """See `api.Connections`."""

    address: Address
    closed: bool = False
    _url: URL = field(init=False, repr=False)
    _base_path: str = field(init=False, repr=False)
    _fixed_lines: bytes = field(init=False, repr=False)
    """Header lines that every request has, and the blank line after them."""
    _json: str = field(init=False)
    """The ``Content-Type`` of a JSON body; configured headers may replace it."""
    _sends_request_id: bool = field(init=False)
    """The configuration does not set ``X-Request-Id`` itself."""
    _tls: ssl.SSLContext | None = field(init=False, repr=False)
    _free: dict[Connection, float] = field(factory=dict, repr=False)
    """Idle connections with the loop time at which each became idle, the longest idle first."""
    _open: set[Connection] = field(factory=set, repr=False)
    """All connections, idle or not."""
    _resolved: tuple[float, Sequence[AddrInfo]] | None = field(default=None, repr=False)
    """Loop time of the last lookup, and its addresses."""
    _lookup: asyncio.Task[Sequence[AddrInfo]] | None = field(default=None, repr=False)
    _sweep_timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    _deadline_timer: asyncio.TimerHandle | None = field(default=None, repr=False)
    _deadline: float = 0.0
    """When that fires. uvloop's handle of what is due within half a millisecond does not say it."""
    _catches_up: bool = False

    def __attrs_post_init__(self) -> None:
        self._url = url = URL(self.address.base_url)
        self._json = self.address.headers_for(None)["Content-Type"]
        self._sends_request_id = "X-Request-Id" not in self.address.headers_for(None)
        self._fixed_lines = self._lines()
        self._base_path = url.raw_path.rstrip("/")
        self._tls = tls.context(self.address.verify_tls) if url.scheme == "https" else None

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
        if self.closed:
            raise self._closed_error()
        head = self._head(method, path, request_id, body, content_type)
        if trace:
            head += "".join(f"{name}: {value}\r\n" for name, value in trace.items()).encode()
        head += self._lines(headers) if headers else self._fixed_lines
        pooled = self._most_recent()
        if pooled is not None:
            try:
                return await self._send(pooled, head, body, until)
            except Disconnected:
                if pooled.has_answer:
                    raise
        return await self._send(await self._connect(connect, until), head, body, until)

    def keep(self, connection: Connection) -> None:
        if self.closed:
            connection.abort()
            return
        loop = connection.loop
        self._free[connection] = loop.time()
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(KEEP_ALIVE_TIMEOUT, self._sweep, loop)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._free.pop(connection, None)

    async def close(self) -> None:
        self.closed = True
        for timer in (self._sweep_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        failures: list[Exception] = []
        for connection in list(self._open):
            try:
                connection.abort()
            except Exception as error:
                failures.append(error)
        await asyncio.sleep(0)  # so that their descriptors are closed when this returns
        if failures:
            raise ExceptionGroup("closing connections", failures)

    def _head(
        self, method: str, path: str, request_id: str | None, body: Body | None, content_type: str | None
    ) -> bytes:
        request_id_line = f"X-Request-Id: {request_id}\r\n" if request_id and self._sends_request_id else ""
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        kind = f"Content-Type: {content_type or self._json}\r\n"
        head = f"{method} {self._base_path}/{path} HTTP/1.1\r\n{request_id_line}{length}{kind}"
        return head.encode()

    def _lines(self, extra: Mapping[str, str] | None = None) -> bytes:
        """The header lines that do not depend on the body, with `extra` ones, and the blank line after them."""
        headers = self.address.headers_for(None, extra)
        headers.setdefault("Host", self._url.host_port_subcomponent or "")
        del headers["Content-Type"]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if lines.count("\r") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
            raise ValueError(f"{self.address.name}: a header holds a line break")
        return lines.encode() + b"\r\n"

    @staticmethod
    async def _send(connection: Connection, head: bytes, body: Body | None, until: float | None) -> Response:
        response = connection.send(head, body or b"")
        try:
            await response.head(until)
        except BaseException:
            response.close()
            raise
        return response

    def _most_recent(self) -> Connection | None:
        """The most recently used connection, which is the most likely to be alive; None if none is usable."""
        while self._free:
            connection, since = self._free.popitem()
            if connection.open and connection.loop.time() - since < KEEP_ALIVE_TIMEOUT:
                return connection
            connection.abort()
        return None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_timer = None
        now = loop.time()
        for connection, since in list(self._free.items()):
            if now - since < KEEP_ALIVE_TIMEOUT:
                self._sweep_timer = loop.call_later(since + KEEP_ALIVE_TIMEOUT - now, self._sweep, loop)
                break
            del self._free[connection]
            connection.abort()

    def watch(self, deadline: float) -> None:
        """Uses one timer for all connections; `asyncio.timeout` would cost 6 µs per request."""
        if self._deadline_timer is None or deadline < self._deadline:
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline = deadline
            self._deadline_timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        now = asyncio.get_running_loop().time()
        self._catches_up = not self._catches_up and now - self._deadline > LATE
        if self._catches_up:
            self.watch(now + CATCH_UP)
            return
        for connection in self._open:
            next_deadline = connection.expire(now)
            if next_deadline is not None:
                self.watch(next_deadline)

    async def _connect(self, seconds: float, until: float | None) -> Connection:
        name = self.address.name
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        try:
            async with asyncio.timeout_at(limit if until is None else min(limit, until)):
                connection = await self._connected(loop)
        except TimeoutError:
            self._resolved = None
            if until is not None and until < limit:
                raise
            raise ConnectTimeout(f"{name}: no connection in time") from None
        except (OSError, RuntimeError) as error:  # uvloop 0.23 sometimes raises RuntimeError from connecting
            self._resolved = None
            raise connect_error(error, name) from None
        if self.closed:
            connection.abort()
            raise self._closed_error()
        return connection

    def _closed_error(self) -> Disconnected:
        return Disconnected(f"{self.address.name}: the connection failed", detail="given back")

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> Connection:
        sock = await aiohappyeyeballs.start_connection(
            await self._addresses(loop),
            happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY,
            loop=loop,
            socket_factory=new_socket,
        )
        host = self._url.raw_host if self._tls is not None else None
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self.address.name, self, loop), sock=sock, ssl=self._tls, server_hostname=host
            )
        except BaseException:
            sock.close()
            raise
        self._open.add(connection)
        return connection

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> Sequence[AddrInfo]:
        """The host's addresses. Concurrent callers share one lookup. Raises OSError if it fails."""
        if self._resolved is not None and loop.time() - self._resolved[0] < DNS_TTL:
            return self._resolved[1]
        host, port = self._url.raw_host or "", self._url.port or 80
        if _is_numeric(host):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if self._lookup is None:
            self._lookup = loop.create_task(look_up(host, port))
            self._lookup.add_done_callback(self._lookup_done)
        return await asyncio.shield(self._lookup)

    def _lookup_done(self, task: asyncio.Task[Sequence[AddrInfo]]) -> None:
        self._lookup = None
        if not task.cancelled() and task.exception() is None:
            self._resolved = (task.get_loop().time(), task.result())


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
