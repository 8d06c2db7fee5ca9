"""The slots of a llama-server are kept to, also right after a load, and while it does not say how many it has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.model_router import Router, router
from tests.proxy import HI, Proxy, openai, process, proxy, settings
from tests.supervised import health
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"


def of(box: Router) -> dict[str, Any]:
    return settings({"box": openai(box.server.url, local=True)})


async def served(p: Proxy, box: Router, number: int) -> list[int]:
    """The statuses of so many chats at once, of which the server has at most as many as it has slots."""
    box.most = 0
    box.answers.clear()
    asking = [asyncio.ensure_future(p.chat()) for _ in range(number)]
    if not box.plain and box.state == "unloaded":
        await until(lambda: box.loads == 1)
        box.finish()
    line = p.app.gateway.generation.local.queues["box"].line.of("m")
    await until(lambda: box.at_once + len(line.waiting) == number)
    box.answers.set()
    return [status for status, _, _ in await asyncio.gather(*asking)]


async def test_right_after_a_load(tmp_path: Path) -> None:
    """Those who have waited for it do not all come at once."""
    async with router(slots=2) as box, proxy(of(box), tmp_path) as p:
        assert await served(p, box, 6) == [200] * 6
        assert box.most == 2


async def test_while_it_is_asked_in_vain(tmp_path: Path) -> None:
    """It is loading or too busy to say: what it said before holds, or it is asked again soon."""
    async with router(state="loaded", slots=2, props_fail=1) as box, proxy(of(box), tmp_path) as p:
        looks = p.app.gateway.generation.local.boxes.boxes["box"]
        await looks.refresh()
        assert await served(p, box, 5) == [200] * 5
        assert box.most == 2


async def test_one_with_a_single_model(tmp_path: Path) -> None:
    """It is hardly asked any more once it has said that it lists no states; but soon again while it says "not now"."""
    async with router(plain=True, slots=2) as box, proxy(of(box), tmp_path) as p:
        looks = p.app.gateway.generation.local.boxes.boxes["box"]
        for _ in range(3):
            await looks.refresh()
        assert looks.residency.observe_in(looks.clock()) > 100
        box.props_fail = 1
        await looks.refresh()
        assert await served(p, box, 5) == [200] * 5
        assert box.most == 2
        assert looks.residency.observe_in(looks.clock()) < 5
        box.slots = 3
        await looks.refresh()
        assert await served(p, box, 5) == [200] * 5
        assert box.most == 3
        assert looks.residency.observe_in(looks.clock()) > 100


async def test_all_workers_know_them(tmp_path: Path) -> None:
    """Also those that have not asked, since one asks for all."""
    async with router(slots=2) as box, process(of(box), tmp_path, None, "--workers", "2") as running:
        for round_ in range(3):
            box.answers.clear()
            asking = [asyncio.ensure_future(asked(running.url)) for _ in range(10)]
            await until(lambda: box.loads == 1)
            box.finish()
            async with asyncio.timeout(20):
                while True:
                    row = (await health(running.url))["providers"]["box"]["targets"]["m"]
                    if row["queue"] + box.at_once == 10:
                        break
                    await asyncio.sleep(0.02)
            box.answers.set()
            assert {await each for each in asking} == {(200, "box/m")}
            assert box.most == 2, round_


async def asked(url: str) -> tuple[int, str]:
    """Who answers, over a connection of its own, so that any worker may get it."""
    async with aiohttp.ClientSession() as client, client.post(f"{url}/v1/chat/completions", json=HI) as response:
        await response.read()
        return response.status, response.headers.get(RESOLVED, "")


@pytest.mark.parametrize("slots", [3, 0])
async def test_more_slots_serve_who_waits(slots: int, tmp_path: Path) -> None:
    """At once, as the server says so (0: it says nothing any more, so that there is no limit)."""
    async with router(plain=True, slots=1) as box, proxy(of(box), tmp_path) as p:
        box.answers.clear()
        asking = [asyncio.ensure_future(p.chat()) for _ in range(4)]
        line = p.app.gateway.generation.local.queues["box"].line.of("m")
        await until(lambda: box.at_once + len(line.waiting) == 4)
        box.slots = slots
        await p.app.generation.local.boxes.refresh(1.0)
        assert (await p.get("/v1/health"))[0] == 200
        await until(lambda: box.at_once == (slots or 4))
        box.answers.set()
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 4


@pytest.mark.parametrize("parallel", [3, None])
async def test_a_reload_with_more_slots_serves_who_waits(parallel: int | None, tmp_path: Path) -> None:
    """As does one without a limit: who comes next, and who looks, finds no line that has none."""
    async with router(plain=True) as box:
        config = of(box)
        config["providers"]["box"]["parallel"] = 1
        async with proxy(config, tmp_path) as p:
            box.answers.clear()
            asking = [asyncio.ensure_future(p.chat()) for _ in range(4)]
            line = p.app.gateway.generation.local.queues["box"].line.of("m")
            await until(lambda: box.at_once + len(line.waiting) == 4)
            config["providers"]["box"]["parallel"] = parallel
            p.write(config)
            await p.app.reload()
            assert (await p.get("/v1/health"))[0] == 200
            asking.append(asyncio.ensure_future(p.chat()))
            await until(lambda: box.at_once == (parallel or 5))
            box.answers.set()
            assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 5


async def test_one_with_a_single_model_is_back_soon(tmp_path: Path) -> None:
    """It is hardly asked any more, until a request finds it away."""
    async with router(plain=True, slots=2) as box, proxy(of(box), tmp_path) as p:
        looks = p.app.gateway.generation.local.boxes.boxes["box"]
        for _ in range(3):
            await looks.refresh()
        await box.server.stop()
        for _ in range(2):
            assert (await p.chat())[0] == 503
        await until(lambda: looks.residency.observe_in(looks.clock()) < 5)
        await box.server.start()
        await looks.refresh()
        assert (await p.chat())[0] == 200
