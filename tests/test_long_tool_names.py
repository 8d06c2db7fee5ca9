"""Names of tools that are longer than a chat's servers take: Claude Code puts the MCP server's name before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import anthropic_stream
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, completion, each, upstream

LONG = "mcp__plugin_a_server__" + "x" * 60
SAME_BEGIN = LONG + "y"
FULL = "z" * 64
NAMES = [LONG, SAME_BEGIN, FULL, "add"]
USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> dict[str, Any]:
    used = [{"type": "tool_use", "id": f"c{n}", "name": name, "input": {}} for n, name in enumerate(NAMES)]
    found = {"type": "tool_reference", "tool_name": LONG}
    results = [{"type": "tool_result", "tool_use_id": row["id"], "content": [found]} for row in used]
    return {
        "model": "p/m",
        "max_tokens": 9,
        "messages": [USER, {"role": "assistant", "content": used}, {"role": "user", "content": results}],
        "tools": [{"name": name, "input_schema": {"type": "object"}} for name in NAMES],
        "tool_choice": {"type": "tool", "name": LONG},
        **fields,
    }


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_gets_short_ones(streamed: bool, tmp_path: Path) -> None:
    """In tools, choice, history and references alike; the client gets its own back."""
    got: list[Any] = []

    async def answer(connection: Connection, seen: Seen) -> None:
        asked = seen.json
        names = [tool["function"]["name"] for tool in asked["tools"]]
        called = [call["function"]["name"] for call in asked["messages"][1]["tool_calls"]]
        got.extend([names, called, asked["tool_choice"]["function"]["name"], asked["messages"][2]["content"]])
        calls = [
            {"index": n, "id": f"d{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
            for n, name in enumerate(names)
        ]
        if not streamed:
            message = {"role": "assistant", "content": None, "tool_calls": calls}
            await connection.reply({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
            return
        await connection.head()
        for delta, finish in [*(({"tool_calls": [call]}, None) for call in calls), ({}, "tool_calls")]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await connection.chunk(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end()

    async with upstream(each(answer), ["m"]) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        async with p.client.post(f"{p.url}/v1/messages", json=body(stream=streamed)) as response:
            text = await response.read()
            assert response.status == 200, text
    names, called, chosen, reference = got
    assert names[2:] == NAMES[2:]
    assert called == names
    assert len(set(names)) == len(NAMES)
    assert max(map(len, names)) <= 64
    assert chosen == names[0]
    assert names[0] in reference
    message = anthropic_stream.message(text) if streamed else json.loads(text)
    assert [block["name"] for block in message["content"]] == NAMES


async def test_a_choice_of_what_is_not_offered_is_named_as_the_client_does(tmp_path: Path) -> None:
    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("Hello"))

    async with upstream(each(answer), ["m"]) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        status, error, _ = await p.post("/v1/messages", body(tool_choice={"type": "tool", "name": LONG + "no"}))
    assert (status, "mcp__plugin_a_server__x" in error["error"]["message"]) == (400, True)
