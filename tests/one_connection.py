"""Our HTTP server with a handler of the test's, and one raw connection to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.http_server.aiohttp_server import Handler, Runner, Server

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[Runner, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server of ours with one connection to it."""

    def refusal(error: ProxyError) -> tuple[str, bytes]:
        return "id-1", str(error).encode()

    runner = Runner(Server(handler, header=400, head_timeout=lambda: 5.0, limits=Limits, refusal=refusal))
    await runner.on_address("127.0.0.1", 0, 1)
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        yield runner, reader, writer
    finally:
        writer.close()
        await runner.cleanup()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0)
