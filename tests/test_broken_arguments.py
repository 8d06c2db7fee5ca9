"""Arguments of calls in the history that are no JSON: a model wrote them once, and servers refuse them at each turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.providers.mending.broken_arguments import refuses_arguments
from tests.cases import every
from tests.histories import GO, RESPONSE, called
from tests.proxy import openai, proxy, settings
from tests.upstreams import Answer, Connection, Seen, answers, each, upstream
from tests.waiting import until

NOTE = "history: sent as {}: arguments that are no JSON object"
CUT, QUOTES = '{"path": "/tmp/a', '{"text": "He said "no""}'
VLLM = (400, "Unterminated string starting at: line 1 column 10 (char 9)")
LLAMA = (500, "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse error at line 1")
MINIMAX = (400, "invalid params, invalid function arguments json string, tool_call_id: c1 (2013)")


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def call(arguments: str, id_: str = "c1") -> dict[str, Any]:
    return called(id=id_, function={"name": "f", "arguments": arguments})


def history(*arguments: str) -> list[dict[str, Any]]:
    calls = [call(text, f"c{n}") for n, text in enumerate(arguments)]
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "?"} for each in calls]
    return [GO, {"role": "assistant", "content": None, "tool_calls": calls}, *results, GO]


def reading(status: int, words: str, answer: Answer) -> Answer:
    """Refuses a chat, or a request of Responses, in which a call has arguments that are no object."""

    async def answered(connection: Connection, seen: Seen) -> None:
        asked = seen.json
        texts = [item["arguments"] for item in asked.get("input", ()) if item.get("type") == "function_call"]
        for message in asked.get("messages", ()):
            texts += [each["function"]["arguments"] for each in message.get("tool_calls") or ()]
        if all(map(is_object, texts)):
            await answer(connection, seen)
        else:
            await connection.reply({"error": {"message": words}}, f"{status} No")

    return answered


@pytest.mark.parametrize("refusal", [VLLM, LLAMA, MINIMAX])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_goes_on(refusal: tuple[int, str], stream: bool, tmp_path: Path) -> None:
    """Relayed chats, too: the client's bytes are sent first, and then with ``{}`` in place of what was refused."""
    async with upstream(each(reading(*refusal, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            asked = {"model": "p/m", "messages": history(CUT, '{"a": 1.0}', QUOTES, ""), "stream": stream}
            async with p.client.post(p.url + "/v1/chat/completions", json=asked) as response:
                assert (response.status, b"Hel" in await response.read()) == (200, True)
            first, second = (post.json["messages"] for post in up.posts)
            assert first == asked["messages"]
            assert second == history("{}", '{"a": 1.0}', "{}", "{}")
            await until(lambda: NOTE in p.log.getvalue())


async def test_codex_goes_on(tmp_path: Path) -> None:
    """By Responses, translated."""
    items = [
        GO,
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": CUT},
        {"type": "function_call_output", "call_id": "c1", "output": "?"},
    ]
    async with upstream(each(reading(*VLLM, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            assert (await p.post("/v1/responses", {"model": "p/m", "input": items}))[0] == 200
            assert up.posts[-1].json["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


@pytest.mark.parametrize("refusal", [VLLM, LLAMA])
async def test_a_provider_of_responses(refusal: tuple[int, str], tmp_path: Path) -> None:
    """As vLLM and llama.cpp are, too."""

    async def native(connection: Connection, seen: Seen) -> None:
        await connection.reply(RESPONSE)

    items = [GO, {"type": "function_call", "call_id": "c1", "name": "f", "arguments": CUT}]
    async with upstream(each(reading(*refusal, native))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["responses"])}), tmp_path) as p:
            assert (await p.post("/v1/responses", {"model": "p/m", "input": items}))[0] == 200
            assert up.posts[-1].path == "/v1/responses"
            assert up.posts[-1].json["input"] == [items[0], {**items[1], "arguments": "{}"}]


async def test_what_is_not_about_arguments_is_asked_once(tmp_path: Path) -> None:
    """Nor is a history asked again in which nothing is broken."""
    for words, arguments in (("no such thing", CUT), (VLLM[1], "{}")):

        async def refuses(connection: Connection, seen: Seen, words: str = words) -> None:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")

        async with upstream(each(refuses)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            status, body, _ = await p.chat(model="p/m", messages=history(arguments))
            assert (status, body["error"]["message"], len(up.posts)) == (400, words, 1)


@every(
    [
        ("Expecting ',' delimiter: line 1 column 54 (char 53)", True),
        ("Invalid 'messages[1].tool_calls[0].function.arguments': expected valid JSON", True),
        ("invalid tool call arguments", True),
        ("Failed to parse tool call arguments as JSON", True),
        ("Tool call arguments are too long", False),
        ("the response is no JSON", False),
    ]
)
def test_how_they_are_refused(words: str, is_refused: bool) -> None:
    assert refuses_arguments(words.encode()) is is_refused
