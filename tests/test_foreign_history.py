"""A chat goes on with another target, though what the first one left in it is refused there.

A client sends back all that it was given: reasoning, signatures, ids. The refusals are those that were reported of the
real servers. For signatures and for Messages and Responses without a translation: `test_foreign_signatures.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.providers.mending.history import IDS, REASONING, SIGNATURES, refused_members, refuses_signatures
from tests.histories import AWAY, GO, HISTORY, LONG, ODD, PLAIN, RESPONSE, SIGNED, TOOL_TURNS, called, strict
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

NOTED = ("reasoning left out", "signatures of calls left out", "ids of calls shortened")


def groq(asked: Any) -> str:
    """One member at a time (janhq/jan issue 8136; hermes-agent pull request 38543 for the other one)."""
    for n, message in enumerate(asked["messages"]):
        if "reasoning_content" in message:
            return (
                f"'messages.{n}' : for 'role:assistant' the following must be satisfied"
                f"[('messages.{n}' : property 'reasoning_content' is unsupported)]"
            )
        for m, call in enumerate(message.get("tool_calls", ())):
            if "extra_content" in call:
                return f"Extra inputs are not permitted, field: 'messages[{n}].tool_calls[{m}].extra_content'"
    return ""


def mistral(asked: Any) -> str:
    """All at once (crush issue 1590)."""
    rows: list[tuple[object, ...]] = (
        [("reasoning_content",)] if any("reasoning_content" in m for m in asked["messages"]) else []
    )
    if any("extra_content" in call for m in asked["messages"] for call in m.get("tool_calls", ())):
        rows.append(("tool_calls", 0, "extra_content"))
    places = [{"type": "extra_forbidden", "loc": ["body", "messages", 1, "assistant", *row]} for row in rows]
    return json.dumps(places) if rows else ""


@pytest.mark.parametrize(("refuses", "requests"), [(groq, 3), (mistral, 2)])
@pytest.mark.parametrize("stream", [True, False])
async def test_reasoning_of_another_target(
    refuses: Callable[[Any], str], requests: int, stream: bool, tmp_path: Path
) -> None:
    """The fallback answered 400, and with it the conversation was over. All other bytes stay the client's."""
    async with upstream(each(AWAY)) as first, upstream(each(strict(refuses, answers))) as second:
        providers = {"google": {"kind": "google", "base_url": first.url, "api_key": "k"}, "p": openai(second.url)}
        async with proxy(settings(providers), tmp_path) as p:
            asked = {"model": "mana/test", "messages": HISTORY, "stream": stream, "seed": 2**62}
            for expected in (requests, requests + 1):  # from then on it is known
                async with p.client.post(p.url + "/v1/chat/completions", json=asked) as response:
                    assert (response.status, b"Hel" in await response.read()) == (200, True)
                assert len(second.posts) == expected
                assert second.posts[-1].json["messages"] == PLAIN
            assert b'"arguments": "{\\"a\\":1.0}"' in second.posts[-1].body
            half = [{**HISTORY[0], "content": "\ud800"}, *HISTORY[1:]]
            assert (await p.chat(model="p/m", messages=half))[0] == 200
            assert second.posts[-1].json["messages"] == [{**GO, "content": "\ufffd"}, *PLAIN[1:]]
            await until(lambda: "history: reasoning left out" in p.log.getvalue())
            assert "history: signatures of calls left out" in p.log.getvalue()
            told = await p.chat(model="p/m", messages=[GO])
            assert (told[0], len(second.posts)) == (200, requests + 3)


@pytest.mark.parametrize("first", ["stream_options", "ids"])
async def test_a_server_that_refuses_all_of_it_one_by_one(first: str, tmp_path: Path) -> None:
    """And does not know ``stream_options``, for which the client did not ask."""
    ids = "Tool call id was c1 but must be a-z, A-Z, 0-9, with a length of 9."

    def refuses(asked: Any) -> str:
        odd = {
            "stream_options": "unknown field: stream_options" if "stream_options" in asked else "",
            "members": groq(asked),
            "ids": ids if b"c1" in json.dumps(asked).encode() else "",
        }
        return next(filter(None, (odd.pop(first), *odd.values())), "")

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for posts in (5, 6):
            status, body, _ = await p.stream(messages=HISTORY)
            assert (status, b"Hel" in body, len(up.posts)) == (200, True, posts)


async def test_only_what_is_refused_is_left_out(tmp_path: Path) -> None:
    """A server of Gemini's needs its signatures, whatever else it refuses."""

    def refuses(asked: Any) -> str:
        return "Unknown name 'reasoning_content'" if any("reasoning_content" in m for m in asked["messages"]) else ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for _ in range(2):
            assert (await p.chat(model="p/m", messages=HISTORY))[0] == 200
        assert up.posts[-1].json["messages"][1]["tool_calls"] == [called(extra_content=SIGNED)]
        assert len(up.posts) == 3


