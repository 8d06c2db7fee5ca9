"""A busy or cold box whose entry is the last that can be asked: its requests wait, as those of a last entry do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.provider_errors import ProbeTimeout
from manallm_proxy.routing import queues
from manallm_proxy.routing.circuit import Circuit
from manallm_proxy.routing.ledger import Spend
from tests.ollama_box import Box, box
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, Upstream, answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"
UNAVAILABLE = ("unconfigured", "unhealthy", "cooling", "budget", "loopback")
"""Why the cloud behind the box cannot be asked."""


@asynccontextmanager
async def house(
    why: str, tmp_path: Path, entry: dict[str, Any], slots: int | None = 1, first_byte: float = 5
) -> AsyncIterator[tuple[Proxy, Box, Upstream]]:
    """A box that answers one at a time, and behind it a cloud that cannot be asked now."""

    async def limited(connection: Connection, seen: Seen) -> None:
        if why == "cooling":
            await connection.reply(b"{}", "429 Too Many Requests", extra="Retry-After: 100\r\n")
        else:
            await answers(connection, seen)

    async with box() as gpu, upstream(each(limited)) as cloud:
        if "cold" not in entry:
            gpu.put("m")
        more: dict[str, Any] = {"api_key": "${NOT_SET}"} if why == "unconfigured" else {}
        providers = {"gpu": gpu.provider(parallel=slots), "cloud": openai(cloud.url, **more)}
        if why == "loopback":
            providers["cloud"] = {"kind": "loopback"}
        behind = {"target": "cloud/m", "price": {"input": 1, "output": 1}}
        times = {"first_byte": first_byte}
        config = settings(providers, [{"target": "gpu/m", **entry}, behind], timeouts=times)
        if why == "budget":
            config["aliases"]["mana/test"] |= {"budget": {"day": "1 USD"}, "on_budget": "local"}
        if why == "unhealthy":
            await cloud.stop()  # the first probe finds nobody
            config["health"] = {**config["health"], "failure_threshold": 1}
        async with proxy(config, tmp_path) as p:
            await until(lambda: gpu.ps_asked)
            if why == "cooling":
                assert (await p.chat(model="cloud/m"))[0] == 429
            p.app.gateway.generation.ledger.charge("alias mana/test", Spend(1.0, 10))
            yield p, gpu, cloud


def queue_of(p: Proxy) -> int:
    return len(p.app.gateway.generation.local.queues["gpu"].line.of("m").waiting)


@pytest.mark.parametrize("why", UNAVAILABLE)
@pytest.mark.parametrize("known", [False, True])
async def test_a_busy_box_is_waited_for(why: str, known: bool, tmp_path: Path) -> None:
    """However long it takes (`known`: and is known to take), where the next entries would refuse the request."""
    async with house(why, tmp_path, {"max_wait": 0.05}) as (p, gpu, cloud):
        gpu.answers.clear()
        if known:
            p.app.gateway.generation.local.queues["gpu"].line.of("m").pace.answer = 60.0
        asked = len(cloud.posts)
        asking = [asyncio.ensure_future(p.chat()) for _ in range(3)]
        await until(lambda: queue_of(p) == 2)
        row = (await p.get("/v1/explain"))[1]["chain"][0]
        assert (row["usable"], row["reason"]) == (True, None)
        await asyncio.sleep(0.15)  # more than max_wait
        assert queue_of(p) == 2
        gpu.answers.set()
        results = await asyncio.gather(*asking)
        assert [(status, headers.get(RESOLVED)) for status, _, headers in results] == [(200, "gpu/m")] * 3
        assert (gpu.most, len(cloud.posts)) == (1, asked)


@pytest.mark.parametrize("why", UNAVAILABLE)
async def test_a_cold_one_is_waited_for(why: str, tmp_path: Path) -> None:
    """Though it says that the next entry should answer meanwhile: there is nobody to do so."""
    async with house(why, tmp_path, {"cold": "next"}) as (p, gpu, _):
        gpu.slow = {"m"}
        asking = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.begun == ["m"])
        assert (await p.get("/v1/explain"))[1]["serves"] == "gpu/m"
        gpu.finish("m")
        status, _, headers = await asking
        assert (status, headers.get(RESOLVED)) == (200, "gpu/m")


async def test_the_next_one_fails_and_comes_back_while_a_request_waits(tmp_path: Path) -> None:
    """Who waits moves on as soon as somebody else may be asked, and not before that."""
    async with house("", tmp_path, {"max_wait": 0.2}) as (p, gpu, cloud):
        gpu.answers.clear()
        health = p.app.gateway.generation.registry.providers["cloud"]
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        second = asyncio.ensure_future(p.chat())
        await until(lambda: queue_of(p) == 1)
        health.provider.open_until = asyncio.get_running_loop().time() + 600
        await asyncio.sleep(0.4)
        assert (queue_of(p), second.done()) == (1, False)
        health.provider.open_until = None
        status, _, headers = await second
        assert (status, headers[RESOLVED], len(cloud.posts)) == (200, "cloud/m", 1)
        gpu.answers.set()
        assert (await first)[2][RESOLVED] == "gpu/m"


async def test_one_that_cannot_see_does_not_count(tmp_path: Path) -> None:
    """A request with a picture would get 400 there, only since the box was busy for a moment."""
    async with house("", tmp_path, {"max_wait": 0.05}) as (p, gpu, cloud):
        p.app.gateway.generation.catalog.learn(
            "cloud", [ModelInfo("m", capabilities=frozenset({"completion", "tools"}))]
        )
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}]}
        gpu.answers.clear()
        asking = [asyncio.ensure_future(p.chat(**body)) for _ in range(2)]
        await until(lambda: queue_of(p) == 1)
        await asyncio.sleep(0.1)
        gpu.answers.set()
        assert [(status, headers.get(RESOLVED)) for status, _, headers in await asyncio.gather(*asking)] == [
            (200, "gpu/m")
        ] * 2
        assert cloud.posts == []


@pytest.mark.parametrize("why", ["unconfigured", "", "alone"])
async def test_one_that_was_sent_to_learn_the_slots_comes_back(why: str, tmp_path: Path) -> None:
    """The box has one, and its answer takes longer than another one may wait for its first byte. That was 503, and
    counted against the model. It is still the next one."""
    async with house(why, tmp_path, {"max_wait": 0.1}, slots=None, first_byte=1.5) as (p, gpu, cloud):
        gpu.slots = 1
        gpu.ends.clear()
        line, named = p.app.gateway.generation.local.queues["gpu"].line.of("m"), {"model": "mana/test"}
        if why == "alone":
            named = {"model": "gpu/m"}
        first = asyncio.ensure_future(p.stream(**named))
        await until(lambda: line.slots.trial_timeout())
        second = asyncio.ensure_future(p.stream(**named, seed=2))
        await until(lambda: len(gpu.chats) == 2)
        if why == "":  # it was not the last one when that was sent
            health = p.app.gateway.generation.registry.providers["cloud"]
            health.provider.open_until = asyncio.get_running_loop().time() + 600
        third = asyncio.ensure_future(p.stream(**named, seed=3))
        await until(lambda: queue_of(p) == 2)
        gpu.ends.set()
        results = await asyncio.gather(first, second, third)
        assert [(status, headers.get(RESOLVED)) for status, _, headers in results] == [(200, "gpu/m")] * 3
        seeds = [seen.json.get("options", {}).get("seed") for seen in gpu.chats]
        assert (seeds, cloud.posts, queue_of(p)) == ([None, 2, 2, 3], [], 0)
        target = (await p.get("/v1/health"))[1]["providers"]["gpu"]["targets"]["m"]
        assert (target["last_error"], target["slots"]) == (None, 1)


@pytest.mark.parametrize("why", ["unconfigured", ""])
@pytest.mark.parametrize("of", ["server", "model"])
async def test_a_box_that_is_known_to_be_away_is_not_waited_for(
    why: str, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that waited was sent when its turn came, and found out for itself: of a box that was switched off, the
    twelfth after 36 s. Where somebody else can be asked, that does not take ``max_wait`` either. One that has failed at
    once, as where a runner crashed, may serve the next one."""
    monkeypatch.setattr(queues, "LOOK_AGAIN", 0.05)
    async with house(why, tmp_path, {"max_wait": 0.05 if why else 600}) as (p, gpu, cloud):
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.at_once == 1)
        more = [asyncio.ensure_future(p.chat()) for _ in range(3)]
        await until(lambda: queue_of(p) == 3)
        health, now = p.app.gateway.generation.registry.providers["gpu"], asyncio.get_running_loop().time()
        circuit = health.provider if of == "server" else health.targets.setdefault("m", Circuit())
        circuit.last_error, circuit.open_until = "http_5xx", now + 600
        await asyncio.sleep(0.2)  # they have looked again
        assert queue_of(p) == 3
        circuit.last_error = "connect_timeout" if of == "server" else "first_byte_timeout"
        for status, body, headers in await asyncio.gather(*more):
            if why:
                assert (status, [each["reason"] for each in body["error"]["attempts"]]) == (503, ["unhealthy", why])
            else:
                assert (status, headers[RESOLVED], headers["x-mana-llm-attempts"]) == (200, "cloud/m", "1")
        assert (queue_of(p), len(gpu.chats), len(cloud.posts)) == (0, 1, 0 if why else 3)
        gpu.answers.set()
        assert (await first)[2][RESOLVED] == "gpu/m"


