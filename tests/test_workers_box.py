"""Several real processes before one GPU box: one line for all of them, and one load for each model."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.ollama_box import Box, box
from tests.proxy import HI, Process, openai, process, settings
from tests.supervised import health, pids
from tests.upstreams import Upstream, answers, each, upstream
from tests.waiting import until

PATIENT: dict[str, Any] = {"first_byte": 30, "idle": 30, "connect": 5}


@asynccontextmanager
async def house(folder: Path, entry: dict[str, Any], **own: Any) -> AsyncIterator[tuple[Process, Box, Upstream]]:
    """Two workers, a box, and a cloud after it. The model ``m`` is loaded."""
    async with box() as gpu, upstream(each(answers)) as cloud:
        gpu.put("m")
        config = settings(
            {"gpu": gpu.provider(**own), "cloud": openai(cloud.url)},
            [{"target": "gpu/m", **entry}, "cloud/m"],
            timeouts=PATIENT,
        )
        async with process(config, folder, None, "--workers", "2") as running:
            yield running, gpu, cloud


async def asked(url: str, stream: bool = True) -> tuple[int, str]:
    """Who answers, over a connection of its own, so that any worker may get it."""
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json={**HI, "stream": stream}) as response:
            await response.read()
            return response.status, response.headers.get("x-mana-llm-resolved", "")


async def row(url: str) -> Any:
    return (await health(url))["providers"]["gpu"]["targets"]["m"]


async def eventually(url: str, **fields: Any) -> None:
    """Returns once the health row of the model has these values."""
    async with asyncio.timeout(20):
        while not fields.items() <= (await row(url)).items():
            await asyncio.sleep(0.01)


async def test_all_workers_stand_in_one_line(tmp_path: Path) -> None:
    """The box never has more than it answers at a time, whichever worker they come through; it is counted as one line,
    whoever would wait too long goes on, and what a dead worker had there is gone."""
    async with house(tmp_path, {"max_wait": 30}, parallel=1) as (running, gpu, cloud):
        gpu.ends.clear()
        gpu.slots = 1
        asking = [asyncio.ensure_future(asked(running.url)) for _ in range(12)]
        await eventually(running.url, queue=11, slots=1)
        assert (gpu.at_once, gpu.most, len(gpu.chats)) == (1, 1, 1)
        gpu.ends.set()
        assert {await each for each in asking} == {(200, "gpu/m")}
        assert (gpu.most, gpu.waited, cloud.posts) == (1, 0, [])
        await eventually(running.url, queue=0, expected_wait=0)
        await what_a_dead_worker_had_is_gone(running, gpu)


async def what_a_dead_worker_had_is_gone(running: Process, gpu: Box) -> None:
    """Its turn, and its places in the line: the other worker's are served."""
    gpu.ends.clear()
    asking = [asyncio.ensure_future(asked(running.url)) for _ in range(12)]
    await eventually(running.url, queue=11)
    os.kill((await pids(running.url))["1"], signal.SIGKILL)
    await running.logs("worker ended", seconds=20)
    gpu.ends.set()
    answered = await asyncio.gather(*asking, return_exceptions=True)
    assert (200, "gpu/m") in answered
    assert {each for each in answered if isinstance(each, tuple)} == {(200, "gpu/m")}
    await eventually(running.url, queue=0, expected_wait=0)


async def test_who_would_wait_too_long_goes_on_in_all_workers(tmp_path: Path) -> None:
    """By what the line's answers took, whichever worker had them."""
    async with house(tmp_path, {"max_wait": 0.3}, parallel=1) as (running, gpu, cloud):
        gpu.ends.clear()
        first = asyncio.ensure_future(asked(running.url))
        await until(lambda: gpu.at_once == 1, 20)
        assert {await asked(running.url) for _ in range(6)} == {(200, "cloud/m")}
        assert (len(gpu.chats), len(cloud.posts)) == (1, 6)
        gpu.ends.set()
        assert await first == (200, "gpu/m")


async def test_all_workers_learn_together(tmp_path: Path) -> None:
    """How many slots there are: as one process would."""
    async with house(tmp_path, {"max_wait": 30}) as (running, gpu, cloud):
        gpu.slots = 3
        gpu.ends.clear()
        asking = [asyncio.ensure_future(asked(running.url)) for _ in range(8)]
        await eventually(running.url, slots=3, queue=4)
        await until(lambda: (gpu.at_once, gpu.waited) == (3, 1), 20)
        gpu.ends.set()
        assert {await each for each in asking} == {(200, "gpu/m")}
        assert (gpu.most, gpu.waited, cloud.posts) == (3, 1, [])


async def test_one_load_for_all_workers(tmp_path: Path) -> None:
    """However many of them want it, whoever leaves, and it is reported once."""
    async with house(tmp_path, {"load_timeout": 30}) as (running, gpu, cloud):
        gpu.loaded.clear()
        gpu.slow = {"m"}
        for number, pid in (await pids(running.url)).items():  # so that each looks again
            os.kill(pid, signal.SIGKILL)
            await running.logs(f'"started","worker":{number}', 2, 20)
        asking = [asyncio.ensure_future(asked(running.url, stream=False)) for _ in range(10)]
        async with asyncio.timeout(20):
            while (await health(running.url))["providers"]["gpu"]["in_flight"] < 10:
                await asyncio.sleep(0.01)
        await until(lambda: gpu.begun, 20)
        assert gpu.begun == ["m"]
        for each_one in asking[:6]:
            each_one.cancel()
        await running.logs('"client_gone"', 6, 20)
        gpu.finish("m")
        assert {await each for each in asking[6:]} == {(200, "gpu/m")}
        assert (gpu.begun, gpu.finished, gpu.aborted) == (["m"], ["m"], [])
        assert sum('"model load begun"' in line for line in running.output) == 1
        assert cloud.posts == []
