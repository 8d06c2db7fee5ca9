"""Our own connections to one provider over HTTP/1.1: made when needed, kept while they may be used again."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import aiohappyeyeballs
from attrs import define, field
from yarl import URL

from manallm_proxy.contract.errors import ConnectTimeout, Disconnected
from manallm_proxy.http_client.api import KEEP_ALIVE, Address, new_socket
from manallm_proxy.http_client.connection import Connection, Response
from manallm_proxy.http_client.dns import AddrInfo, look_up
from manallm_proxy.http_client.errors import connect_error

NAMES_KEPT: Final = 60.0
"""Seconds that a looked-up address is used for new connections; a connection that fails drops it at once."""
NEXT_ADDRESS: Final = 0.25
"""Seconds until the host's next address is tried beside the first (RFC 8305)."""


@define(eq=False)
class Pool:
    """See `connections.Connections`."""

    address: Address
    closed: bool = False
    _url: URL = field(init=False, repr=False)
    _base: str = field(init=False, repr=False)
    """The base URL's path."""
    _fixed: bytes = field(init=False, repr=False)
    """The head's lines that every request has, and its end."""
    _json: str = field(init=False)
    """The ``Content-Type`` of a body that is JSON, as our headers have it."""
    _tells_id: bool = field(init=False)
    _tls: ssl.SSLContext | None = field(init=False, repr=False)
    _free: dict[Connection, float] = field(factory=dict, repr=False)
    """Since when (loop time) each has been idle, the longest first."""
    _open: set[Connection] = field(factory=set, repr=False)
    _names: tuple[float, Sequence[AddrInfo]] | None = field(default=None, repr=False)
    _looking: asyncio.Task[Sequence[AddrInfo]] | None = field(default=None, repr=False)
    _sweeping: asyncio.TimerHandle | None = field(default=None, repr=False)
    _watch: asyncio.TimerHandle | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        self._url = url = URL(self.address.base_url)
        headers = self.address.headers_for(None)
        headers.setdefault("Host", url.host_port_subcomponent or "")
        self._tells_id = "X-Request-Id" not in headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if lines.count("\r") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
            raise ValueError(f"{self.address.name}: a header holds a line break")
        self._json = headers.pop("Content-Type")
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode() + b"\r\n"
        self._base = url.raw_path.rstrip("/")
        self._tls = _tls(self.address.verify_tls) if url.scheme == "https" else None

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
        if self.closed:
            raise self._given_back()
        head = self._head(method, path, request_id, body, content_type)
        pooled = self._take()
        if pooled is not None:
            try:
                return await self._sent(pooled, head, body, until)
            except Disconnected:
                if pooled.heard:
                    raise
        return await self._sent(await self._connect(connect, until), head, body, until)

    def keep(self, connection: Connection) -> None:
        if self.closed:
            connection.abort()
            return
        loop = connection.loop
        self._free[connection] = loop.time()
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEEP_ALIVE, self._sweep, loop)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._free.pop(connection, None)

    async def close(self) -> None:
        self.closed = True
        for timer in (self._sweeping, self._watch):
            if timer is not None:
                timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # so that their descriptors are gone when this returns

    def _head(
        self, method: str, path: str, request_id: str | None, body: bytes | None, content_type: str | None
    ) -> bytes:
        told = f"X-Request-Id: {request_id}\r\n" if request_id and self._tells_id else ""
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        kind = f"Content-Type: {content_type or self._json}\r\n"
        return f"{method} {self._base}/{path} HTTP/1.1\r\n{told}{length}{kind}".encode() + self._fixed

    @staticmethod
    async def _sent(connection: Connection, head: bytes, body: bytes | None, until: float | None) -> Response:
        response = connection.send(head, body or b"")
        try:
            await response.head(until)
        except BaseException:
            response.close()
            raise
        return response

    def _take(self) -> Connection | None:
        """The one that was used last: the most likely to live."""
        while self._free:
            connection, since = self._free.popitem()
            if connection.open and connection.loop.time() - since < KEEP_ALIVE:
                return connection
            connection.abort()
        return None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = None
        now = loop.time()
        for connection, since in list(self._free.items()):
            if now - since < KEEP_ALIVE:
                self._sweeping = loop.call_later(since + KEEP_ALIVE - now, self._sweep, loop)
                break
            del self._free[connection]
            connection.abort()

    def watch(self, until: float) -> None:
        """One timer for all, and none set anew for each: `asyncio.timeout` would cost each request 6 µs."""
        if self._watch is None or until < self._watch.when():
            if self._watch is not None:
                self._watch.cancel()
            self._watch = asyncio.get_running_loop().call_at(until, self._look)

    def _look(self) -> None:
        self._watch = None
        now = asyncio.get_running_loop().time()
        for connection in self._open:
            again = connection.look(now)
            if again is not None:
                self.watch(again)

    async def _connect(self, seconds: float, until: float | None) -> Connection:
        name = self.address.name
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        try:
            async with asyncio.timeout_at(limit if until is None else min(limit, until)):
                connection = await self._connected(loop)
        except TimeoutError:
            self._names = None
            if until is not None and until < limit:
                raise
            raise ConnectTimeout(f"{name}: no connection in time") from None
        except (OSError, RuntimeError) as error:  # uvloop connects with RuntimeError now and then
            self._names = None
            raise connect_error(error, name) from None
        if self.closed:
            connection.abort()
            raise self._given_back()
        return connection

    def _given_back(self) -> Disconnected:
        return Disconnected(f"{self.address.name}: the connection failed", detail="given back")

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> Connection:
        sock = await aiohappyeyeballs.start_connection(
            await self._addresses(loop),
            happy_eyeballs_delay=NEXT_ADDRESS,
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
        """Those of the host. However many ask, one look-up is under way."""
        if self._names is not None and loop.time() - self._names[0] < NAMES_KEPT:
            return self._names[1]
        host, port = self._url.raw_host or "", self._url.port or 80
        if _is_numeric(host):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if self._looking is None:
            self._looking = loop.create_task(look_up(host, port))
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[Sequence[AddrInfo]]) -> None:
        self._looking = None
        if not task.cancelled() and task.exception() is None:
            self._names = (task.get_loop().time(), task.result())


@functools.cache
def _tls(verify: bool) -> ssl.SSLContext:
    """One for all providers: reading the certificates takes 20 ms."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
