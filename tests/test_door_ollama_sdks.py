"""Real clients of Ollama's own API against the proxy: ollama-python and LangChain's ChatOllama.

They are installed beside the environment by ``make test``, and each runs as a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.proxy import openai, proxy, settings
from tests.sdks import cloud, python
from tests.upstreams import each, upstream


async def saw(client: str, package: str, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """What `client` saw, and what the provider was sent."""
    async with upstream(each(cloud), ["m"]) as provider:
        config = settings({"gpu": openai(provider.url), "status": openai(provider.url)}, ["gpu/m"])
        for name in ("tools", "structured", "broken", "embed"):
            config["aliases"][f"mana/{name}"] = {"chain": [f"gpu/{name}"]}
        async with proxy(config, folder) as p:
            seen = await python(package, client, p.url)
        return seen, [seen.json for seen in provider.posts]


async def test_ollama_python(tmp_path: Path) -> None:
    """Chat, stream, generate, tools both ways, structured output, vectors, lists, every kind of error."""
    seen, sent = await saw("ollama_python.py", "ollama", tmp_path)
    assert seen["chat"] == ["Hello", "stop", 3, 2]
    assert seen["stream"] == seen["generate"] == seen["generate stream"] == seen["tool result"] == "Hello"
    assert seen["done"] is True
    assert seen["load"] == "load"
    assert seen["tools"] == [["add", {"a": 1}]]
    (turns,) = [body["messages"] for body in sent if len(body.get("messages", ())) == 3]
    assert turns[2]["tool_call_id"] == turns[1]["tool_calls"][0]["id"]
    assert seen["structured"] == {"ok": True}
    assert seen["embed"] == [[0.5, -0.25]] * 2
    assert seen["embeddings"] == [0.5, -0.25]
    assert seen["list"][0] == "mana/test:latest"
    assert {"gpu/m:latest", "status/m:latest"} < set(seen["list"])
    assert set(seen["digest"]) == {64}
    assert seen["show"][0] == ["completion", "thinking", "tools", "vision"]
    assert seen["ps"] == 0
    expected = {"400": 400, "404": 404, "429": 429, "500": 503, "alias": 404}
    for name, code in expected.items():
        assert seen[f"error {name}"][:2] == ["ResponseError", code], name
    assert "status/500 (http_5xx" in seen["error 500"][2]
    assert seen["broken"][0] == "ResponseError"
    assert "broke off" in seen["broken"][2]
    assert seen["pull"][1] == seen["delete"][1] == 501


async def test_langchain_ollama(tmp_path: Path) -> None:
    """It looks its model up in the list, always streams, and sends results with the ids of their calls."""
    seen, sent = await saw("langchain_ollama_chat.py", "langchain-ollama", tmp_path)
    assert seen["chat"] == seen["stream"] == seen["tool result"] == "Hello"
    assert seen["usage"] == 5
    assert seen["tools"] == [["add", {"a": 1}]]
    (turns,) = [body["messages"] for body in sent if len(body.get("messages", ())) == 3]
    assert turns[2]["tool_call_id"] == turns[1]["tool_calls"][0]["id"]
    assert seen["structured"] == '{"ok": true}'
    assert seen["embed"] == [[0.5, -0.25]] * 2
    assert seen["broken"] == "ResponseError"
