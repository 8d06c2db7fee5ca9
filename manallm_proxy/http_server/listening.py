"""The listening sockets of one server. aiohttp has the same, but only together with its applications."""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.http_server import web

LAST_WORDS: Final = 1.0
"""Max seconds for requests to end, once the server closes."""
RESERVE: Final = 5000
"""File descriptors for all else, if there are twice as many: providers above all, one for each request."""


def most_connections() -> int:
    """How many clients may be connected, so that descriptors are left for what they ask for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - min(RESERVE, soft // 2), 1)


@define(eq=False)
class Runner:
    """Listens for `server`, and closes its connections in `cleanup`."""

    server: web.Server
    _listening: list[asyncio.Server] = field(factory=list, repr=False)

    async def on_address(self, host: str, port: int, backlog: int) -> None:
        """Listens on all addresses of `host`. Raises OSError."""
        loop = asyncio.get_running_loop()
        await self._begin(await loop.create_server(self.server, host, port, backlog=backlog, start_serving=False))

    async def on_path(self, path: str, backlog: int) -> None:
        """Listens on a unix socket, in place of one that is there. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listening.append(await loop.create_unix_server(self.server, path, backlog=backlog))

    async def on_socket(self, bound: socket.socket, backlog: int) -> None:
        """Listens on a bound socket. Raises OSError."""
        loop = asyncio.get_running_loop()
        await self._begin(await loop.create_server(self.server, sock=bound, backlog=backlog, start_serving=False))

    async def _begin(self, server: asyncio.Server) -> None:
        """Accepts clients, each with what its socket has from the listening one: to set it there costs nobody anything.

        With keep-alive of TCP the kernel finds out whether a client is still there; without Nagle's algorithm what is
        written second is not held back until the client has acknowledged the first.
        """
        self._listening.append(server)
        for each in server.sockets:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await server.start_serving()

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all sockets, as `socket.getsockname` returns them."""
        return [each.getsockname() for server in self._listening for each in server.sockets]

    def stop_listening(self) -> None:
        """Stops accepting connections. Open ones stay."""
        for server in self._listening:
            server.close()
        self._listening.clear()

    async def cleanup(self) -> None:
        """Stops accepting connections, and closes the open ones."""
        self.stop_listening()
        await asyncio.sleep(0)  # lets requests that have arrived begin, before idle connections are closed
        self.server.pre_shutdown()
        await self.server.shutdown(LAST_WORDS)
