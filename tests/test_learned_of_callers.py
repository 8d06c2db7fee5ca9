"""What one caller makes a provider say teaches nothing that is wrong for the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.providers.mending.evidence import LEARNED, is_for_all
from manallm_proxy.providers.mending.history import NEEDED
from manallm_proxy.providers.native import evidence as native
from tests.histories import GO, HISTORY, PLAIN, THOUGHT, called, strict
from tests.proxy import openai, proxy, settings
from tests.servers import ollama_server
from tests.stall import raw_post
from tests.strict_messages import refuses
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

SAID = {"role": "assistant", "content": "B"}
SYSTEM = {"role": "system", "content": "S"}


def quotes_what_is_no_text(asked: Any) -> str:
    """As pydantic's servers and Google's do: the place, and what is there."""
    for message in asked["messages"]:
        for key, kind in (("reasoning_content", str), ("reasoning_details", list), ("audio", dict), ("name", str)):
            if not isinstance(value := message.get(key, kind()), kind):
                return f"Invalid value at 'messages[0].{key}', {json.dumps(value)}"
        for call in message.get("tool_calls", ()):
            for key in call.get("extra_content", {}):
                if key != "google":
                    return f'Unknown name "{key}" at messages[0].tool_calls[0].extra_content: Cannot find field.'
    return ""


def quotes_long_texts(asked: Any) -> str:
    """A moderation's, or a limit's."""
    long = [
        message["reasoning_content"] for message in asked["messages"] if len(message.get("reasoning_content", "")) > 99
    ]
    return f"this is too much: {long[0]}" if long else ""


def limits_messages(asked: Any) -> str:
    first = asked["messages"][0]["content"]
    return f"at most 3 messages, but the first of yours is {first}" if len(asked["messages"]) > 3 else ""


LONG = "unknown 'reasoning_content' " + "x" * 99
ODD: list[tuple[Callable[[Any], str], list[Any], list[Any]]] = [
    (quotes_what_is_no_text, [GO, {**SAID, "reasoning_content": {"is": "unknown"}}, GO], HISTORY),
    (quotes_what_is_no_text, [GO, {**PLAIN[1], "tool_calls": [called(extra_content={"x": 1})]}, PLAIN[2]], HISTORY),
    (quotes_what_is_no_text, [GO, {**SAID, "audio": ["unknown"]}, GO], [GO, {**SAID, "audio": {"id": "a"}}, GO]),
    (quotes_long_texts, [GO, {**SAID, "reasoning_content": LONG}, GO], HISTORY),
    (limits_messages, [{**GO, "content": "roles must alternate"}, GO, GO, GO], [GO, GO]),
    (limits_messages, [{**SYSTEM, "content": "System message must be the first"}, SYSTEM, GO, GO], [GO, SYSTEM, GO]),
]


@pytest.mark.parametrize(("refuses", "odd", "usual"), ODD)
async def test_what_is_odd_of_one_caller(
    refuses: Callable[[Any], str], odd: list[Any], usual: list[Any], tmp_path: Path
) -> None:
    """It may be served, without what was refused; the next one's history is sent as it is."""
    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.chat(model="p/m", messages=odd))[0] == 200
        assert len(up.posts) == 2
        assert (await p.chat(model="p/m", messages=usual))[0] == 200
        assert up.posts[-1].json["messages"] == usual


@pytest.mark.parametrize("member", ["reasoning", "annotations"])
@pytest.mark.parametrize("text", [r"an unknown \"%s\"", r"an unknown \u0027%s\u0027", "%s", "%s: it is unknown"])
async def test_a_members_name_in_quotes(text: str, member: str, tmp_path: Path) -> None:
    """Of the text, whichever way they are written, or of a server that quotes a text."""
    usual = [GO, {**SAID, "reasoning_content": "Hm.", "refusal": None, "annotations": []}, GO]
    key = "annotations" if member == "annotations" else "reasoning_content"

    def refuses(asked: Any) -> str:
        first = asked["messages"][0]["content"]
        has_key = any(key in message for message in asked["messages"])
        return f"unsupported value: '{first}'" if first != "go" and has_key else ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        odd = json.dumps(usual).replace("go", text % member, 1)
        body = f'{{"model":"p/m","messages":{odd}}}'.encode()
        told = await raw_post(p.port, "/v1/chat/completions", body)
        assert told.startswith(b"HTTP/1.1 200") or len(up.posts) == 1
        assert (await p.chat(model="p/m", messages=usual))[0] == 200
        assert up.posts[-1].json["messages"] == usual


