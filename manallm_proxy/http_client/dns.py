"""Host names become addresses, each look-up in a thread of its own.

``loop.getaddrinfo`` shares a few threads among all: a handful of names whose server is silent would keep every
other provider from being found. These threads are daemons, so that no silence delays the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

AddrInfo = tuple[int, int, int, str, tuple[Any, ...]]


async def look_up(host: str, port: int, family: int = socket.AF_UNSPEC) -> Sequence[AddrInfo]:
    """What ``getaddrinfo`` finds. OSError where it finds nothing. A thread ends when the system gives up."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[AddrInfo]] = loop.create_future()

    def tell(addresses: Sequence[AddrInfo] | None, error: BaseException | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses or ())

    def ask() -> None:
        addresses, failed = None, None
        try:
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except Exception as error:  # UnicodeError too: a name that cannot be one
            failed = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "no host name")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, addresses, failed)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    return await found


class Resolver(AbstractResolver):
    """`look_up` as aiohttp asks for it."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, address in await look_up(host, port, family)
        ]

    async def close(self) -> None:
        """Nothing is held."""