async def test_a_refusal_that_nothing_would_mend(tmp_path: Path) -> None:
    """It is the client's to read, after one request."""
    says = strict(lambda asked: "property 'reasoning_content' is unsupported", answers)
    async with upstream(each(says)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        code, told, _ = await p.chat(model="p/m", messages=[GO])
        assert (code, len(up.posts)) == (400, 1) and "unsupported" in told["error"]["message"]
        odd = [{**HISTORY[1], "tool_calls": 5}, {**HISTORY[1], "tool_calls": [3, {"extra_content": 1}]}, GO]
        assert (await p.chat(model="p/m", messages=odd))[0] == 400


def test_what_is_refused() -> None:
    for words in (b"messages[2].reasoning: reasoning is not supported with this model", b"unknown field 'reasoning'"):
        assert refused_members(words) == {REASONING}
    assert refused_members(b"Unknown parameter: 'messages[1].tool_calls[0].extra_content'.") == {SIGNATURES}
    assert refused_members(b"extra_content, reasoning_content: Extra inputs are not permitted") == {
        REASONING,
        SIGNATURES,
    }
    assert refused_members(b"Invalid 'messages[3].tool_call_id': string too long. Expected") == {IDS}
    assert refused_members(b"reasoning_content is missing") == {"needs_reasoning_content"}
    assert refused_members(b"`reasoning` of the last turn must be passed back") == {"needs_reasoning"}
    for words in (b"max_tokens is missing", b"unsupported: 'reasoning_effort'", b"extra_content is missing"):
        assert not refused_members(words)
    for words in (
        b"Corrupted thought signature.",
        b"Unable to submit request because Thought signature is not valid.",
        b"Invalid thought signature.",
        b"messages.1.content.0: Invalid `signature` in `thinking` block",
        b"messages.3: Invalid signature in thinking block",
        b"messages.647.content.0.thinking.signature: Field required",
        b"Function call is missing a thought_signature in functionCall parts.",
    ):
        assert refuses_signatures(words)
    for words in (b"the signature of f() is missing", b"thinking is not supported", b""):
        assert not refuses_signatures(words)


async def test_what_a_user_says_after_a_tools_result(tmp_path: Path) -> None:
    """In Anthropic's API it is the same turn, Mistral's models want an answer before it (LiteLLM issue 17761)."""

    def refuses(asked: Any) -> str:
        roles = [message["role"] for message in asked["messages"]]
        return "Unexpected role 'user' after role 'tool'" if ("tool", "user") in pairwise(roles) else ""

    words = {"type": "text", "text": "and?"}
    turns = [*TOOL_TURNS[:2], {"role": "user", "content": [*TOOL_TURNS[2]["content"], words]}]
    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for requests in (2, 3):
            assert (await p.post("/v1/messages", {"model": "p/m", "max_tokens": 9, "messages": turns}))[0] == 200
            sent = up.posts[-1].json["messages"]
            assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
            assert (sent[4]["content"], sent[5]["content"], len(up.posts)) == ("OK.", "and?", requests)
        assert (await p.chat(model="p/m", messages=[*PLAIN, GO, *PLAIN]))[0] == 200
        assert up.posts[-1].json["messages"] == [*PLAIN, {"role": "assistant", "content": "OK."}, GO, *PLAIN]


@pytest.mark.parametrize(
    "words",
    [
        "The `reasoning_content` in the thinking mode must be passed back to the API.",
        "Missing `reasoning_content` field in the assistant message at message index 1. For more information",
        "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1",
    ],
)
@pytest.mark.parametrize("door", ["chat", "messages"])
async def test_a_model_that_wants_a_thought_in_each_turn(door: str, words: str, tmp_path: Path) -> None:
    """DeepSeek and Kimi, after the turns of others who did not think (pi issue 3636); it is known from then on."""

    def refuses(asked: Any) -> str:
        said = [message for message in asked["messages"] if message["role"] == "assistant"]
        return words if any(not message.get("reasoning_content") for message in said) else ""

    thought = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}
    empty = {**PLAIN[1], "reasoning_content": ""}
    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for requests in (2, 3):
            if door == "chat":
                assert (await p.chat(messages=[*PLAIN, thought, GO, empty, PLAIN[2]]))[0] == 200
                turns = [{**PLAIN[1], "reasoning_content": " "}, thought, {**empty, "reasoning_content": " "}]
                assert up.posts[-1].json["messages"] == [GO, turns[0], PLAIN[2], turns[1], GO, turns[2], PLAIN[2]]
            else:
                body = {"model": "p/m", "max_tokens": 9, "messages": TOOL_TURNS}
                assert (await p.post("/v1/messages", body))[0] == 200
            assert len(up.posts) == requests