@pytest.mark.parametrize("words", ["roles must alternate", r"roles \u006dust alternate", r"roles must\u0020alternate"])
async def test_words_of_a_refusal_in_a_text(words: str, tmp_path: Path) -> None:
    """Whichever way they are written; and to whichever kind of provider."""
    turns = json.dumps([GO] * 4).replace("go", words, 1)

    async def ollama(connection: Connection, seen: Seen) -> None:
        if told := limits_messages(seen.json):
            await connection.reply({"error": told}, "400 Bad Request")
        else:
            await ollama_server(connection, seen)

    async with upstream(each(strict(limits_messages, answers))) as up, upstream(each(ollama)) as box:
        providers = {"p": openai(up.url), "o": {"kind": "ollama", "base_url": box.url}}
        async with proxy(settings(providers), tmp_path) as p:
            for name, seen in (("p", up), ("o", box)):
                body = f'{{"model":"{name}/m","messages":{turns}}}'.encode()
                assert (await raw_post(p.port, "/v1/chat/completions", body)).startswith(b"HTTP/1.1 200")
                assert len(seen.posts) == 2
                assert (await p.chat(model=f"{name}/m", messages=[GO, GO]))[0] == 200
                assert len(seen.posts[-1].json["messages"]) == 2


async def test_what_is_only_quoted(tmp_path: Path) -> None:
    """With the history that was refused, of which a member is known to be refused by others: it is left out in vain."""

    def refuses(asked: Any) -> str:
        rows = asked["messages"]
        has_result = any(row["role"] == "tool" for row in rows)
        words = "An assistant message with 'tool_calls' must be followed by tool messages"
        return "" if has_result else f"unexpected input: {words}, got {json.dumps(rows)}"

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for messages, expected in (([*HISTORY[:2], GO], 3), (HISTORY, 4)):
            assert (await p.chat(model="p/m", messages=messages))[0] == 200
            assert len(up.posts) == expected
        assert up.posts[-1].json["messages"] == HISTORY


