"""Resources that run out: descriptors, disks, readers that stall."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from pathlib import Path

import aiohttp
import pytest

from tests.command import DEVNULL
from tests.faults.after import ENDLESS, endless
from tests.faults.dialects import DIALECTS
from tests.faults.raw import client, post
from tests.faults.scene import LONG, scene, slow
from tests.ports import free_port
from tests.proxy import alive, logging_to, openai, process, resident, settings
from tests.upstreams import Connection, Seen, answers, chunk, each, upstream
from tests.waiting import until

pytestmark = pytest.mark.built_in

FEW = 96
"""Descriptors that a process may have."""
HELD = 4096
"""Bytes that a pipe holds which nobody reads: a dozen requests in the log."""
STALLED = 10
"""Clients that read nothing."""


async def test_descriptors_that_run_out_come_back(tmp_path: Path) -> None:
    """A crowd gets half of them, streams in flight go on, the log is no flood, and then it serves again."""
    async with upstream(each(slow)) as gpu:
        gpu.go.set()
        config = settings({"gpu": openai(gpu.url)}, listen={"port": free_port()})
        async with logging_to(tmp_path / "log", tmp_path, config, files=FEW) as (child, url):
            port = int(url.rpartition(":")[2])
            async with contextlib.AsyncExitStack() as crowd, client(port) as (reader, writer):
                writer.write(post("stream"))
                await reader.readuntil(b"one")
                first = gpu.connections[-1]
                for _ in range(2 * FEW):
                    await crowd.enter_async_context(client(port))
                await until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) >= FEW // 2)
                assert len(os.listdir(f"/proc/{child.pid}/fd")) < FEW
                for _ in range(5):
                    await first.chunk(chunk("two"))
                    await asyncio.wait_for(reader.readuntil(b"two"), 2)
                    await asyncio.sleep(0.1)
                await crowd.aclose()
                await until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) < FEW // 2)
                await alive(url)
                await first.chunk(chunk("three"))
                await asyncio.wait_for(reader.readuntil(b"three"), 2)
            await until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) < FEW // 2)
            log = (tmp_path / "log").read_text()
            assert log.count("\n") < 100, log[:3000]
            assert "Traceback" not in log


async def test_a_crowd_leaves_descriptors_for_a_provider(tmp_path: Path) -> None:
    """Who was in is served, with a new connection to the provider; who comes later, once others have left."""
    async with upstream(each(answers)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, listen={"port": free_port()}, health={"probe_interval": 0.3})
        async with logging_to(tmp_path / "log", tmp_path, config, files=FEW) as (child, url):
            port = int(url.rpartition(":")[2])
            async with contextlib.AsyncExitStack() as crowd, client(port) as (reader, writer):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"}")
                for connection in gpu.connections:
                    connection.writer.close()
                for _ in range(2 * FEW):
                    await crowd.enter_async_context(client(port))
                await until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) >= FEW // 2)
                writer.write(post("chat"))
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                assert head.startswith(b"HTTP/1.1 200 ")
            async with asyncio.timeout(10), aiohttp.ClientSession() as session:
                while True:
                    with contextlib.suppress(aiohttp.ClientError):  # libuv closes what it cannot take
                        async with session.post(f"{url}/v1/chat/completions", json={"messages": []}) as response:
                            if response.status == 200:
                                break
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("where", ["closed", "full", "all full", "nobody reads"])
async def test_a_log_that_nobody_takes_costs_no_request(tmp_path: Path, where: str) -> None:
    """A full disk, a closed descriptor, a pipe that nobody reads: it serves, as fast as ever."""
    async with upstream(each(answers)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, listen={"port": free_port()})
        async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as session:
            if where == "closed":
                child, url = await stack.enter_async_context(logging_to(tmp_path / "log", tmp_path, config, closed=[2]))
                assert os.readlink(f"/proc/{child.pid}/fd/2") == "/dev/null"
            else:
                reads, writes = os.pipe() if where == "nobody reads" else (-1, os.open("/dev/full", os.O_WRONLY))
                stdout = DEVNULL if where == "full" else writes
                _, url = await stack.enter_async_context(logging_to(writes, tmp_path, config, stdout=stdout))
                os.close(writes)
                if reads >= 0:
                    stack.callback(os.close, reads)
                    fcntl.fcntl(reads, fcntl.F_SETPIPE_SZ, HELD)
            for _ in range(30):
                async with asyncio.timeout(20):  # of each: how long all take depends on who else has the processors
                    async with session.post(f"{url}/v1/chat/completions", json={"messages": []}) as response:
                        assert response.status == 200
            if where == "nobody reads":
                assert HELD - 1000 < len(os.read(reads, 2**20)) <= HELD, "it was full"


async def test_stalled_readers_cost_a_mebibyte_each(tmp_path: Path) -> None:
    """Nobody reads of a flood; the provider is slowed, and is not taken for silent."""
    big = chunk("x" * 60_000)

    async def floods(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        while True:
            await connection.chunk(big)

    async with upstream(each(floods)) as gpu:
        provider = openai(gpu.url, timeouts={"connect": 9, "idle": 0.5})
        config = settings({"gpu": provider}, listen={"port": free_port()}, limits={"write_timeout": 1})
        async with logging_to(tmp_path / "log", tmp_path, config) as (child, url):
            port = int(url.rpartition(":")[2])
            before = resident(child.pid)
            async with contextlib.AsyncExitStack() as crowd:
                for _ in range(STALLED):
                    _, writer = await crowd.enter_async_context(client(port, small=True))
                    writer.write(post("stream"))
                await until(lambda: len(gpu.posts) == STALLED)
                most = 0.0
                async with asyncio.timeout(40):
                    while not all(connection.closed.is_set() for connection in gpu.connections if connection.answering):
                        most = max(most, resident(child.pid) - before)
                        await asyncio.sleep(0.02)
            assert most < 1.5 * STALLED, "MiB"
            log = (tmp_path / "log").read_text()
            assert log.count('"client_gone"') == STALLED
            assert "read_timeout" not in log


@pytest.mark.parametrize("what", ENDLESS)
async def test_memory_is_bounded_whatever_is_sent(tmp_path: Path, what: str) -> None:
    """60 KB of gzip that are 60 MB, or one event of 64 MB, grow the process by less than 32 MB."""
    async with upstream(each(endless(what))) as bad, upstream(each(answers)) as good:
        config = settings({"bad": openai(bad.url), "good": openai(good.url)})
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            body = {"messages": [], "stream": True}
            before = resident(running.pid, "VmHWM")
            async with client.post(f"{running.url}/v1/chat/completions", json=body) as response:
                assert (response.status, response.headers["X-Mana-LLM-Resolved"]) == (200, "good/m")
            assert resident(running.pid, "VmHWM") - before < 32


async def test_metrics_are_rendered_fast(tmp_path: Path) -> None:
    """Hundreds of names of a client's add no series, and a scrape takes no time."""
    async with scene(DIALECTS["openai"], each(answers), tmp_path) as at:
        await at.ask("chat")
        await _ask_model(at.p.client, at.p.url, "bad/flood")
        url = f"{at.p.url}/metrics"
        async with at.p.client.get(url) as response:
            before = (await response.text()).count("\n")
        for start in range(0, 300, 100):
            names = [f"bad/flood-{n}" for n in range(start, start + 100)]
            await asyncio.gather(*(_ask_model(at.p.client, at.p.url, name) for name in names))
        busy = time.thread_time()
        async with at.p.client.get(url) as response:
            after = (await response.text()).count("\n")
        assert time.thread_time() - busy < 0.5
        assert after == before


async def _ask_model(session: aiohttp.ClientSession, url: str, model: str) -> None:
    body = {"model": f"mana/{model}", "messages": []}
    async with session.post(f"{url}/v1/chat/completions", json=body, timeout=LONG) as response:
        assert response.status == 404