@pytest.mark.parametrize("why", ["unconfigured", ""])
async def test_nor_for_a_load(why: str, tmp_path: Path) -> None:
    """That was `load_timeout` (5 min) at a box that was switched off, though the next entry could be asked."""
    async with house(why, tmp_path, {"cold": "wait"}) as (p, gpu, cloud):
        gpu.slow = {"m"}
        asking = [asyncio.ensure_future(p.chat()) for _ in range(2)]
        await until(lambda: gpu.begun == ["m"])
        circuit = p.app.gateway.generation.registry.providers["gpu"].provider
        circuit.last_error, circuit.open_until = "connect_timeout", asyncio.get_running_loop().time() + 600
        results = await asyncio.gather(*asking)
        assert [(status, headers.get(RESOLVED)) for status, _, headers in results] == [
            (503, None) if why else (200, "cloud/m")
        ] * 2
        assert (gpu.aborted, len(cloud.posts)) == ([], 0 if why else 2)
        gpu.finish("m")


async def test_one_that_is_only_slow_to_list_its_models_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps since it is busy with those before them; who comes later is not sent there."""
    monkeypatch.setattr(queues, "LOOK_AGAIN", 0.05)
    async with house("unconfigured", tmp_path, {"max_wait": 0.05}) as (p, gpu, _):
        gpu.answers.clear()
        asking = [asyncio.ensure_future(p.chat()) for _ in range(2)]
        await until(lambda: queue_of(p) == 1)
        health = p.app.gateway.generation.registry.providers["gpu"]
        for _ in range(2):
            health.probed(ProbeTimeout("slow"), asyncio.get_running_loop().time())
        assert (await p.chat())[1]["error"]["attempts"][0]["reason"] == "unhealthy"
        await asyncio.sleep(0.2)  # it has looked again
        assert queue_of(p) == 1
        gpu.answers.set()
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [200, 200]


async def failing(connection: Connection, seen: Seen) -> None:
    await connection.reply(b"{}", "500 Internal Server Error")


async def held_back(connection: Connection, seen: Seen) -> None:
    """It fails, too, once the test lets it."""
    await connection.upstream.go.wait()
    await failing(connection, seen)


@asynccontextmanager
async def before_a_broken_cloud(
    tmp_path: Path, entry: dict[str, Any], *behind: str, **more: Any
) -> AsyncIterator[tuple[Proxy, Box, Upstream]]:
    """A box that answers one at a time, behind it a cloud that is there and fails, and `behind` that others."""
    async with box() as gpu, upstream(each(failing)) as cloud:
        if "cold" not in entry:
            gpu.put("m")
        providers = {
            "gpu": gpu.provider(parallel=1),
            "cloud": openai(cloud.url),
            "echo": {"kind": "loopback"},
            "keyless": openai(cloud.url, api_key="${NOT_SET}"),
        }
        chain = [{"target": "gpu/m", **entry}, "cloud/m", *behind]
        async with proxy(settings(providers, chain, **more), tmp_path) as p:
            await until(lambda: gpu.ps_asked)
            yield p, gpu, cloud


@pytest.mark.parametrize("behind", [(), ("echo/m",), ("keyless/m",)], ids=["end", "loopback", "no key"])
@pytest.mark.parametrize("max_wait", [0, 0.05])
async def test_a_busy_box_is_returned_to_when_the_others_fail(
    behind: tuple[str, ...], max_wait: float, tmp_path: Path
) -> None:
    """They waited a moment, or not at all, and got 503 or loopback's echo, though the box would have served them."""
    async with before_a_broken_cloud(tmp_path, {"max_wait": max_wait}, *behind) as (p, gpu, cloud):
        gpu.answers.clear()
        p.app.gateway.generation.local.queues["gpu"].line.of("m").pace.answer = 60.0 if max_wait == 0 else 0.01
        asking = [asyncio.ensure_future(p.chat()) for _ in range(3)]
        await until(lambda: len(cloud.posts) == 2 and queue_of(p) == 2)
        gpu.answers.set()
        results = await asyncio.gather(*asking)
        assert [(status, headers.get(RESOLVED)) for status, _, headers in results] == [(200, "gpu/m")] * 3
        attempts = [int(headers["x-mana-llm-attempts"]) for _, _, headers in results]
        assert attempts == ([1, 2, 2] if max_wait == 0 else [1, 3, 3])
        assert (gpu.most, len(cloud.posts)) == (1, 2)


