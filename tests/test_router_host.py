"""A llama-server in router mode: what is not loaded is loaded by us, and is no outage; other servers are left alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.model_router import router
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"


@pytest.mark.parametrize("cold", ["next", "wait"])
async def test_what_is_not_loaded_is_loaded(cold: str, tmp_path: Path) -> None:
    """Once, however many ask; the next entry answers meanwhile, or the request waits."""
    async with router() as box, upstream(each(answers)) as cloud:
        providers = {"box": openai(box.server.url, local=True), "cloud": openai(cloud.url)}
        chain = [{"target": "box/m", "cold": cold}, "cloud/m"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            if cold == "next":
                answered = [headers[RESOLVED] for _, _, headers in [await p.chat(), await p.chat()]]
                assert answered == ["cloud/m", "cloud/m"]
                await until(lambda: box.loads == 1)
            else:
                asking = [asyncio.ensure_future(p.chat()) for _ in range(3)]
                await until(lambda: box.loads == 1)
            box.finish()
            if cold == "next":
                await until(lambda: p.app.gateway.generation.local.boxes.boxes["box"].residency.residents)
            else:
                assert {headers[RESOLVED] for _, _, headers in await asyncio.gather(*asking)} == {"box/m"}
            assert (await p.chat())[2][RESOLVED] == "box/m"
            assert box.loads == 1
            row = (await p.get("/v1/health"))[1]["providers"]["box"]
            assert (row["status"], row["targets"]["m"]["loaded"]) == ("healthy", True)


async def test_a_load_that_fails_rests(tmp_path: Path) -> None:
    """The next entry answers, and the server is not asked for it again at once."""
    async with router(fails=True) as box, upstream(each(answers)) as cloud:
        providers = {"box": openai(box.server.url, local=True), "cloud": openai(cloud.url)}
        async with proxy(settings(providers), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1)
            box.finish()
            assert (await asking)[2][RESOLVED] == "cloud/m"
            for _ in range(3):
                assert (await p.chat())[2][RESOLVED] == "cloud/m"
            assert box.loads == 1


async def test_a_load_that_another_client_began_is_waited_for(tmp_path: Path) -> None:
    """The server answers 400 then, that the model is running already (build 11434), which is no failure."""
    async with router() as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            box.state = "loading"
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: any(seen.path == "/models/load" for seen in box.server.seen))
            box.finish()
            assert (await asking)[2][RESOLVED] == "box/m"
            assert (box.loads, "model load failed" in p.log.getvalue()) == (0, False)


async def test_a_model_that_has_to_make_room_has_not_failed(tmp_path: Path) -> None:
    """It was loaded, and another one came: the request is sent, and the server loads it again."""
    async with router() as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1)
            seen = box.lists
            await until(lambda: box.lists > seen)
            box.state = "unloaded"
            assert (await asking)[2][RESOLVED] == "box/m"
            assert "model load failed" not in p.log.getvalue()


async def test_a_server_without_room_is_asked_until_it_has_some(tmp_path: Path) -> None:
    """Its other model is at work, or being loaded, which is no failure of this one's load."""
    async with router(busy=1) as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1 or asking.done())
            box.finish()
            assert (await asking)[2][RESOLVED] == "box/m"
            assert (box.busy, box.loads, "model load failed" in p.log.getvalue()) == (0, 1, False)


async def test_another_server_is_left_alone(tmp_path: Path) -> None:
    """No load, no line in the log, and no look any more after a few."""
    async with router(plain=True) as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}), tmp_path) as p:
            for _ in range(4):
                assert (await p.chat())[2][RESOLVED] == "box/m"
            looks = p.app.gateway.generation.local.boxes.boxes["box"]
            for _ in range(3):
                await looks.refresh()
            assert looks.residency.observe_in(looks.clock()) > 100
            assert (box.loads, "not told" in p.log.getvalue()) == (0, False)
            assert (await p.get("/v1/health"))[1]["providers"]["box"]["targets"]["m"]["loaded"] is None


async def test_a_model_has_other_names(tmp_path: Path) -> None:
    """Its list shows them as aliases: under each of them it is loaded where it is, and its load is seen to end."""
    async with router(aliases=("small", "first")) as box:
        async with proxy(settings({"box": openai(box.server.url, local=True)}, ["box/small"]), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: box.loads == 1)
            box.finish()
            assert (await asking)[2][RESOLVED] == "box/small"
            looks = p.app.gateway.generation.local.boxes.boxes["box"]
            await looks.refresh()
            for name in ("box/small", "box/first", "box/m"):
                assert (await p.chat(model=name))[2][RESOLVED] == name
            assert (await p.get("/v1/health"))[1]["providers"]["box"]["targets"]["small"]["loaded"] is True
            loads = [seen for seen in box.server.seen if seen.path == "/models/load"]
            assert (len(loads), "model load failed" in p.log.getvalue()) == (1, False)


@pytest.mark.parametrize("cold", ["next", "wait"])
async def test_a_model_that_sleeps_is_woken(cold: str, tmp_path: Path) -> None:
    """Its process runs, so that it cannot be loaded, but it has to read its weights again."""
    async with router(state="sleeping") as box, upstream(each(answers)) as cloud:
        providers = {"box": openai(box.server.url, local=True), "cloud": openai(cloud.url)}
        async with proxy(settings(providers, [{"target": "box/m", "cold": cold}, "cloud/m"]), tmp_path) as p:
            expected = "cloud/m" if cold == "next" else "box/m"
            assert (await p.chat())[2][RESOLVED] == expected
            await until(lambda: box.state == "loaded")
            await until(lambda: not p.app.gateway.generation.local.boxes.boxes["box"].residency.loads)
            assert (await p.chat())[2][RESOLVED] == "box/m"
            assert (box.woken, box.loads, "model load failed" in p.log.getvalue()) == (1, 0, False)
