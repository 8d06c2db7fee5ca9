"""What must stay in the house does: by alias, by header, by key, at every door."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest

from tests.ollama_box import box
from tests.proxy import HI, Proxy, openai, proxy, settings
from tests.upstreams import Upstream, answers, each, upstream

PIN = {"X-Mana-Locality": "local"}
BODY: dict[str, Any] = {**HI, "prompt": "x", "input": "x", "max_tokens": 5, "query": "x", "documents": ["x"]}
DOORS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
)
KEY = "k" * 40


def unknown_to(cloud: Upstream) -> bool:
    """No connection has been opened to it, but for the first round of probes."""
    return not cloud.posts and len(cloud.connections) <= 1


@pytest.mark.parametrize("path", DOORS)
async def test_no_door_leads_out(path: str, tmp_path: Path) -> None:
    """The local provider is switched off: 503, and nobody else is so much as connected to."""
    async with box() as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": gpu.provider(), "near": openai(gpu.url, local=True), "cloud": openai(cloud.url)})
        config["aliases"]["mana/house"] = {"chain": ["near/m", "cloud/m"], "locality": "local"}
        async with proxy(config, tmp_path) as p:
            await gpu.server.stop()
            for model in ("mana/test", "cloud/m", "mana/house"):
                for stream in (False, True):
                    headers = {} if model == "mana/house" else PIN
                    body = {k: v for k, v in BODY.items() if path != "/v1/responses" or k == "input"}
                    body |= {"model": model, "stream": stream}
                    status, answer, _ = await p.post(path, body, headers=headers)
                    assert (status, unknown_to(cloud)) == (503, True), answer
                    assert "no provider could serve" in str(answer)
                    if path.startswith("/v1/chat"):
                        assert answer["error"]["code"] == "local_unavailable"
            assert (await p.post("/v1/chat/completions", {**HI, "model": "cloud/m"}))[0] == 200


async def test_what_is_local_serves(tmp_path: Path) -> None:
    """The others are not tried, wherever they stand in the chain; the attempts say what was left out."""
    async with box() as gpu, upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url), "gpu": gpu.provider()})
        async with proxy(config, tmp_path) as p:
            status, _, headers = await p.post("/v1/chat/completions", HI, headers=PIN)
            assert (status, headers["x-mana-llm-resolved"], unknown_to(cloud)) == (200, "gpu/m", True)
            _, answer, _ = await p.post("/v1/chat/completions", {**HI, "model": "cloud/m"}, headers=PIN)
            assert answer["error"]["attempts"] == [{"model": "cloud/m", "reason": "not_local"}]
            assert answer["error"]["message"].endswith("(not_local); it has to stay at providers with 'local: true'")


async def test_a_key_may_be_bound_to_the_house(tmp_path: Path) -> None:
    """Its holder needs no header, and cannot talk its way out."""
    keys = [{"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "locality": "local"}]
    async with box() as gpu, upstream(each(answers)) as cloud:
        config = settings({"cloud": openai(cloud.url), "gpu": gpu.provider()}, auth={"keys": keys})
        async with proxy(config, tmp_path) as p:
            headers = {"Authorization": f"Bearer {KEY}"}
            for model, expected in (("mana/test", 200), ("cloud/m", 503), ("gpu/m", 200)):
                assert (await p.post("/v1/chat/completions", {**HI, "model": model}, headers=headers))[0] == expected
            assert unknown_to(cloud)


async def test_another_word_is_refused(tmp_path: Path) -> None:
    """Whoever mistypes it does not want the prompt to leave."""
    async with upstream(each(answers)) as cloud, proxy(settings({"cloud": openai(cloud.url)}), tmp_path) as p:
        status, answer, _ = await p.post("/v1/chat/completions", HI, headers={"X-Mana-Locality": "locale"})
        assert (status, answer["error"]["param"], unknown_to(cloud)) == (400, "X-Mana-Locality", True)


@pytest.mark.parametrize("name", ["m:cloud", "m:120b-cloud"])
async def test_ollamas_own_cloud_is_not_the_house(name: str, tmp_path: Path) -> None:
    """An Ollama hands these on to ollama.com, wherever it runs itself."""
    async with box() as gpu, proxy(settings({"gpu": gpu.provider()}), tmp_path) as p:
        status, answer, _ = await p.post("/v1/chat/completions", {**HI, "model": f"gpu/{name}"}, headers=PIN)
        assert (status, answer["error"]["code"], gpu.server.posts) == (503, "local_unavailable", [])


async def test_what_is_reported_does_not_lead_out_either(tmp_path: Path) -> None:
    """``explain`` and the count of usable targets go by what a request to the alias may reach."""

    async def usable(p: Proxy) -> str:
        text = await (await p.client.get(p.url + "/metrics")).text()
        return next(
            line for line in text.splitlines() if line.startswith('mana_llm_alias_usable_targets{alias="mana/h')
        )

    async with box() as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": gpu.provider(), "cloud": openai(cloud.url)})
        config["aliases"]["mana/house"] = {"chain": ["cloud/m", "gpu/m"], "locality": "local"}
        async with proxy(config, tmp_path) as p:
            _, shown = await p.get("/v1/explain?model=mana/house")
            assert (shown["serves"], shown["chain"][0]["reason"]) == ("gpu/m", "not_local")
            assert (await usable(p)).endswith(" 1")
            p.app.generation.registry.providers["gpu"].provider.open_until = math.inf
            _, shown = await p.get("/v1/explain?model=mana/house")
            assert (shown["serves"], [row["usable"] for row in shown["chain"]]) == (None, [False, False])
            assert (await usable(p)).endswith(" 0")
            assert (await p.chat(model="mana/house"))[0] == 503
            assert unknown_to(cloud)
