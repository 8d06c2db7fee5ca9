"""Load, with its figures printed: ten thousand idle streams; overload sheds while they go on."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.load import Tally, load, pulse
from tests.ports import free_port
from tests.proxy import logging_to, openai, resident, settings
from tests.upstreams import answers, each, upstream

pytestmark = pytest.mark.built_in

ALLOWED = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200) // 2
"""Streams for which this machine lets a process have descriptors: two each."""
STREAMS = min(int(os.environ.get("STREAMS", "10000")), ALLOWED)
WANTED_MIB = 600


@asynccontextmanager
async def farm(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.farm", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def said(child: asyncio.subprocess.Process, seconds: float = 30) -> int:
    assert child.stdout is not None
    return int(await asyncio.wait_for(child.stdout.readline(), seconds))


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("many", [pytest.param(STREAMS, marks=pytest.mark.heavy), 200])
async def test_idle_streams(tmp_path: Path, many: int) -> None:
    """All open at once on one worker, in bounded memory, and others are served as fast as ever."""
    async with farm("upstream") as held, upstream(each(answers)) as quick:
        providers = {
            "held": openai(f"http://127.0.0.1:{await said(held)}", timeouts={"connect": 20, "idle": 900}),
            "quick": openai(quick.url),
        }
        limits = {"concurrent_requests": many + 50}
        config = settings(providers, ["held/m"], listen={"port": free_port()}, limits=limits)
        config["aliases"]["mana/quick"] = {"chain": ["quick/m"]}
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        async with logging_to(tmp_path / "log", tmp_path, config, files=files) as (child, url):
            before = resident(child.pid)
            started = time.perf_counter()
            async with farm("clients", url, str(many)) as clients:
                assert await said(clients, 300) == many
                opened = time.perf_counter() - started
                cpu, began, tally = seconds_of_cpu(child.pid), time.perf_counter(), Tally()
                async with pulse(url) as idle:
                    await asyncio.sleep(5 if many > 1000 else 1)
                cpu = (seconds_of_cpu(child.pid) - cpu) / (time.perf_counter() - began)
                most = resident(child.pid)
                async with pulse(url) as busy, load(url, 20, tally, model="mana/quick"):
                    await asyncio.sleep(1)
                assert clients.stdin is not None
                clients.stdin.write(b"\n")
                standing = await said(clients)
            async with asyncio.timeout(60):
                while len(os.listdir(f"/proc/{child.pid}/fd")) > 60:
                    await asyncio.sleep(0.1)
            print(
                f"\n{many} idle streams: opened in {opened:.1f} s; {most:.0f} MiB ({(most - before) * 1024 / many:.1f} "
                f"KiB each, {before:.0f} MiB without); {100 * cpu:.0f} % of a CPU with a /health at 50 Hz"
                f"\n  {idle}\n  while others come and go: {busy}"
            )
            assert standing == many
            assert most <= (WANTED_MIB if many > 1000 else 100)
            assert idle.percentile(0.99) < 1.0
