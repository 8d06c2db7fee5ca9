"""Looks up host names, each in a thread of its own.

``loop.getaddrinfo`` uses the default executor, which has ``min(32, cpus + 4)`` threads (CPython,
concurrent/futures/thread.py): a few names whose DNS server does not answer would block the lookups of all other
providers. The threads are daemons, so that a pending lookup does not delay process exit.
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
    """The result of ``getaddrinfo``. Raises OSError if it fails. Cancelling does not stop the thread."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Sequence[AddrInfo]] = loop.create_future()

    def set_result(addresses: Sequence[AddrInfo] | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(addresses or ())

    def run() -> None:
        addresses, failed = None, None
        try:
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except Exception as error:  # also UnicodeError: not a host name at all
            failed = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "no host name")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(set_result, addresses, failed)

    threading.Thread(target=run, name="look-up", daemon=True).start()
    return await result


class Resolver(AbstractResolver):
    """`look_up` as aiohttp's resolver."""

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
        """There is nothing to close."""