async def test_a_cold_box_is_returned_to(tmp_path: Path) -> None:
    """``cold: next`` lets another one answer meanwhile, if it can."""
    async with before_a_broken_cloud(tmp_path, {"cold": "next"}) as (p, gpu, cloud):
        gpu.slow = {"m"}
        asking = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.begun == ["m"] and cloud.posts)
        gpu.finish("m")
        status, _, headers = await asking
        assert (status, headers.get(RESOLVED)) == (200, "gpu/m")


async def test_a_box_that_was_the_second_of_a_hedge_is_returned_to(tmp_path: Path) -> None:
    """It was asked beside another one, and had no room in time: that is no reason never to come back to it."""
    tier = {"any": ["slow/m", {"target": "gpu/m", "max_wait": 0.05}], "strategy": "weighted", "hedge": 0.01}
    async with before_a_broken_cloud(tmp_path, {}) as (p, gpu, cloud), upstream(each(held_back)) as slow:
        config = yaml.safe_load(p.path.read_text())
        config["providers"]["slow"] = openai(slow.url)
        config["aliases"]["mana/hedged"] = {"chain": [tier, "cloud/m"]}
        p.write(config)
        await p.app.reload()
        gpu.answers.clear()
        first = asyncio.ensure_future(p.chat(model="gpu/m"))
        await until(lambda: gpu.at_once == 1)
        p.app.gateway.generation.local.queues["gpu"].line.of("m").pace.answer = 0.01
        second = asyncio.ensure_future(p.chat(model="mana/hedged"))
        await until(lambda: queue_of(p) == 1)
        await until(lambda: queue_of(p) == 0)  # it has waited for long enough
        slow.go.set()
        await until(lambda: cloud.posts)
        gpu.answers.set()
        status, answer, headers = await second
        assert (status, headers.get(RESOLVED)) == (200, "gpu/m"), answer
        assert (await first)[0] == 200