def two_calls(*ids: str) -> list[Any]:
    """A conversation of a chat in which two tools were called."""
    calls = [{**called(), "id": id_} for id_ in ids]
    results = [{"role": "tool", "tool_call_id": id_, "content": "3"} for id_ in reversed(ids)]
    return [GO, {"role": "assistant", "content": None, "tool_calls": calls}, *results]


async def test_ids_that_mistral_does_not_accept(tmp_path: Path) -> None:
    """ "Must be a-z, A-Z, 0-9, with a length of 9" (opencode issue 1680). They stay apart, and each its result's."""

    def refuses(asked: Any) -> str:
        ids = [call["id"] for message in asked["messages"] for call in message.get("tool_calls", ())]
        odd = [id_ for id_ in ids if len(id_) != 9 or not id_.isalnum()]
        return f"Tool call id was {odd[0]} but must be a-z, A-Z, 0-9, with a length of 9." if odd else ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for expected, ids in ((2, (LONG, ODD)), (3, (LONG, ODD)), (4, ("abcdefgh1", LONG))):
            history = two_calls(*ids)
            assert (await p.chat(model="p/m", messages=history))[0] == 200
            sent = up.posts[-1].json["messages"]
            short = [call["id"] for call in sent[1]["tool_calls"]]
            assert sent == two_calls(*short) and len({*short}) == 2
            assert len(up.posts) == expected  # from then on it is known
        assert short[0] == "abcdefgh1"
        body = {"model": "p/m", "max_tokens": 9, "messages": TOOL_TURNS}
        assert (await p.post("/v1/messages", body))[0] == 200
        assert len(up.posts) == 5
        await until(lambda: p.log.getvalue().count("history: ids of calls shortened") == 4)


async def test_ids_that_are_null_are_none(tmp_path: Path) -> None:
    """SDKs send them back so, and then nothing of the history was changed."""

    def refuses(asked: Any) -> str:
        calls = [call for message in asked["messages"] for call in message.get("tool_calls") or ()]
        return "Tool call id was c1 but must be a-z, A-Z, 0-9." if any(call["id"] == "c1" for call in calls) else ""

    none = {"tool_calls": None, "tool_call_id": None}
    asked = [
        {**GO, **none},
        {**PLAIN[1], "tool_call_id": None},
        PLAIN[2],
        {"role": "assistant", "content": "a", **none},
    ]
    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.chat(model="p/m", messages=[*asked, GO]))[0] == 200
        sent = up.posts[-1].json["messages"]
        assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] != "c1"
        assert (sent[0], sent[3:]) == (asked[0], [asked[3], GO])


async def test_ids_that_are_too_long_for_openai(tmp_path: Path) -> None:
    """40 characters in a chat (agno issue 5382), 64 in Responses."""

    def refuses(asked: Any) -> str:
        if "input" in asked:
            odd = any(len(item.get("call_id", "")) > 64 for item in asked["input"])
            return (
                "Invalid 'input[1].call_id': string too long. Expected a string with maximum length 64" if odd else ""
            )
        odd = any(len(call["id"]) > 40 for message in asked["messages"] for call in message.get("tool_calls", ()))
        return "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with" if odd else ""

    async def answer(connection: Connection, seen: Seen) -> None:
        await (connection.reply(RESPONSE) if "input" in seen.json else answers(connection, seen))

    items = [
        GO,
        {"type": "function_call", "call_id": LONG, "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": LONG, "output": "3"},
    ]
    async with upstream(each(strict(refuses, answer))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["chat", "responses"])}), tmp_path) as p:
            assert (await p.chat(model="p/m", messages=two_calls(LONG, "c2")))[0] == 200
            sent = up.posts[-1].json["messages"]
            assert sent == two_calls(*[call["id"] for call in sent[1]["tool_calls"]])
            assert (await p.post("/v1/responses", {"model": "p/m", "input": items}))[0] == 200
            sent = up.posts[-1].json["input"]
            assert sent == [GO, *[{**item, "call_id": sent[1]["call_id"]} for item in items[1:]]]
    assert len(up.posts) == 4


async def test_the_log_says_what_was_changed_of_this_history(tmp_path: Path) -> None:
    """Not all that its target is known to refuse: of ids alone, reasoning was said to be left out, too."""

    def refuses(asked: Any) -> str:
        if words := groq(asked):
            return words
        long = [call for message in asked["messages"] for call in message.get("tool_calls", ()) if call["id"] == "c1"]
        return "Tool call id was c1 but must be a-z, A-Z, 0-9, with a length of 9." if long else ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for history in (HISTORY, PLAIN):
            assert (await p.chat(model="p/m", messages=history))[0] == 200
        await until(lambda: p.log.getvalue().count('"event":"request"') == 2)
        lines = [json.loads(line) for line in p.log.getvalue().splitlines() if '"event":"request"' in line]
        reasoning, signatures, ids = (f"history: {what}" for what in NOTED)
        assert set(lines[0]["notes"]) == {reasoning, signatures, ids}
        assert lines[1]["notes"] == [ids]
