"""Open entries (``ollama/*``): which model is chosen, and that it serves over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.routing import best_model
from manallm_proxy.routing.best_model import best, needs_of, no_match_reason
from manallm_proxy.routing.catalog import Catalog
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, status, upstream

CHAT, EMBED, SEES = frozenset({"completion"}), frozenset({"embedding"}), frozenset({"completion", "vision"})
NOTHING: frozenset[str] = frozenset()
VISION, TOOLS = frozenset({"vision"}), frozenset({"tools"})


def listed(*names: str) -> list[ModelInfo]:
    """Models of a server that says nothing but their names."""
    return [ModelInfo(name) for name in names]


@every(
    [
        ([], NOTHING, (), None),
        (listed("smol"), NOTHING, (), "smol"),
        (listed("nomic-embed-text:latest"), NOTHING, (), None),
        (listed("bge-m3", "whisper-large-v3", "bge-reranker-v2", "llama-guard3"), NOTHING, (), None),
        (listed("nomic-embed-text:latest", "smol"), EMBED, (), "nomic-embed-text:latest"),
        (listed("smol"), EMBED, (), None),
        ([ModelInfo("odd", capabilities=EMBED), ModelInfo("chat", capabilities=CHAT)], NOTHING, (), "chat"),
        ([ModelInfo("odd", capabilities=EMBED), ModelInfo("chat", capabilities=CHAT)], EMBED, (), "odd"),
        ([ModelInfo("both", capabilities=CHAT | EMBED)], EMBED, (), None),
        ([ModelInfo("text-embedding-3", capabilities=CHAT | EMBED)], EMBED, (), "text-embedding-3"),
        ([ModelInfo("text-embedding-3", capabilities=CHAT | EMBED)], NOTHING, (), None),
        ([ModelInfo("a", capabilities=CHAT), ModelInfo("b", capabilities=SEES)], VISION, (), "b"),
        ([ModelInfo("llava", capabilities=CHAT)], VISION, (), None),
        (listed("smol", "llava:7b"), VISION, (), "llava:7b"),
        (listed("qwen2.5vl:7b", "smol"), VISION, (), "qwen2.5vl:7b"),
        (listed("smol", "mistral"), VISION, (), None),
        ([ModelInfo("llava"), ModelInfo("b", capabilities=SEES)], VISION, (), "b"),
        ([ModelInfo("a", capabilities=CHAT), ModelInfo("b")], TOOLS, (), "b"),
        ([ModelInfo("a", size=3), ModelInfo("b", size=7), ModelInfo("c", size=5)], NOTHING, (), "b"),
        (listed("qwen2.5:0.5b", "qwen2.5:7b", "smollm-135m"), NOTHING, (), "qwen2.5:7b"),
        ([ModelInfo("gpt-oss:120b-cloud", size=400), ModelInfo("smol", size=90)], NOTHING, (), "smol"),
        ([ModelInfo("old", created=1), ModelInfo("new", created=2)], NOTHING, (), "new"),
        (listed("b", "a"), NOTHING, (), "a"),
        (listed("qwen2.5:72b", "qwen2.5:7b"), NOTHING, ("qwen2.5:7b",), "qwen2.5:7b"),
        (listed("big-70b", "Smol:latest"), NOTHING, ("absent", "smol"), "Smol:latest"),
        (listed("big-70b", "tiny-1b", "tiny-3b"), NOTHING, ("tiny*",), "tiny-3b"),
        (listed("big-70b", "nomic-embed-text"), NOTHING, ("nomic*",), "big-70b"),
        (listed("a.b", "axb"), NOTHING, ("a.b",), "a.b"),
    ]
)
def test_the_best_model(
    models: list[ModelInfo], needs: frozenset[str], prefer: tuple[str, ...], wanted: str | None
) -> None:
    """By capability, then by preference, then by size; the order of the list decides nothing."""
    for order in (models, models[::-1]):
        found = best(order, needs, prefer)
        assert (found.id if found is not None else None) == wanted


def test_a_pattern_that_matches_nothing_is_compared_with_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand, which would take a millisecond for each pattern."""
    compared: list[str] = []

    def each_compared(models: list[ModelInfo], matches: Iterable[object]) -> list[ModelInfo]:
        compared.extend(model.id for model in models)
        return [model for model, match in zip(models, matches, strict=True) if match]

    monkeypatch.setattr(best_model, "compress", each_compared)
    ranked = best_model.Ranked.of([ModelInfo("qwen3:8b"), ModelInfo("llama3:8b")])
    assert ranked.best(frozenset(), ["gemma*", "*coder*", "mistral"]) is not None
    assert compared == []
    assert ranked.best(frozenset(), ["qwen3*"]) is not None
    assert sorted(compared) == ["llama3:8b", "qwen3:8b"]


