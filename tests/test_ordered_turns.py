"""Servers whose chat templates want one system message, or turns that alternate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.histories import GO, PLAIN, TOOL_TURNS
from tests.proxy import openai, proxy, settings
from tests.servers import ollama_server
from tests.upstreams import Connection, Seen, answers, completion, each, upstream
from tests.waiting import until

MUST = "After the optional system message, conversation roles must alternate user and assistant roles except for tool"
FIRST = "System message must be at the beginning."
GEMMA = "Conversation roles must alternate user/assistant/user/assistant/..."
MODELS = {"mistral": MUST, "qwen": FIRST, "gemma": GEMMA}
SYSTEM = {"role": "system", "content": "S"}


def refusal(asked: Any) -> str:
    """As the templates of Devstral, Qwen 3.5 and Gemma 3 judge."""
    rows = asked["messages"]
    if rows[0]["role"] in ("system", "developer"):
        rows = rows[1:]
    if asked["model"] == "qwen":
        return FIRST if any(row["role"] in ("system", "developer") for row in rows) else ""
    if asked["model"] == "mistral":
        rows = [row for row in rows if row["role"] != "tool" and not row.get("tool_calls")]
    roles = [row["role"] for row in rows]
    fits = all(role == ("user", "assistant")[n % 2] for n, role in enumerate(roles))
    return "" if fits else MODELS[asked["model"]]


def template(status: str, kind: str) -> Any:
    """A server with such templates: llama.cpp answers 500 (issue 19851) or 400 (issue 20733), vLLM 400."""

    async def answered(connection: Connection, seen: Seen) -> None:
        if words := refusal(seen.json):
            said = f"\n-----\nWhile executing CallExpression at line 85 in source:\nError: Jinja Exception: {words}"
            await connection.reply({"error": {"code": int(status[:3]), "message": said, "type": kind}}, status)
        else:
            await answers(connection, seen)

    return answered


def told(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


PARTS = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
SAID = {"role": "assistant", "content": "B"}
NOTE = {"role": "system", "content": "N"}
CHATS: list[tuple[str, list[Any], list[Any]]] = [
    ("gemma", [SYSTEM, GO, told("on")], [SYSTEM, told("go\n\non")]),
    ("gemma", [SYSTEM, NOTE, GO], [{**SYSTEM, "content": "S\n\nN"}, GO]),
    ("gemma", [GO, SAID, SAID, NOTE, GO], [GO, {**SAID, "content": "B\n\nB"}, told("N\n\ngo")]),
    (
        "gemma",
        [GO, PARTS, GO],
        [told([{"type": "text", "text": "go"}, *PARTS["content"], {"type": "text", "text": "go"}])],
    ),
    ("mistral", [*PLAIN, GO], [*PLAIN, {"role": "assistant", "content": "OK."}, GO]),
    (
        "mistral",
        [GO, SAID, *PLAIN[1:], SAID, GO, GO],
        [GO, {**PLAIN[1], "content": "B"}, PLAIN[2], SAID, told("go\n\ngo")],
    ),
    (
        "qwen",
        [{**SYSTEM, "role": "developer"}, NOTE, GO, NOTE, GO],
        [{**SYSTEM, "role": "developer", "content": "S\n\nN"}, GO, told("N"), GO],
    ),
    ("qwen", [GO, NOTE], [GO, told("N")]),
    ("qwen", [SYSTEM, {**NOTE, "name": "n"}, NOTE, GO], [SYSTEM, told("N", name="n"), told("N"), GO]),
    ("qwen", [{**SYSTEM, "name": "s"}, NOTE, GO], [{**SYSTEM, "name": "s", "content": "S\n\nN"}, GO]),
    ("gemma", [told(""), told(None), told("\ud83d"), told(" ")], [told("\ufffd\n\n ")]),
    ("gemma", [told(""), told([])], [told("")]),
    ("gemma", [GO, SAID, {"role": "assistant"}, SAID, GO], [GO, {**SAID, "content": "B\n\nB"}, GO]),
    (
        "gemma",
        [told([]), told('"'), {**PARTS, "content": [*PARTS["content"], 1.50]}],
        [told([{"type": "text", "text": '"'}, *PARTS["content"], 1.5])],
    ),
]


@pytest.mark.parametrize("status", ["500 Internal Server Error", "400 Bad Request"])
@pytest.mark.parametrize(("model", "asked", "sent"), CHATS)
async def test_turns_in_the_order_that_a_template_wants(
    model: str, asked: list[Any], sent: list[Any], status: str, tmp_path: Path
) -> None:
    """Asked again once, and known from then on: the same conversation is one request."""
    script = each(template(status, "server_error"))
    async with upstream(script) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for requests in (2, 3):
            assert (await p.chat(model=f"p/{model}", messages=asked))[0] == 200
            assert (up.posts[-1].json["messages"], len(up.posts)) == (sent, requests)
        await until(lambda: p.log.getvalue().count("history: ") == 2)


@pytest.mark.parametrize("model", MODELS)
async def test_codex_and_claude_code(model: str, tmp_path: Path) -> None:
    """Instructions beside a developer's message and two of a user; a tool's result with words in one turn."""
    texts = {"developer": "P", "user": "A"}
    items = [
        {"type": "message", "role": role, "content": [{"type": "input_text", "text": texts[role]}]} for role in texts
    ]
    asked: dict[str, Any] = {"model": f"p/{model}", "instructions": "S", "input": [*items, items[1]]}
    turns = [told("a"), *TOOL_TURNS[:2], TOOL_TURNS[2], told("b"), told("c")]
    script = each(template("500 Internal Server Error", "server_error"))
    async with upstream(script) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.post("/v1/responses", asked))[0] == 200
        said = str(up.posts[-1].json["messages"])
        assert said.index("S") < said.index("P") < said.index("A") < said.rindex("A")
        if model != "gemma":  # its template knows no tools
            asked = {"model": f"p/{model}", "max_tokens": 9, "system": "S", "messages": turns}
            assert (await p.post("/v1/messages", asked))[0] == 200
            assert (up.posts[-1].json["messages"][-1]["content"] == "b\n\nc") is (model == "mistral")


async def test_what_cannot_be_joined_is_refused_as_before(tmp_path: Path) -> None:
    """A caller's mistake, not a failure of the target; nothing is asked twice with the same messages."""
    turns = [{"role": "assistant", "content": "B"}, GO]
    named = [told("a", name="x"), told("b", name="y")]
    script = each(template("500 Internal Server Error", "server_error"))
    async with upstream(script) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for messages in (turns, named):
            status, body, _ = await p.chat(model="p/gemma", messages=messages)
            assert status == 400, body
        assert len(up.posts) == 2


