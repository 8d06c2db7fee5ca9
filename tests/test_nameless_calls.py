"""A call of a tool that has no name can be answered by nobody: a provider whose answer ends with one has failed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import HI, Proxy, everything, openai, proxy, settings
from tests.servers import line
from tests.upstreams import DONE, Connection, Seen, answers, each, upstream

Says = Callable[[Connection, Seen, str, str], Awaitable[None]]
"""Gives an answer with one call that has no name: the words before it, and OpenAI's reason why it ends."""

FUNCTION = {"description": "f", "parameters": {"type": "object"}}
CHAT_TOOLS = [{"type": "function", "function": {"name": "f", **FUNCTION}}]
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**HI, "tools": CHAT_TOOLS}),
    "messages": ("/v1/messages", {**HI, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}),
    "responses": ("/v1/responses", {"input": "hi", "tools": [{"type": "function", "name": "f", **FUNCTION}]}),
    "ollama": ("/api/chat", {**HI, "tools": CHAT_TOOLS}),
}


async def openai_says(connection: Connection, seen: Seen, words: str, finish: str) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"arguments": '{"x":1}'}}
    if not seen.json.get("stream"):
        message = {"role": "assistant", "content": words, "tool_calls": [call]}
        await connection.reply({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})
        return
    await connection.head()
    for delta in ({"content": words}, {"tool_calls": [call]}):
        await connection.chunk(b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n")
    last = {"choices": [{"delta": {}, "finish_reason": finish}]} if finish else {"choices": []}
    await connection.chunk(b"data: " + json.dumps(last).encode() + b"\n\n" + DONE)
    await connection.end()


async def ollama_says(connection: Connection, seen: Seen, words: str, finish: str) -> None:
    calls = [{"function": {"arguments": {"x": 1}}}]
    end = {"done": True, "done_reason": "length" if finish == "length" else "stop"}
    whole = line(words, **end)
    last = json.loads(whole)
    last["message"]["tool_calls"] = calls
    if not seen.json["stream"]:
        await connection.reply(last)
        return
    await connection.head(content_type="application/x-ndjson")
    await connection.chunk(line(words))
    last["message"]["content"] = ""
    await connection.chunk(json.dumps(last).encode() + b"\n")
    await connection.end()


async def google_says(connection: Connection, seen: Seen, words: str, finish: str) -> None:
    reason = "MAX_TOKENS" if finish == "length" else "STOP"
    called = {"functionCall": {"args": {"x": 1}}}

    def reply(*parts: dict[str, Any], **end: Any) -> bytes:
        return json.dumps({"candidates": [{"index": 0, "content": {"parts": list(parts)}, **end}]}).encode()

    if "stream" not in seen.path:
        await connection.reply(reply({"text": words}, called, finishReason=reason))
        return
    await connection.head()
    for chunk in (reply({"text": words}), reply(called, finishReason=reason)):
        await connection.chunk(b"data: " + chunk + b"\r\n\r\n")
    await connection.end()


KINDS: dict[str, tuple[Says, dict[str, Any]]] = {
    "openai": (openai_says, {"kind": "openai"}),
    "ollama": (ollama_says, {"kind": "ollama"}),
    "google": (google_says, {"kind": "google", "api_key": "AIza-key-of-the-proxy"}),
}


async def ask(p: Proxy, door: str, model: str, *, stream: bool) -> tuple[int, str, str]:
    """Status, target and body."""
    path, body = DOORS[door]
    async with p.client.post(p.url + path, json={**body, "model": model, "stream": stream}) as response:
        return response.status, response.headers.get("X-Mana-LLM-Resolved", ""), (await everything(response)).decode()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_provider_is_asked_or_the_client_is_told(tmp_path: Path, kind: str) -> None:
    """Before a word was said the next entry answers, after it the stream breaks; what the token limit cut is no fault.

    A chat of a provider that speaks it itself is relayed: its bytes are its own.
    """
    says, provider = KINDS[kind]
    words = finish = ""

    async def bad(connection: Connection, seen: Seen) -> None:
        await says(connection, seen, words, finish)

    async with upstream(each(bad)) as one, upstream(each(answers)) as other:
        url = one.url + ("/v1" if kind == "openai" else "")
        providers = {"bad": {**provider, "base_url": url}, "good": openai(other.url)}
        config = settings(providers, health={"failure_threshold": 1000})
        config["aliases"]["mana/alone"] = {"chain": ["bad/m"]}
        async with proxy(config, tmp_path) as p:
            doors = [door for door in DOORS if (kind, door) != ("openai", "chat")]
            for door, stream in itertools.product(doors, (True, False)):
                where = (door, stream)
                for finish in ("tool_calls", "stop", "") if kind == "openai" else ("tool_calls",):
                    words = ""
                    status, target, body = await ask(p, door, "mana/test", stream=stream)
                    assert (status, target) == (200, "good/m") and "lo" in body, (where, finish, body)
                    status, _, body = await ask(p, door, "mana/alone", stream=stream)
                    assert status == 503 and "without a name" in body, (where, finish, body)
                    words = "Let me look."
                    status, target, body = await ask(p, door, "mana/test", stream=stream)
                    if stream:
                        assert (status, target) == (200, "bad/m") and words in body, (where, finish, body)
                        assert "without a name" in body and "[DONE]" not in body, (where, finish, body)
                    else:
                        assert (status, target) == (200, "good/m"), (where, finish, body)
                finish = "length"
                status, target, body = await ask(p, door, "mana/test", stream=stream)
                assert (status, target) == (200, "bad/m") and words in body, (where, body)
                assert not any(word in body for word in ("error_", "without a name", "tool_use", 'function_call"')), (
                    body
                )
                assert any(word in body for word in ('"length"', "max_tokens", "max_output_tokens")), (where, body)
