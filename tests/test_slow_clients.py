"""A place is not held by being slow: neither by a body that trickles in, nor by an answer that is read byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.config.model import Limits
from manallm_proxy.http_server import listening, web
from manallm_proxy.http_server.aiohttp_server import Runner, Server
from manallm_proxy.http_server.body_writer import write_json
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.http_server.stream_writer import Progress
from tests.proxy import BIG, HI, POST, Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, upstream
from tests.waiting import until

LOOPBACK: dict[str, Any] = settings({"here": {"kind": "loopback"}})
SECRET = "sk-of-a-slow-client"
KEY = {"name": "alice", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "concurrent_requests": 1}
BODY = json.dumps(HI).encode()


def head(length: int, extra: str = "") -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses"])
async def test_a_body_that_trickles_is_408(tmp_path: Path, path: str) -> None:
    """Never silent for long, but slower than the least rate: the refusal names the key, in the door's shape."""
    limits = {"body_timeout": 0.2, "body_rate": 1000}
    async with proxy({**LOOPBACK, "limits": limits}, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(head(100_000).replace(b"/v1/chat/completions", path.encode()))
        answer = asyncio.ensure_future(reader.readuntil(b"}"))
        async with asyncio.timeout(5):
            while not answer.done():
                writer.write(b" ")
                await asyncio.sleep(0.02)
        assert answer.result().startswith(b"HTTP/1.1 408")
        assert b"limits.body_rate" in answer.result()
        assert (b'"error":"' in answer.result()) is path.startswith("/api/")
        writer.close()


async def test_a_long_body_may_take_long(tmp_path: Path) -> None:
    """The deadline grows with what has come: longer than body_timeout in all, but fast enough."""
    body = json.dumps({**HI, "user": "x" * 20_000}).encode()
    async with proxy({**LOOPBACK, "limits": {"body_timeout": 0.2, "body_rate": 20_000}}, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(head(len(body), "Connection: close\r\n"))
        for at in range(0, len(body), 2000):
            writer.write(body[at : at + 2000])
            await asyncio.sleep(0.04)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


async def ask(p: Proxy, extra: str = "", body: bytes = BODY) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
    writer.write(head(len(body), f"Connection: close\r\n{extra}") + body)
    answer = await reader.read()
    writer.close()
    return answer[:12]


@pytest.mark.parametrize("bound", ["everybody", "key"])
async def test_a_body_on_its_way_holds_no_place(tmp_path: Path, bound: str) -> None:
    """Of one place: taken by nobody while bodies come, by the first whose body is in, and given back."""
    more: dict[str, Any] = {"limits": {"concurrent_requests": 1}} if bound == "everybody" else {"auth": {"keys": [KEY]}}
    extra = f"Authorization: Bearer {SECRET}\r\n" if bound == "key" else ""
    full = b"HTTP/1.1 503" if bound == "everybody" else b"HTTP/1.1 429"
    async with upstream(each(held)) as gpu, proxy(settings({"gpu": openai(gpu.url)}, **more), tmp_path) as p:
        slow = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(3)]
        for _, writer in slow:
            writer.write(head(len(BODY), f"Connection: close\r\n{extra}") + BODY[:5])
        await until(lambda: len(p.app.gateway.pipeline.exchanges) == 3)
        gpu.go.set()
        assert await ask(p, extra) == b"HTTP/1.1 200"
        gpu.go.clear()
        slow[0][1].write(BODY[5:])
        await until(lambda: len(gpu.posts) == 2)
        assert await ask(p, extra) == full  # without its body being read
        slow[1][1].write(BODY[5:])
        assert (await slow[1][0].read()).startswith(full)
        gpu.go.set()
        assert (await slow[0][0].read()).startswith(b"HTTP/1.1 200")
        slow[2][1].write(BODY[5:])
        assert (await slow[2][0].read()).startswith(b"HTTP/1.1 200")
        assert len(gpu.posts) == 3
        await until(lambda: not p.app.gateway.pipeline.exchanges)
        assert p.app.gateway.pipeline.placed == set()
        for _, writer in slow:
            writer.close()


async def held(connection: Connection, seen: Seen) -> None:
    await connection.upstream.go.wait()
    await answers(connection, seen)


@pytest.mark.parametrize("streams", [True, False])
async def test_who_reads_byte_by_byte_is_cut(tmp_path: Path, streams: bool) -> None:
    """Each byte is progress, and too little of it: provider and place are given back."""

    async def much(connection: Connection, seen: Seen) -> None:
        if not streams:
            return await connection.reply(completion("x" * BIG))
        await connection.head()
        while True:
            await connection.chunk(chunk("x" * 60_000))

    limits = {"write_timeout": 0.6, "write_rate": "64MiB"}
    async with upstream(each(much)) as gpu:
        config = settings({"gpu": openai(gpu.url, max_concurrent=1)}, limits=limits)
        async with proxy(config, tmp_path) as p:
            client = socket.create_connection(("127.0.0.1", p.port))
            body = json.dumps({**HI, "stream": streams}).encode()
            client.sendall(head(len(body)) + body)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_recv(client, 1)
            async with asyncio.timeout(10):
                while "client_gone" not in p.log.getvalue():
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        client.recv(200_000)  # enough for the kernel to tell of room now and then
                    await asyncio.sleep(0.05)
            client.close()
            await until(lambda: p.app.gateway.pipeline.placed == set())
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["in_flight"] == 0


@pytest.mark.parametrize("size", [200_000, 60_000])
@pytest.mark.parametrize("raw", [False, True])
async def test_who_reads_nothing_is_cut_whatever_the_answer(size: int, raw: bool) -> None:
    """An answer that waits for its client, and one that was written in full before the connection was closed."""

    async def much(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        if not raw:
            return web.Response(body=b"x" * size)
        response = RawResponse(request, {}, size)
        await write_json(request, response, b"x" * size, limits)
        return response

    limits = Limits(write_timeout=0.1)
    server = Server(
        much, header=1000, head_timeout=lambda: 5.0, limits=lambda: limits, refusal=lambda error: ("id-1", b"{}")
    )
    runner = Runner(server)
    await runner.on_address("127.0.0.1", 0, 1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(runner.addresses[0][:2])
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: server.requests_count)
        await until(lambda: not server.connections)
    await runner.cleanup()


def test_progress_has_a_rate() -> None:
    """What was read counts for so long as the least rate says; a pause is none for longer than the timeout."""

    class Transport:
        backlog = 10_000

        def get_write_buffer_size(self) -> int:
            return self.backlog

    transport: Any = Transport()
    progress = Progress(0.0, rate=100)
    assert progress.stalled_for(transport, 0.0) == 0.0
    for second in range(1, 50):
        transport.backlog -= 1
        late = progress.stalled_for(transport, float(second))
    assert late == pytest.approx(49 - 0.49)
    fast = Progress(0.0, rate=100)
    fast.stalled_for(transport, 0.0)
    for second in range(1, 50):
        transport.backlog -= 150
        assert fast.stalled_for(transport, float(second)) == 0.0
    assert fast.stalled_for(transport, 55.0) == 6.0


async def test_pipelined_requests_count_as_well(tmp_path: Path) -> None:
    """Many over one connection, one after the other: each takes its place and gives it back."""
    async with proxy({**LOOPBACK, "limits": {"concurrent_requests": 1}}, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(POST * 5)
        for _ in range(5):
            told = await reader.readuntil(b"\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(told.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
        writer.close()
        await until(lambda: not p.app.gateway.pipeline.exchanges)
        assert p.app.gateway.pipeline.placed == set()


async def test_descriptors_are_left_for_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers hold some, not all: who comes then is told so at once, and those who are in are served."""
    assert 0 < listening.most_connections() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for soft, most in ((1024, 512), (100_000, 95_000), (1, 1), (resource.RLIM_INFINITY, sys.maxsize)):
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
            assert listening.most_connections() == most
    monkeypatch.setattr(listening, "most_connections", lambda: 3)
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        idle = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 503") and b"RLIMIT_NOFILE" in told and b"overloaded" in told
        writer.close()
        idle[0][1].write(head(len(BODY)) + BODY)
        assert (await idle[0][0].readline()).startswith(b"HTTP/1.1 200")
        for _, each_writer in idle:
            each_writer.close()
        async with asyncio.timeout(20):
            while await ask(p) != b"HTTP/1.1 200":  # as soon as one of them is gone
                await asyncio.sleep(0)
