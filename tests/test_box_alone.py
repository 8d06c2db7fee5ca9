"""A box in front of a cloud that cannot serve: a request waits for the box, since moving on would only be an error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.routing.ledger import Spend
from tests.ollama_box import Box, box
from tests.proxy import Proxy, openai, proxy, run, settings
from tests.upstreams import answers, each, upstream
from tests.waiting import until

RESOLVED = "x-mana-llm-resolved"
CLOUDS = ("no key", "down", "too dear")


@asynccontextmanager
async def house(cloud: str, tmp_path: Path, **entry: Any) -> AsyncIterator[tuple[Proxy, Box]]:
    """Once the proxy knows of `cloud` that it cannot serve."""
    async with box() as own, upstream(each(answers)) as well:
        if entry.get("cold") != "next":
            own.put("m")
        clouds = {
            "no key": openai("http://127.0.0.1:9", api_key="${NO_SUCH_KEY}"),
            "down": openai("http://127.0.0.1:9"),
            "too dear": openai(well.url),
        }
        chain = [{"target": "gpu/m", **entry}, {"target": "cloud/m", "price": {"input": 1, "output": 1}}]
        providers = {"gpu": own.provider(parallel=1), "cloud": clouds[cloud]}
        config = settings(providers, chain, health={"failure_threshold": 1})
        if cloud == "too dear":
            config["aliases"]["mana/test"]["budget"] = {"day": "1 USD"}
        async with proxy(config, tmp_path) as p:
            await p.chat(model="cloud/m")
            p.app.gateway.generation.ledger.charge("alias mana/test", Spend(usd=1.0))
            yield p, own


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_cold_model_is_waited_for(cloud: str, tmp_path: Path) -> None:
    """As if it were the last entry, which it is in effect; `explain` says so."""
    async with house(cloud, tmp_path, cold="next") as (p, gpu):
        gpu.slow = {"m"}
        told = (await p.get("/v1/explain"))[1]
        assert (told["serves"], told["chain"][0]["detail"]) == ("gpu/m", "not loaded yet: a request waits for it")
        asking = asyncio.ensure_future(p.chat())
        await until(lambda: gpu.begun == ["m"])
        assert re.search("^  m +healthy +loading$", (await run("status", "--url", p.url))[1], re.MULTILINE)
        gpu.finish("m")
        status, _, headers = await asking
        assert (status, headers.get(RESOLVED)) == (200, "gpu/m")


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_a_turn_is_waited_for(cloud: str, tmp_path: Path) -> None:
    """For longer than `max_wait`."""
    async with house(cloud, tmp_path, max_wait=0) as (p, gpu):
        gpu.answers.clear()
        asking = [asyncio.ensure_future(p.chat()) for _ in range(2)]
        line = p.app.gateway.generation.local.queues["gpu"].line.of("m")
        await until(lambda: gpu.at_once == 1 and len(line.waiting) == 1)
        told = (await p.get("/v1/explain"))[1]
        assert told["serves"] == "gpu/m" and told["chain"][0]["detail"] == "a queue of 1, expected wait unknown"
        shown = (await run("status", "--url", p.url))[1]
        assert re.search("^  m +healthy +loaded, a queue of 1, expected wait unknown$", shown, re.MULTILINE)
        gpu.answers.set()
        assert [(status, headers.get(RESOLVED)) for status, _, headers in await asyncio.gather(*asking)] == [
            (200, "gpu/m"),
            (200, "gpu/m"),
        ]


async def test_only_the_last_that_may_be_asked_is_waited_for(tmp_path: Path) -> None:
    """Two models of the box are cold: the first is loaded for later requests."""
    async with box("m", "n") as gpu:
        gpu.slow = {"m", "n"}
        chain = [{"target": "gpu/m", "cold": "next"}, {"target": "gpu/n", "cold": "next"}]
        async with proxy(settings({"gpu": gpu.provider()}, chain), tmp_path) as p:
            asking = asyncio.ensure_future(p.chat())
            await until(lambda: set(gpu.begun) == {"m", "n"})
            gpu.finish("n")
            gpu.finish("m")
            assert (await asking)[2].get(RESOLVED) == "gpu/n"


@pytest.mark.parametrize("entry", [{"cold": "next"}, {"max_wait": 0}])
async def test_one_into_which_the_request_does_not_fit_cannot_be_asked(entry: dict[str, Any], tmp_path: Path) -> None:
    """The box was passed by since there was another one, and that one since it was too small: 503."""
    is_cold = "cold" in entry
    long = [{"role": "user", "content": "word " * 2000}]
    async with box("m") as gpu, box("n") as small:
        if is_cold:
            gpu.slow = {"m"}
        else:
            gpu.put("m")
            gpu.answers.clear()
        chain = [{"target": "gpu/m", **entry}, {"target": "small/n", "options": {"num_ctx": 64}}]
        providers = {"gpu": gpu.provider(parallel=1), "small": small.provider()}
        async with proxy(settings(providers, chain), tmp_path) as p:
            asking = [asyncio.ensure_future(p.chat(messages=long)) for _ in range(2)]
            line = p.app.gateway.generation.local.queues["gpu"].line.of("m")
            await until(lambda: gpu.begun == ["m"] if is_cold else len(line.waiting) == 1)
            assert (await p.chat())[2].get(RESOLVED) == "small/n"
            gpu.finish("m") if is_cold else gpu.answers.set()
            told = await asyncio.gather(*asking)
            assert [(status, headers.get(RESOLVED)) for status, _, headers in told] == [(200, "gpu/m")] * 2
