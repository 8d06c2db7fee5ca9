"""Thousands of connections, in processes of their own: ``python -m tests.faults.farm upstream|clients ...``.

``upstream``: prints its port; each POST gets a head and one event, and is then held.
``clients URL N``: opens N streams, prints how many have their first event; at a line on its input prints how many
of them still stand, and leaves.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from urllib.parse import urlsplit

from tests.upstreams import chunk

WRITE_HIGH_WATER = 100
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = chunk("one")
LISTED = b'{"object":"list","data":[]}'
BODY = json.dumps({"model": "mana/test", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


def raise_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Held(asyncio.Protocol):
    """A provider's end: begins each stream, never ends one."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(LISTED), LISTED))
        elif data.startswith(b"POST"):
            self.transport.write(HEAD + b"%x\r\n%b\r\n" % (len(FIRST), FIRST))


class Waiting(asyncio.Protocol):
    """A client's end: ``first`` is done at the first event, ``gone`` once the proxy has closed it."""

    def __init__(self) -> None:
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
        )

    def data_received(self, data: bytes) -> None:
        if not self.first.done():
            self._seen += data
            if b'"one"' in self._seen:
                self.first.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if not self.first.done():
            self.first.set_exception(ConnectionError(f"lost: {self._seen[:200]!r}"))


async def upstream() -> None:
    server = await asyncio.get_running_loop().create_server(Held, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def clients(url: str, many: int) -> None:
    loop = asyncio.get_running_loop()
    where = urlsplit(url)
    opened: list[Waiting] = []
    for _ in range(0, many, WRITE_HIGH_WATER):
        batch = [
            loop.create_connection(Waiting, str(where.hostname), int(where.port or 80))
            for _ in range(min(WRITE_HIGH_WATER, many))
        ]
        made = [protocol for _, protocol in await asyncio.gather(*batch)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(protocol.first for protocol in made))
        opened += made
    print(len(opened), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(sum(not protocol.gone for protocol in opened), flush=True)


if __name__ == "__main__":
    raise_descriptors()
    asyncio.run(upstream() if sys.argv[1] == "upstream" else clients(sys.argv[2], int(sys.argv[3])))
