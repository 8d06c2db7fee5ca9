"""``python -m bench.floor NAME PORT UPSTREAM``: what a proxy in Python costs before it does anything of a proxy's work.

``protocols``: two asyncio protocols that pass bytes on, and look for the ends of messages by a parser in C. ``stack``:
our server and our pool of connections, with nothing between them. What ours costs beyond that are its features.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import cast

import httptools
import uvloop

from manallm_proxy.http_client.api import Address
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.http_server import web
from manallm_proxy.http_server.aiohttp_internals import take_body
from manallm_proxy.http_server.aiohttp_server import Server
from manallm_proxy.http_server.raw_response import RawResponse

HOST = "127.0.0.1"


class Passing(asyncio.Protocol):
    """Collects what comes until a message is complete."""

    def __init__(self, parser: type[httptools.HttpRequestParser | httptools.HttpResponseParser]) -> None:
        self.parser = parser(self)
        self.transport: asyncio.WriteTransport
        self.is_complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def on_message_complete(self) -> None:
        self.is_complete = True

    def feed(self, data: bytes) -> bool:
        """Whether a message ended."""
        self.parser.feed_data(data)
        complete, self.is_complete = self.is_complete, False
        return complete


class Upstream(Passing):
    """A connection to the upstream, which `free` holds while it does nothing."""

    def __init__(self, free: list[Upstream]) -> None:
        super().__init__(httptools.HttpResponseParser)
        self.free = free
        self.client: asyncio.WriteTransport | None = None

    def data_received(self, data: bytes) -> None:
        if self.client is not None:
            self.client.write(data)
        if self.feed(data):
            self.client = None
            self.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.free:
            self.free.remove(self)


class Client(Passing):
    def __init__(self, free: list[Upstream], port: int) -> None:
        super().__init__(httptools.HttpRequestParser)
        self.free, self.port = free, port
        self.parts: list[bytes] = []
        self.connecting: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        if not self.feed(data):
            return
        request, self.parts = b"".join(self.parts), []
        if self.free:
            self.ask(self.free.pop(), request)
        else:
            self.connecting = asyncio.ensure_future(self.connect(request))

    def ask(self, upstream: Upstream, request: bytes) -> None:
        upstream.client = self.transport
        upstream.transport.write(request)

    async def connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(lambda: Upstream(self.free), HOST, self.port)
        self.ask(upstream, request)


def protocols(upstream: int) -> Callable[[], asyncio.BaseProtocol]:
    free: list[Upstream] = []
    return lambda: Client(free, upstream)


class Limits:
    """Of clients that read slowly."""

    write_timeout = 30.0
    write_rate = 1


def stack(upstream: int) -> Callable[[], asyncio.BaseProtocol]:
    pool = Pool(Address("upstream", f"http://{HOST}:{upstream}/v1"))

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        content = request.content
        body = take_body(content) if content.is_eof() else await content.read()
        answer = await pool.request("POST", "chat/completions", request_id=None, body=body, connect=5.0)
        known = answer.headers.get("Content-Length")
        left = int(known) if known is not None else None
        response = RawResponse(request, {"Content-Type": answer.content_type}, left)

        def push(data: bytes) -> bool:
            response.put_part(data)
            return True

        while data := await answer.read(push if left is None else None):
            if left is None:
                response.put_part(data)
            else:
                left -= len(data)
                response.put(data, last=not left)
        if left is None:
            response.put_part(b"", last=True)
        answer.release()
        return response

    limits = Limits()
    return Server(handle, header=16_384, head_timeout=lambda: 30.0, limits=lambda: limits, refusal=lambda _: ("", b""))


async def main(name: str, port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server({"protocols": protocols, "stack": stack}[name](upstream), HOST, port)
    gc.freeze()  # as ours does once it has started
    gc.set_threshold(20_000)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