def test_why_there_is_none() -> None:
    """What is there instead, and not all of a long list."""
    assert no_match_reason([], NOTHING) == "its list holds no model"
    assert no_match_reason(listed("nomic-embed-text"), NOTHING) == "nothing for chat in its list: nomic-embed-text"
    assert no_match_reason(listed(*"abcdefg"), VISION).endswith("for vision in its list: a, b, c, d, e and 2 more")
    assert no_match_reason(listed("a"), NOTHING, {"a"}) == "it lists nothing that the chain does not name"
    assert [needs_of(f"mana/{a}") for a in ("embed", "vision", "x")] == [EMBED, VISION, NOTHING]


def test_a_chain_is_filled_from_the_list_as_it_is_now() -> None:
    """No model twice in a chain; another list, another choice; a closed chain stays the same object."""
    catalog = Catalog()
    open_entry, named = Entry(Target("o", "*")), Entry(Target("o", "a"))
    chain = Chain("mana/x", (named, open_entry, open_entry))
    assert [e.unfilled for e in catalog.filled(chain, NOTHING)] == [None, *["it has not listed its models"] * 2]
    catalog.learn("o", listed("a:latest", "b"))
    filled = catalog.filled(chain, NOTHING)
    assert [str(e.target) for e in filled] == ["o/a", "o/b", "o/*"]
    catalog.learn("o", listed("a:latest", "/models/big/Smol-135M.gguf"))
    assert str(catalog.filled(chain, NOTHING).entries[1].target) == "o/Smol-135M"
    unfilled = catalog.filled(chain, VISION).entries[1].unfilled
    assert unfilled == "nothing for vision in its list: Smol-135M"
    catalog.learn("o", listed("a:latest", "c"))
    assert str(catalog.filled(chain, NOTHING).entries[1].target) == "o/c"
    closed = Chain("mana/y", (named,))
    assert catalog.filled(closed, NOTHING) is closed


def ollama(url: str) -> dict[str, Any]:
    return {"kind": "ollama", "base_url": url, "api": "openai"}


