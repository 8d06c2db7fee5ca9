"""Vectors of different length are never mixed under one alias, at whichever door they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.config.load import load
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.embedding_spaces import SPACES_LIMIT, EmbeddingSpaces
from manallm_proxy.openai.request import read_summary
from tests.figures import value
from tests.proxy import openai, proxy, settings, written
from tests.upstreams import Answer, Connection, Seen, each, upstream


def gives(length: int) -> Answer:
    """A model with vectors of that length, which it shortens where a request asks for it."""

    async def answer(connection: Connection, seen: Seen) -> None:
        vector = [1.0] * min(seen.json.get("dimensions", length), length)
        rows = [{"object": "embedding", "index": 0, "embedding": vector}]
        await connection.reply({"object": "list", "data": rows, "model": "m"})

    return answer


async def test_another_length_is_refused(tmp_path: Path) -> None:
    """The first one counts; after it 502 that says whose is whose, in the log and in the metrics; nobody is blamed."""
    async with upstream(each(gives(2))) as one, upstream(each(gives(3))) as two:
        async with proxy(settings({"one": openai(one.url), "two": openai(two.url)}), tmp_path) as p:
            assert (await p.post("/v1/embeddings", {"input": "a"}))[0] == 200
            await one.stop()
            for path in ("/v1/embeddings", "/api/embed"):
                code, body, headers = await p.post(path, {"model": "mana/test", "input": "a"})
                assert (code, headers["x-should-retry"]) == (502, "false")
                assert "two/m gave vectors of 3 dimensions, where one/m has 2" in str(body)
            code, body, _ = await p.post("/v1/embeddings", {"input": "a"})
            assert body["error"]["code"] == "embedding_space_mismatch"
            assert (await p.post("/v1/embeddings", {"input": "a", "model": "two/m"}))[0] == 200, "by its own name"
            told = [line for line in p.log.getvalue().splitlines() if "embedding dimensions differ" in line]
            assert len(told) == 3 and '"one/m"' in told[0] and '"two/m"' in told[0]
            async with p.client.get(f"{p.url}/metrics") as response:
                told_text = await response.text()
            labels = {"provider": "two", "model": "m", "error_type": "embedding_space_mismatch"}
            assert value(told_text, "mana_llm_llm_errors_total", **labels) == 3
            assert value(told_text, "mana_llm_provider_healthy", provider="two") == 1


async def test_the_declared_length_counts(tmp_path: Path) -> None:
    """From the first answer on; a request that asks for another one gets that."""
    async with upstream(each(gives(3))) as one:
        for declared, expected in ((3, 200), (4, 502)):
            config = settings({"one": openai(one.url)}, [{"target": "one/m", "dimensions": declared}])
            async with proxy(config, tmp_path) as p:
                assert (await p.post("/v1/embeddings", {"input": "a"}))[0] == expected
                assert (await p.post("/v1/embeddings", {"input": "a", "dimensions": 2}))[0] == 200


def test_two_lengths_in_one_alias_are_a_mistake(tmp_path: Path) -> None:
    """Named by the second one's path, with both numbers; so is what is no number."""
    entries: list[Any] = [{"target": "a/m", "dimensions": 768}, "a/n", {"target": "a/o", "dimensions": 1024}]
    path = tmp_path / "proxy.yaml"
    for chain, where, what in (
        (entries, "chain[2].dimensions", "is 1024 here and 768 before"),
        ([{"target": "a/m", "dimensions": 0}], "chain[0].dimensions", "at least 1"),
    ):
        path.write_text(written(settings({"a": openai("http://127.0.0.1:9")}, chain)))
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        [mistake] = caught.value.mistakes
        assert mistake.startswith(f"aliases.mana/test.{where}: ") and what in mistake


def test_what_clients_ask_for_needs_no_more_memory() -> None:
    """They choose the number."""
    spaces, entry = EmbeddingSpaces(), Entry(Target("a", "m"))
    for asked in range(1, SPACES_LIMIT + 100):
        body = b'{"input":"a","dimensions":%d}' % asked
        call = Call(Endpoint.EMBEDDINGS, read_summary(body, ("input", str)), body, "1")
        spaces.check(Chain("mana/e", (entry,)), call, entry, asked, lambda event: None)
    assert len(spaces.learned) == SPACES_LIMIT
