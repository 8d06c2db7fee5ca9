"""Anthropic's own SDKs as clients: messages, streams, their tool runners, structured output, lists, errors.

They are installed beside the environment by ``make test``; each runs as a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.gateway.client_keys import digest_of
from tests.needs import require
from tests.proxy import openai, proxy, settings
from tests.sdks import HERE, INSTALLED, python, run
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, upstream

KEY = "sk-anthropic-test"
FUNCTION = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": FUNCTION}


def frame(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )


async def says(connection: Connection, seen: Seen, text: str) -> None:
    """One word, whole or streamed."""
    if not seen.json.get("stream"):
        await connection.reply(completion(text))
        return
    await connection.head()
    for part in (frame(role="assistant", content=text), frame("stop"), b"data: [DONE]\n\n"):
        await connection.chunk(part)
    await connection.end()


async def calls(connection: Connection, seen: Seen) -> None:
    """Thinks, then calls the tool; with its result in hand it answers, if it has the whole history."""
    roles = [message["role"] for message in seen.json["messages"]]
    if "tool" in roles:
        result = seen.json["messages"][-1]["content"]
        await says(connection, seen, f"{result}, after {' '.join(roles)}")
    elif not seen.json.get("stream"):
        said = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]}
        await connection.reply({"choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]})
    else:
        await connection.head()
        begun = {**CALL, "function": {"name": "add", "arguments": ""}}
        for part in (
            frame(role="assistant", reasoning_content="hm"),
            frame(tool_calls=[begun]),
            frame(tool_calls=[{"index": 0, "function": {"arguments": '{"a": 1, '}}]),
            frame(tool_calls=[{"index": 0, "function": {"arguments": '"b": 2}'}}]),
            frame("tool_calls"),
            b"data: [DONE]\n\n",
        ):
            await connection.chunk(part)
        await connection.end()


async def cloud(connection: Connection, seen: Seen) -> None:
    """An OpenAI-compatible server whose model's name says how it behaves."""
    model = seen.json["model"]
    if model.isdigit():
        await connection.reply({"error": {"message": "as you asked", "type": "x", "code": None}}, f"{model} Refused")
    elif model == "tools":
        await calls(connection, seen)
    elif model == "structured":
        assert seen.json["response_format"]["json_schema"]["schema"]["properties"]["ok"]["type"] == "boolean"
        await connection.reply(completion('{"ok": true}'))
    elif model == "broken":
        await connection.head()
        await connection.chunk(chunk("one"))
        connection.writer.close()
    else:
        await answers(connection, seen)


@pytest.mark.parametrize("language", ["python", "node"])
async def test_an_sdk_sees_anthropic(tmp_path: Path, language: str) -> None:
    """All that its user would do; the tool runners find out by themselves that there are no threads here."""
    async with upstream(each(cloud), ["m"]) as provider:
        key = {"name": "sdk", "sha256": digest_of(KEY)}
        config = settings(
            {"gpu": openai(provider.url), "status": openai(provider.url)}, ["gpu/m"], auth={"keys": [key]}
        )
        for name in ("tools", "structured", "broken"):
            config["aliases"][f"mana/{name}"] = {"chain": [f"gpu/{name}"]}
        async with proxy(config, tmp_path) as p:
            if language == "python":
                saw = await python("anthropic", "anthropic_python.py", p.url, KEY)
            else:
                node = require("node", "npm's SDK needs Node")
                where = require(INSTALLED / "node_modules/@anthropic-ai/sdk", "the SDK is installed by make test")
                saw = await run(str(node), str(HERE / "clients" / "anthropic_node.mjs"), str(where), p.url, KEY)
    assert saw["message"] == ["Hello", "gpu/m", "end_turn", 2]
    start, stop = "content_block_start", "content_block_stop"
    assert [kind for kind in saw["events"] if kind in EVENTS] == [
        "message_start",
        start,
        stop,
        "message_delta",
        "message_stop",
    ]
    assert (saw["helper"], saw["final"]) == ("Hello", ["Hello", "end_turn", 3, 2])
    assert (saw["blocks"], saw["tools"]) == (["thinking", "tool_use"], [["add", {"a": 1, "b": 2}]])
    assert saw["runner"] == saw["streaming runner"] == "3, after user assistant tool"
    assert saw["structured"] == {"ok": True}
    assert saw["tokens"] > 0
    assert (saw["models"], saw["model"]) == (["mana/test", "mana/test", 1970], "mana/test")
    assert (saw["request_id"], saw["resolved"]) == (True, "gpu/m")
    assert {name: saw[name] for name in ERRORS} == ERRORS
    for name in ("broken", "broken helper"):
        assert (saw[name][0], saw[name][2]) == ("APIStatusError" if language == "python" else "APIError", "api_error")


EVENTS = {"message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"}
ERRORS: dict[str, list[Any]] = {
    "error 400": ["BadRequestError", 400, "invalid_request_error"],
    "error 404": ["NotFoundError", 404, "not_found_error"],
    "error 413": ["ContentTooLargeError", 413, "request_too_large"],
    "error 401": ["InternalServerError", 502, "api_error"],
    "error 429": ["RateLimitError", 429, "rate_limit_error"],
    "error alias": ["NotFoundError", 404, "not_found_error"],
    "error key": ["AuthenticationError", 401, "authentication_error"],
    "error thread": ["ThreadUnsupportedRequestError", 400, "invalid_request_error"],
}