async def test_what_has_mended_nothing(tmp_path: Path) -> None:
    """A thought with a wrong signature, beside one without any, which this server takes."""

    def wrong(asked: Any) -> str:
        is_wrong = "Zm9yZWlnbg==" in json.dumps(asked["messages"])
        return "messages.1.content.0: Invalid `signature` in `thinking` block" if is_wrong else ""

    unsigned = {**THOUGHT, "signature": ""}
    answer = {"type": "text", "text": "Hi"}
    async with upstream(each(refuses(wrong))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            for thoughts, expected in (([THOUGHT, unsigned], 3), ([unsigned], 4)):
                messages = [GO, {"role": "assistant", "content": [*thoughts, answer]}, GO]
                assert (await p.post("/v1/messages", {"max_tokens": 9, "messages": messages}))[0] == 200
                assert len(up.posts) == expected
            assert up.posts[-1].json["messages"] == messages


async def test_words_of_a_refusal_in_what_only_an_ollama_gets(tmp_path: Path) -> None:
    """What its model thought, as its own clients send it back."""

    async def ollama(connection: Connection, seen: Seen) -> None:
        turns = seen.json["messages"]
        if len(turns) > 3:
            thoughts = " ".join(turn.get("thinking", "") for turn in turns)
            await connection.reply({"error": f"at most 3 messages, but yours were {thoughts}"}, "400 Bad Request")
        else:
            await ollama_server(connection, seen)

    thought = {**SAID, "thinking": "roles must alternate"}
    async with upstream(each(ollama)) as up:
        async with proxy(settings({"o": {"kind": "ollama", "base_url": up.url}}), tmp_path) as p:
            asked = {"model": "o/m", "messages": [GO, GO, GO, thought, GO], "stream": False}
            assert (await p.post("/api/chat", asked))[0] == 200
            assert (await p.chat(model="o/m", messages=[GO, GO]))[0] == 200
            assert len(up.posts[-1].json["messages"]) == 2


def test_what_a_usual_history_may_have() -> None:
    """Keys of its own, signs that some writers escape, and words that are in all prompts."""
    texts = (
        r"an unknown \u003ca\u003e is missing, \u0027\u0026\u0027, \u001b[0m, \n: reasoning, images, must be, \u2603"
    )
    history = [{**each, "name": "TEXT", "refusal": None, "annotations": []} for each in HISTORY]
    body = (
        json.dumps(
            {
                "messages": history,
                "max_tokens": 128_000,
                "max_completion_tokens": 9,
                "top_k": 40,
                "reasoning_effort": "low",
                "temperature": 0.7,
                "top_p": 1,
            }
        )
        .replace("TEXT", texts)
        .encode()
    )
    _, spans = split_object(body)
    call = Call(Endpoint.CHAT, RequestSummary("m", False, False, frozenset(), spans), body, "id")
    assert [what for what in LEARNED if not is_for_all(call, what)] == []
    assert [what for what in native.LEARNED if not native.is_for_all(call, what)] == []


@pytest.mark.parametrize("member", NEEDED.values())
def test_a_member_that_says_of_itself_that_it_is_missing(member: str) -> None:
    """As a server may quote it."""
    body = json.dumps({"messages": [GO, {**SAID, member: "is missing"}, GO]}).encode()
    _, spans = split_object(body)
    call = Call(Endpoint.CHAT, RequestSummary("m", False, False, frozenset(), spans), body, "id")
    assert [is_for_all(call, what) for what in NEEDED] == [False, False]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_who_refuses_both_forms_is_asked_for_each_once(path: str, tmp_path: Path) -> None:
    """Seven times before, to and fro."""

    def refuses(asked: Any) -> str:
        if path == "/v1/messages":
            return "Unsupported parameter: " + next(str(key) for key in asked if key.startswith("max_"))
        has = any(message.get("reasoning_content", " ") != " " for message in asked["messages"])
        blank = any("reasoning_content" in message for message in asked["messages"])
        return "property 'reasoning_content' is unsupported" if has or blank else "reasoning_content is missing"

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        messages = HISTORY if path == "/v1/chat/completions" else [GO]
        assert (await p.post(path, {"model": "p/m", "max_tokens": 9, "messages": messages}))[0] == 400
        assert len({post.body for post in up.posts}) == len(up.posts) <= 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_another_request_has_taught_meanwhile(path: str, tmp_path: Path) -> None:
    """Two were under way: the second one's refusal was read as one of what had not been sent, and was its client's."""
    learned = asyncio.Event()

    def refusal(asked: Any) -> str:
        if path == "/v1/messages":
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return words if "max_tokens" in asked else ""
        has_reasoning = any("reasoning_content" in message for message in asked["messages"])
        return "property 'reasoning_content' is unsupported" if has_reasoning else ""

    async def answered(connection: Connection, seen: Seen) -> None:
        words = refusal(seen.json)
        if words and b"second" in seen.body:
            await learned.wait()
        await strict(lambda asked: words, answers)(connection, seen)

    history = HISTORY if path == "/v1/chat/completions" else [GO]
    asked = {"model": "p/m", "max_tokens": 9, "messages": history}
    second = {**asked, "messages": [*history, {"role": "user", "content": "second"}]}
    async with upstream(each(answered)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        asking = asyncio.ensure_future(p.post(path, second))
        await until(lambda: len(up.posts) == 1)
        assert (await p.post(path, asked))[0] == 200
        learned.set()
        assert (await asking)[0] == 200
        assert len(up.posts) == 4


@pytest.mark.parametrize(
    ("key", "odd", "usual"), [("top_k", 0, 40), ("max_tokens", 10**8, 9), ("temperature", 1.9, 0.5)]
)
async def test_a_number_that_is_odd(key: str, odd: float, usual: float, tmp_path: Path) -> None:
    """The server knows the field, and does not support this value; what it does not know it ignores."""

    def refuses(asked: Any) -> str:
        return f"unsupported value: {key}={odd} is not supported" if asked.get(key) == odd else ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for number in (odd, usual):
            asked = {"model": "p/m", "max_tokens": 9, "messages": [GO], key: number}
            assert (await p.post("/v1/messages", asked))[0] == 200
        assert up.posts[-1].json[key] == usual
