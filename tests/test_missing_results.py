"""Calls in the history without a result: a client was interrupted, and servers refuse them at each turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.histories import GO, RESPONSE, called, strict
from tests.proxy import openai, proxy, settings
from tests.strict_messages import refuses
from tests.upstreams import Connection, Seen, answers, each, upstream

NOTE = "history: results for calls that had none"


def said(*ids: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [called(id=id_) for id_ in ids]}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "3"}


def unpaired(asked: Any) -> str:
    """As OpenAI: all results follow their calls at once."""
    rows = asked["messages"]
    for n, row in enumerate(rows):
        wanted = {call["id"] for call in row.get("tool_calls") or ()}
        for other in rows[n + 1 :]:
            if other["role"] != "tool":
                break
            wanted.discard(other["tool_call_id"])
        if wanted:
            return (
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(wanted)}"
            )
    return ""


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([GO, said("a"), GO], [GO, said("a"), "a", GO]),
        ([GO, said("a", "b"), result("a"), GO], [GO, said("a", "b"), result("a"), "b", GO]),
        ([GO, said("a", "b"), result("b"), said("c"), GO], [GO, said("a", "b"), result("b"), "a", said("c"), "c", GO]),
        ([GO, said("a"), GO, result("a")], [GO, said("a"), result("a"), GO]),
        ([GO, said("a")], [GO, said("a"), "a"]),
        ([GO, said("a"), GO, said("a"), result("a")], [GO, said("a"), "a", GO, said("a"), result("a")]),
        ([GO, said("a"), result("a"), GO, said("a")], [GO, said("a"), result("a"), GO, said("a"), "a"]),
        ([GO, said("a"), said("b"), GO, result("a")], [GO, said("a"), result("a"), said("b"), "b", GO]),
    ],
)
async def test_a_chat_goes_on(history: list[Any], wanted: list[Any], tmp_path: Path) -> None:
    """Each gets one that says so; one that came late comes in its place, unless the id is another call's by then: some
    servers count the calls of each answer from 0."""
    async with upstream(each(strict(unpaired, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.chat(messages=history))[0] == 200
        sent = up.posts[-1].json["messages"]
        assert len(up.posts) == 2
        for got, row in zip(sent, wanted, strict=True):
            if isinstance(row, str):
                assert (got["role"], got["tool_call_id"], "no result" in got["content"]) == ("tool", row, True)
            else:
                assert got == row
        assert p.log.getvalue().count(NOTE) == 1
        whole = [GO, said("a"), result("a"), GO]
        assert (await p.chat(messages=whole))[0] == 200
        assert up.posts[-1].json["messages"] == whole


@pytest.mark.parametrize("after", [[], ["so"], [{"type": "text", "text": "so"}], None])
async def test_messages(after: Any, tmp_path: Path) -> None:
    """The next turn begins with it; if there is none of the user's, it becomes one."""
    use: list[Any] = [{"type": "tool_use", "id": id_, "name": "f", "input": {}} for id_ in ("a", "b")]
    kept = {"type": "tool_result", "tool_use_id": "a", "content": "3"}
    turns: list[Any] = [GO, {"role": "assistant", "content": use}]
    if after is not None:
        content = after[0] if after == ["so"] else [kept, *after]
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": "B"}, GO]

    def rule(asked: Any) -> str:
        rows = asked["messages"]
        blocks = rows[2]["content"] if len(rows) > 2 and isinstance(rows[2]["content"], list) else []
        found = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        return "" if sorted(found) == ["a", "b"] else "`tool_use` ids were found without `tool_result` blocks"

    async with upstream(each(refuses(rule))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            status, _, _ = await p.post("/v1/messages", {"max_tokens": 9, "messages": turns})
            assert (status, len(up.posts), p.log.getvalue().count(NOTE)) == (200, 2, 1)
            sent = up.posts[-1].json["messages"]
            assert (sent[:2], sent[3:]) == (turns[:2], turns[3:])
            made = [block for block in sent[2]["content"] if "no result" in str(block.get("content"))]
            assert all(block["is_error"] for block in made)
            rest = [block for block in sent[2]["content"] if block not in made]
            assert rest == (
                [] if after is None else [{"type": "text", "text": "so"}] if after == ["so"] else [kept, *after]
            )
            assert {block["type"] for block in sent[2]["content"][:2]} == {"tool_result"}


async def test_responses(tmp_path: Path) -> None:
    """Of a function, and of a tool with a text as its input."""
    items: list[Any] = [
        {"type": "message", **GO},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "g", "input": ""},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
        {"type": "message", **GO},
    ]

    def rule(asked: Any) -> str:
        rows = asked["input"]
        found = {row["call_id"] for row in rows if row["type"].endswith("_output")}
        missed = [row["call_id"] for row in rows if row["type"].endswith("_call") and row["call_id"] not in found]
        return f"No tool output found for function call {missed[0]}." if missed else ""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(RESPONSE)

    async with upstream(each(strict(rule, answer))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["responses"])}), tmp_path) as p:
            assert (await p.post("/v1/responses", {"input": items, "store": False}))[0] == 200
            sent = up.posts[-1].json["input"]
            assert [row.get("call_id") for row in sent] == [None, "a", "a", "b", "b", "c", "c", None]
            assert [row["type"] for row in sent[2:5:2]] == ["function_call_output", "custom_tool_call_output"]
            assert "no result" in sent[2]["output"]
            assert (len(up.posts), p.log.getvalue().count(NOTE)) == (2, 1)


async def test_gemini(tmp_path: Path) -> None:
    """It wants as many responses as calls in the turn that follows."""
    answered = {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]}
    words = (
        "Please ensure that the number of function response parts is equal to the number of function call parts "
        "of the function call turn."
    )

    async def answer(connection: Connection, seen: Seen) -> None:
        parts = [part for turn in seen.json["contents"] for part in turn["parts"]]
        calls, results = (sum(key in part for part in parts) for key in ("functionCall", "functionResponse"))
        if calls == results:
            await connection.reply(answered)
        else:
            await connection.reply({"error": {"code": 400, "message": words}}, "400 Bad Request")

    async with upstream(each(answer)) as up:
        config = settings({"g": {"kind": "google", "base_url": up.url, "api_key": "k"}}, ["g/gemini-3-x"])
        async with proxy(config, tmp_path) as p:
            assert (await p.chat(messages=[GO, said("a", "b"), result("a"), GO]))[0] == 200
            assert (len(up.posts), p.log.getvalue().count(NOTE)) == (2, 1)


async def test_what_misses_nothing_is_the_clients(tmp_path: Path) -> None:
    words = "An assistant message with 'tool_calls' must be followed by tool messages"
    async with upstream(each(strict(lambda asked: words, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            assert (await p.chat(messages=[GO, said("a"), result("a"), GO]))[0] == 400
            assert len(up.posts) == 1