async def test_an_open_entry_serves_what_is_there(tmp_path: Path) -> None:
    """Shown in /v1/aliases and the log; chosen anew when the list changes, and nobody is asked where nothing fits."""
    async with upstream(each(answers), ["nomic-embed-text", "smol"]) as box, upstream(each(answers)) as cloud:
        config = settings({"box": ollama(box.url), "cloud": openai(cloud.url)}, ["box/*", "cloud/m"])
        config["health"] = {**config["health"], "probe_interval": 0.05}
        async with proxy(config, tmp_path) as p:
            code, body, headers = await p.chat()
            assert (code, body["model"], headers["x-mana-llm-attempts"]) == (200, "box/smol", "1")
            _, body, headers = await p.post("/v1/embeddings", {"input": "x"})
            assert headers["x-mana-llm-resolved"] == "box/nomic-embed-text"
            _, aliases = await p.get("/v1/aliases")
            assert aliases["aliases"][0]["chain"] == ["box/*", "cloud/m"]
            assert aliases["aliases"][0]["chosen"] == ["box/smol", "cloud/m"]
            health = (await p.get("/v1/health"))[1]["providers"]
            assert health["box"]["chosen"] == {"mana/test": "smol"}
            assert "chosen" not in health["cloud"]
            assert (await p.chat(model="box/*"))[1]["model"] == "box/smol"
            box.models = ["nomic-embed-text"]
            while (await p.get("/v1/aliases"))[1]["aliases"][0]["chosen"][0] is not None:
                pass
            assert (await p.get("/v1/health"))[1]["providers"]["box"]["chosen"] == {"mana/test": None}
            _, body, headers = await p.chat()
            assert (body["model"], headers["x-mana-llm-attempts"]) == ("cloud/m", "1")
            code, body, _ = await p.chat(model="box/*")
            [attempt] = body["error"]["attempts"]
            assert (code, attempt["model"], attempt["reason"]) == (503, "box/*", "no_model")
            assert attempt["detail"] == "nothing for chat in its list: nomic-embed-text"
            assert len(box.posts) == 3
        lines = [json.loads(line) for line in p.log.getvalue().splitlines() if '"entry"' in line]
        chosen = [(line["entry"], line.get("model"), line.get("was")) for line in lines if "needs" not in line]
        assert chosen == [("box/*", "smol", None), ("box/*", None, "smol")]
        assert [line["model"] for line in lines if line.get("needs") == ["embedding"]] == ["nomic-embed-text"]


async def test_a_model_that_is_gone_since_the_last_list(tmp_path: Path) -> None:
    """Whoever asks for an open entry has not named it: the next entry answers; who names it is told."""
    gone = status("404 Not Found", {"error": "model 'm' not found"})
    async with upstream(each(gone), ["m"]) as box, upstream(each(answers)) as cloud:
        config = settings({"box": ollama(box.url), "cloud": openai(cloud.url)}, ["box/*", "cloud/m"])
        async with proxy(config, tmp_path) as p:
            assert (await p.chat())[2]["x-mana-llm-resolved"] == "cloud/m"
            assert (await p.stream())[2]["x-mana-llm-resolved"] == "cloud/m"
            assert (await p.chat(model="box/m"))[0] == 503  # it has failed twice; else 404
            assert (await p.chat(model="box/n"))[1]["error"]["code"] == "model_not_found"


async def test_an_answer_keeps_the_model_that_it_began_with(tmp_path: Path) -> None:
    """A list that changes in the middle of a stream changes the next request, never this one."""

    async def waits(connection: Connection, seen: Seen) -> None:
        if not seen.json.get("stream"):
            await connection.reply(completion())
            return
        await connection.head()
        await connection.chunk(chunk("one"))
        await connection.upstream.go.wait()
        await connection.chunk(chunk("two", finish="stop") + b"data: [DONE]\n\n")
        await connection.end()

    async with upstream(each(waits), ["first"]) as box:
        config = settings({"box": openai(box.url)}, ["box/*"])
        config["health"] = {**config["health"], "probe_interval": 0.05}
        async with proxy(config, tmp_path) as p:
            payload = {"messages": [], "stream": True}
            async with p.client.post(p.url + "/v1/chat/completions", json=payload) as response:
                await response.content.readany()
                box.models = ["second"]
                while (await p.get("/v1/aliases"))[1]["aliases"][0]["chosen"] != ["box/second"]:
                    pass
                box.go.set()
                assert b"box/second" not in await response.read()
            assert (await p.chat())[1]["model"] == "box/second"


async def test_an_open_entry_of_a_provider_that_is_down(tmp_path: Path) -> None:
    """What is wrong with the provider is the reason, not its empty list."""
    config = settings({"off": openai("http://127.0.0.1:9"), "none": openai("http://x", api_key="${NO}")}, ["off/*"])
    config["aliases"]["mana/test"]["chain"].append("none/*")
    config["health"] = {**config["health"], "failure_threshold": 1}
    async with proxy(config, tmp_path) as p:
        _, body, _ = await p.chat()
        assert [a["reason"] for a in body["error"]["attempts"]] == ["unhealthy", "unconfigured"]