@pytest.mark.parametrize(("model", "asked", "sent"), [CHATS[0], CHATS[2], CHATS[6]])
async def test_ollama_with_such_a_template(model: str, asked: list[Any], sent: list[Any], tmp_path: Path) -> None:
    """Its runner is llama.cpp's (ollama issue 18241), whose refusal it quotes."""

    async def answered(connection: Connection, seen: Seen) -> None:
        if words := refusal(seen.json):
            inner = {"error": {"code": 500, "message": f"Jinja Exception: {words}", "type": "server_error"}}
            await connection.reply({"error": json.dumps(inner)}, "500 Internal Server Error")
        else:
            await ollama_server(connection, seen)

    script = each(answered)
    async with upstream(script) as up, proxy(settings({"p": {"kind": "ollama", "base_url": up.url}}), tmp_path) as p:
        for requests in (2, 3):
            assert (await p.chat(model=f"p/{model}", messages=asked))[0] == 200
            texts = [message["content"] for message in up.posts[-1].json["messages"]]
            assert (texts, len(up.posts)) == ([message["content"] for message in sent], requests)


@pytest.mark.parametrize("text", ["a", "a" * 300_000])
async def test_ollama_with_what_its_model_thought(text: str, tmp_path: Path) -> None:
    """Which its own clients send back, in messages that other providers do not get."""
    thought = {"role": "assistant", "content": "B", "thinking": "Hm."}

    async def answered(connection: Connection, seen: Seen) -> None:
        if words := refusal(seen.json):
            await connection.reply({"error": words}, "400 Bad Request")
        else:
            await ollama_server(connection, seen)

    script = each(answered)
    async with upstream(script) as up, proxy(settings({"p": {"kind": "ollama", "base_url": up.url}}), tmp_path) as p:
        asked = {"model": "p/qwen", "stream": False, "messages": [SYSTEM, told(text), thought, NOTE, GO]}
        for requests in (2, 3):
            assert (await p.post("/api/chat", asked))[0] == 200
            assert len(up.posts) == requests
            sent = up.posts[-1].json["messages"]
            assert sent == [SYSTEM, told(text), thought, told("N"), GO]


async def test_ollama_that_refuses_the_order_and_then_to_think(tmp_path: Path) -> None:
    """Which the client has asked for itself: its mistake, and no failure of the model."""
    thought = {"role": "assistant", "content": "B", "thinking": "Hm."}

    async def answered(connection: Connection, seen: Seen) -> None:
        words = refusal(seen.json) or ('"qwen" does not support thinking' if seen.json.get("think") else "")
        assert words
        await connection.reply({"error": words}, "400 Bad Request")

    script = each(answered)
    async with upstream(script) as up, proxy(settings({"p": {"kind": "ollama", "base_url": up.url}}), tmp_path) as p:
        asked = {"model": "p/qwen", "stream": False, "messages": [SYSTEM, GO, thought, NOTE, GO], "think": "high"}
        assert (await p.post("/api/chat", asked))[0] == 400
        assert [seen.json["think"] for seen in up.posts] == ["high", "high"]
        assert (await p.get("/v1/health"))[1]["status"] == "healthy"


@pytest.mark.parametrize("model", ["gemma", "qwen"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_forced_call(model: str, stream: bool, tmp_path: Path) -> None:
    """What is said about the tools, where a server cannot be told otherwise (``force_tools``), is a last message of the
    system: with such a template each such request was 400."""
    words = {"gemma": "go\n\nCall one of these functions.", "qwen": "Call one of these functions."}[model]

    async def calls(connection: Connection, seen: Seen) -> None:
        if told := refusal(seen.json):
            await connection.reply({"error": {"message": f"Jinja Exception: {told}"}}, "400 Bad Request")
        else:
            await connection.reply(completion('{"name": "f", "arguments": {}}'))

    async with upstream(each(calls)) as up:
        provider = openai(up.url, options={"force_tools": "schema"})
        async with proxy(settings({"p": provider}), tmp_path) as p:
            tools = [{"type": "function", "function": {"name": "f"}}]
            asked = {"model": f"p/{model}", "messages": [SYSTEM, GO], "tools": tools, "tool_choice": "required"}
            for posts in (2, 3):  # from then on it is known
                async with p.client.post(f"{p.url}/v1/chat/completions", json={**asked, "stream": stream}) as response:
                    assert (response.status, b'"tool_calls"' in await response.read()) == (200, True)
                *before, last = up.posts[-1].json["messages"]
                assert (len(up.posts), before[0], last["role"]) == (posts, SYSTEM, "user")
                assert last["content"].startswith(words)
