"""One client cannot harm the others of a box, and no prompt is cut in silence: as clients and the log see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ollama_box import box
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, status, upstream

GREEDY: dict[str, Any] = {"options": {"num_gpu": 0, "num_ctx": 512, "top_k": 3, "seed": None}, "keep_alive": 0}
OVERFLOW = {"error": {"code": 400, "message": "request (5000 tokens) exceeds the available context size (4096 tokens)"}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_clients_options_are_ignored_with_a_note(path: str, tmp_path: Path) -> None:
    """The request's line names them once each, whatever door they came by."""
    async with box() as gpu, proxy(settings({"gpu": gpu.provider()}), tmp_path) as p:
        asked = {"messages": [{"role": "user", "content": "hi"}], "stream": False, **GREEDY}
        assert (await p.post(path, {**asked, "model": "mana/test"}))[0] == 200
        sent = gpu.chats[-1].json
        assert (sent["options"], "keep_alive" in sent, sent["truncate"]) == ({"top_k": 3}, False, False)
        p.app.logs.flush()
        (line,) = [row for row in map(json.loads, p.log.getvalue().splitlines()) if row["event"] == "request"]
        assert sorted(line["notes"]) == ["ignored: keep_alive", "ignored: num_ctx", "ignored: num_gpu"]


async def test_where_the_provider_allows_it(tmp_path: Path) -> None:
    """They pass, except for what the operator set."""
    async with box() as gpu:
        config = settings({"gpu": gpu.provider(client_options=True, options={"num_ctx": 8192})})
        async with proxy(config, tmp_path) as p:
            assert (await p.chat(**GREEDY))[0] == 200
            sent = gpu.chats[-1].json
            assert sent["options"] == {"num_gpu": 0, "num_ctx": 8192, "top_k": 3}
            assert sent["keep_alive"] == 0


async def test_a_target_has_the_window_that_its_alias_gives_it(tmp_path: Path) -> None:
    """Asked for by its own name as well, or the model would be loaded anew."""
    async with box() as gpu:
        config = settings({"gpu": gpu.provider()}, [{"target": "gpu/m", "options": {"num_ctx": 2048}}])
        async with proxy(config, tmp_path) as p:
            for model in ("mana/test", "gpu/m", "gpu/M:latest", "mana/test"):
                assert (await p.chat(model=model))[0] == 200
                assert gpu.chats[-1].json["options"] == {"num_ctx": 2048}


@pytest.mark.parametrize("line", ["400 Bad Request", "500 Internal Server Error"])
@pytest.mark.parametrize("nested", [False, True])
async def test_a_prompt_that_does_not_fit(line: str, nested: bool, tmp_path: Path) -> None:
    """To the caller as 400 of its own class; an entry with ``fallback_on: [context_length]`` moves on."""
    body = {"error": json.dumps(OVERFLOW)} if nested else {"error": OVERFLOW["error"]["message"]}
    async with upstream(each(status(line, body))) as full, upstream(each(answers)) as cloud:
        providers = {"gpu": {"kind": "ollama", "base_url": full.url}, "cloud": openai(cloud.url)}
        chain = [{"target": "gpu/m", "fallback_on": ["context_length"]}, "cloud/m"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            code, answer, _ = await p.chat(model="gpu/m")
            assert (code, answer["error"]["code"]) == (400, "context_length_exceeded")
            assert (await p.chat())[2]["x-mana-llm-resolved"] == "cloud/m"
            assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["status"] == "healthy"


@pytest.mark.parametrize(
    ("own", "entry", "asked"),
    [
        ({"options": {"truncate": True}}, {}, {}),
        ({}, {"options": {"truncate": True}}, {}),
        ({}, {}, {"truncate": True}),
        ({"client_options": True}, {}, {"options": {"num_ctx": 32_768}}),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_prompt_that_is_cut_or_has_a_window_of_its_own(
    own: dict[str, Any], entry: dict[str, Any], asked: dict[str, Any], path: str, tmp_path: Path
) -> None:
    """It is not compared with the window in force; without that it does not fit, and is not sent."""
    long = {"model": "mana/test", "messages": [{"role": "user", "content": "word " * 8000}], "stream": False}
    async with box() as gpu:
        gpu.put("m")
        gpu.bytes_per_token = 4
        config = settings({"gpu": gpu.provider(**own)}, [{"target": "gpu/m", **entry}])
        async with proxy(config, tmp_path) as p:
            for _ in range(3):
                await p.chat(messages=[{"role": "user", "content": "word " * 200}])
            sent = len(gpu.chats)
            assert (await p.post(path, {**long, **asked}))[0] == 200
            assert len(gpu.chats) == sent + 1
            if asked:
                assert (await p.post(path, long))[0] == 400