async def one_that_is_served(p: Proxy, gpu: Box) -> asyncio.Future[tuple[int, Any, Any]]:
    """A request that the box answers only when it may, and that all others would wait for too long."""
    gpu.answers.clear()
    p.app.gateway.generation.local.queues["gpu"].line.of("m").pace.answer = 60.0
    asking = asyncio.ensure_future(p.chat())
    await until(lambda: gpu.at_once == 1)
    return asking


async def test_what_each_of_them_said_is_told_in_order(tmp_path: Path) -> None:
    """Where the box fails, too, once it is returned to."""
    async with before_a_broken_cloud(tmp_path, {"max_wait": 0}) as (p, gpu, _):
        first = await one_that_is_served(p, gpu)
        second = asyncio.ensure_future(p.chat())
        await until(lambda: queue_of(p) == 1)
        gpu.loaded.clear()
        gpu.failing = {"m"}
        gpu.answers.set()
        await first
        status, answer, headers = await second
        told = [(line["model"], line["reason"]) for line in answer["error"]["attempts"]]
        assert (status, headers["x-mana-llm-attempts"]) == (503, "2")
        assert told == [("gpu/m", "saturated"), ("cloud/m", "http_5xx"), ("gpu/m", "http_5xx")]


async def test_who_leaves_while_it_waits_there_is_forgotten(tmp_path: Path) -> None:
    async with before_a_broken_cloud(tmp_path, {"max_wait": 0}) as (p, gpu, cloud):
        first = await one_that_is_served(p, gpu)
        second = asyncio.ensure_future(p.chat())
        await until(lambda: queue_of(p) == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await until(lambda: queue_of(p) == 0)
        gpu.answers.set()
        assert (await first)[0] == 200
        assert (len(gpu.chats), len(cloud.posts)) == (1, 1)


async def test_the_chains_time_bounds_that_wait(tmp_path: Path) -> None:
    async with before_a_broken_cloud(tmp_path, {"max_wait": 0}, chain_timeout="300ms") as (p, gpu, _):
        first = await one_that_is_served(p, gpu)
        status, answer, _ = await p.chat()
        told = [(line["model"], line["reason"]) for line in answer["error"]["attempts"]]
        assert (status, told[-1]) == (503, ("gpu/m", "chain_timeout"))
        assert (await first)[0] == 503  # its time is over, too
        gpu.answers.set()


async def test_nobody_is_returned_to_once_that_time_is_over(tmp_path: Path) -> None:
    """The 503 named the box twice, the second time as not tried."""
    async with before_a_broken_cloud(tmp_path, {"max_wait": 0}) as (p, gpu, _), upstream(each(held_back)) as slow:
        config = yaml.safe_load(p.path.read_text())
        config["providers"]["slow"] = openai(slow.url)
        config["aliases"]["mana/short"] = {
            "chain": [{"target": "gpu/m", "max_wait": 0}, "slow/m"],
            "chain_timeout": "300ms",
        }
        p.write(config)
        await p.app.reload()
        first = await one_that_is_served(p, gpu)
        status, answer, _ = await p.chat(model="mana/short")
        told = [(line["model"], line["reason"]) for line in answer["error"]["attempts"]]
        assert (status, told) == (503, [("gpu/m", "saturated"), ("slow/m", "chain_timeout")])
        gpu.answers.set()
        assert (await first)[0] == 200
