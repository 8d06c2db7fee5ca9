"""What Gemini refuses of tools: names that others take, and JSON schemas in a tool's result."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

NAMES = ["21st_magic_component_builder", "mcp__" + "x" * 80, "a b", "ä", "-", "_fine", "so.is:this-one", "x" * 64]
"""The last three are Gemini's own form."""
JSON = {"Content-Type": "application/json"}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def calls_of(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for n, name in enumerate(names)
    ]


def chunk(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP"}]}


@pytest.mark.parametrize("streamed", [False, True])
async def test_names_that_gemini_refuses(streamed: bool, tmp_path: Path) -> None:
    """It gets others in declarations, choice, history and results, and the client its own."""
    got: list[list[str]] = []

    async def answer(connection: Connection, seen: Seen) -> None:
        asked = seen.json
        declared = [row["name"] for row in asked["tools"][0]["functionDeclarations"]]
        called = [part["functionCall"]["name"] for part in asked["contents"][1]["parts"]]
        results = [part["functionResponse"]["name"] for part in asked["contents"][2]["parts"]]
        got.extend([declared, called, results, asked["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"]])
        reply = chunk(*({"functionCall": {"name": name, "args": {}}} for name in declared))
        if streamed:
            await connection.head()
            await connection.chunk(b"data: " + json.dumps(reply).encode() + b"\r\n\r\n")
            await connection.end()
        else:
            await connection.reply(reply)

    calls = calls_of(NAMES)
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls),
    ]
    allowed = {"mode": "required", "tools": [tool(name) for name in NAMES]}
    body = {
        "model": "g/gemini-2.5-flash",
        "messages": messages,
        "tools": [tool(name) for name in NAMES],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
        "stream": streamed,
    }
    async with upstream(each(answer)) as up:
        config = settings({"g": {"kind": "google", "base_url": up.url, "api_key": "k"}}, ["g/gemini-2.5-flash"])
        async with proxy(config, tmp_path) as p, p.client.post(f"{p.url}/v1/chat/completions", json=body) as response:
            text = await response.text()
            assert response.status == 200, text
    rows = [json.loads(line[6:]) for line in text.splitlines() if line[6:7] == "{"] if streamed else [json.loads(text)]
    said = [row["choices"][0]["delta" if streamed else "message"] for row in rows if row["choices"]]
    assert [call["function"]["name"] for row in said for call in row.get("tool_calls") or ()] == NAMES
    assert all(names == got[0] for names in got)
    assert got[0][5:] == NAMES[5:]
    assert len(set(got[0])) == len(NAMES)
    for name in got[0][:5]:
        assert name.isascii() and name.replace("_", "").replace("-", "").isalnum() and len(name) <= 64
        assert not name[0].isdigit() and name[0] != "-"


@pytest.mark.parametrize(
    ("result", "response"),
    [
        ('{"now": 12}', {"now": 12}),
        ('{"a": {"$ref": "#/$defs/A"}, "$defs": {}}', None),
        ('{"a": [{"\\u0024ref": "#/x"}]}', None),
        ('{"a": "\\"$ref\\""}', {"a": '"$ref"'}),
        ('{"$defs": {"x": 1}}', {"$defs": {"x": 1}}),
        (json.dumps({"a": {"$ref": "x"}, "b": "y" * 2**20}), None),
    ],
)
async def test_a_schema_as_a_tools_result(result: str, response: Any, tmp_path: Path) -> None:
    """Gemini takes a reference for the name of a picture, and refuses the request: it gets text (None)."""
    seen_by: list[Any] = []

    async def answer(connection: Connection, seen: Seen) -> None:
        seen_by.append(seen.json["contents"][2]["parts"][0]["functionResponse"]["response"])
        await connection.reply(chunk({"text": "ok"}))

    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": calls_of(["look"])},
        {"role": "tool", "tool_call_id": "c0", "content": result},
    ]
    async with upstream(each(answer)) as up:
        config = settings({"g": {"kind": "google", "base_url": up.url, "api_key": "k"}}, ["g/gemini-2.5-flash"])
        async with proxy(config, tmp_path) as p:
            body = io.BytesIO(json.dumps({"messages": messages, "model": "mana/test"}).encode())
            async with p.client.post(f"{p.url}/v1/chat/completions", data=body, headers=JSON) as answered:
                assert answered.status == 200, await answered.text()
    assert seen_by == [{"output": result} if response is None else response]
