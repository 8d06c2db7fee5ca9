"""Bodies that are received past aiohttp's parser: the same bytes, the same refusals, the same next request."""

from __future__ import annotations

import asyncio
import gc
import io
import socket
import struct
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from attrs import evolve

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.gateway.body_reader import read_body
from manallm_proxy.http_server import long_body, web
from manallm_proxy.http_server.aiohttp_server import Runner, Server
from manallm_proxy.http_server.long_body import LongBody

LIMITS = Limits(body_timeout=20.0)


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + b"x" * (size % 251)


def refusal(error: ProxyError) -> tuple[str, bytes]:
    return "id-1", str(error).encode()


class Reads:
    """A handler that keeps what it reads."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.bodies: list[bytes] = []
        self.begun = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.begun += 1
        try:
            self.bodies.append(await read_body(request, self.limits))
        except ProxyError as error:
            return web.Response(status=error.status, text=error.message)
        return web.Response(text=f"{len(self.bodies[-1])}")


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]


async def serve(handler: Reads, talk: Talk) -> None:
    runner = Runner(Server(handler, header=8000, head_timeout=lambda: 5.0, limits=Limits, refusal=refusal))
    await runner.on_address("127.0.0.1", 0, 1)
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    try:
        async with asyncio.timeout(20):
            await talk(reader, writer)
    finally:
        writer.close()
        await runner.cleanup()


async def answers(reader: asyncio.StreamReader, number: int) -> list[bytes]:
    found = []
    for _ in range(number):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(head.split(b" ")[1] + b" " + await reader.readexactly(size))
    return found


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_long_bodies_one_after_the_other(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Cut wherever the network cuts them, short and long ones mixed, each followed at once by the next request."""
    bodies = [pattern(size) for size in (100_000, 5, 65_537, 1_000_003, 70_000, 0, 300_000)]
    reads, received = Reads(), 0

    class Counted(LongBody):
        def __init__(self, *args: Any) -> None:
            nonlocal received
            received += 1
            super().__init__(*args)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in bodies:
            begun, sent = reads.begun, post(body)
            writer.write(sent[:60_000])
            while reads.begun == begun:
                await asyncio.sleep(0)
            writer.write(sent[60_000:])
            assert await answers(reader, 1) == [b"200 %d" % len(body)]
        writer.write(b"".join(map(post, bodies)))
        assert await answers(reader, len(bodies)) == [b"200 %d" % len(body) for body in bodies]
        assert reads.bodies == bodies * 2

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=loop) as runner:
        patch.setattr("manallm_proxy.gateway.body_reader.LongBody", Counted)
        runner.run(serve(reads, talk))
    assert received >= 5  # all long ones, where they do not come with their head


async def test_a_long_body_that_stalls_is_refused_and_the_next_request_is_read_right() -> None:
    """What is left of it is no request: the connection goes on with the one behind it."""
    body = pattern(200_000)
    reads = Reads(evolve(LIMITS, body_timeout=0.05))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = post(body)
        writer.write(sent[:150_000])
        [told] = await answers(reader, 1)
        assert told.startswith(b"408 the body stalled for 0.05 s")
        reads.limits = LIMITS
        writer.write(sent[150_000:] + post(b"hi") + post(body))
        assert await answers(reader, 2) == [b"200 2", b"200 200000"]
        assert reads.bodies == [b"hi", body]

    await serve(reads, talk)


async def test_a_long_body_that_comes_slowly_is_refused() -> None:
    """In words that name the bound, however steadily it comes."""
    reads = Reads(evolve(LIMITS, body_timeout=0.1, body_rate=10**9))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = asyncio.ensure_future(answers(reader, 1))
        writer.write(post(pattern(200_000))[:100_000])
        while not told.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        assert told.result()[0].startswith(b"408 the body comes slower than 1000000000 bytes a second")

    await serve(reads, talk)


async def test_what_came_of_a_body_whose_client_breaks_off_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: asyncio keeps the failed read, with the piece of memory that it was for, in its traceback."""
    ends: list[str] = []

    class Watched(io.BytesIO):
        def close(self) -> None:
            try:
                super().close()
            except BufferError as error:
                ends.append(str(error))  # Python 3.13 prints it
            else:
                ends.append("closed")

        def __del__(self) -> None:
            self.close()

    class Memory:
        BytesIO = Watched

    monkeypatch.setattr(long_body, "io", Memory)
    reads = Reads()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(pattern(200_000))[:100_000])
        while not reads.begun:
            await asyncio.sleep(0)
        reset = struct.pack("ii", 1, 0)  # linger for 0 s: the connection ends by RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        while not ends:
            await asyncio.sleep(0)

    gc.disable()
    try:
        await serve(reads, talk)
    finally:
        gc.enable()
        gc.collect()
    assert set(ends) == {"closed"}


async def test_who_leaves_in_a_long_body_ends_its_request() -> None:
    """At once, as with a short one."""
    reads = Reads()
    ended = asyncio.Event()

    class Leaves(Reads):
        async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await reads(request)
            except asyncio.CancelledError:
                ended.set()
                raise

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(pattern(300_000))[:100_000])
        while not reads.begun:
            await asyncio.sleep(0)
        writer.close()
        await ended.wait()

    await serve(Leaves(), talk)
    assert reads.bodies == []


class Wire(asyncio.Transport):
    """A transport in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.sent = b""
        self.turns = 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def receive(self, data: memoryview) -> None:
        while data:
            if isinstance(self.protocol, asyncio.BufferedProtocol):
                buffer = memoryview(self.protocol.get_buffer(-1))
                taken = min(len(buffer), len(data))
                buffer[:taken] = data[:taken]
                self.protocol.buffer_updated(taken)
            else:
                taken = min(64 * 1024, len(data))
                self.protocol.data_received(bytes(data[:taken]))
            data = data[taken:]

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.turns += 1

    def resume_reading(self) -> None: ...
    def close(self) -> None: ...


async def test_a_long_body_is_held_once() -> None:
    """While it comes and when it is in: its own size, and one read of the socket."""
    size = 4 * 2**20
    reads, wire = Reads(), Wire()
    sent = memoryview(post(pattern(size)))
    wire.protocol = connection = Server(reads, header=8000, head_timeout=lambda: 5.0, limits=Limits, refusal=refusal)()
    connection.connection_made(wire)
    tracemalloc.start()
    try:
        wire.receive(sent[:100_000])
        for _ in range(9):
            await asyncio.sleep(0)
        assert isinstance(wire.protocol, LongBody)
        for at in range(100_000, len(sent), 250_000):
            wire.receive(sent[at : at + 250_000])
        for _ in range(9):
            await asyncio.sleep(0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        connection.connection_lost(None)
    assert reads.bodies == [pattern(size)]
    assert size < most < size + 500_000
    assert wire.turns == 3  # after each megabyte others have theirs
    assert wire.sent.endswith(str(size).encode())
    assert long_body.LEAST < 100_000
