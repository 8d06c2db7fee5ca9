"""Mistral's reasoning models: ``content`` is a list of blocks while they think, and a string, or one of text, after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from manallm_proxy.cli.chat import ChatResult, parts
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.replay.forms import REPLAYS
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.mending.history import refused_members
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests import anthropic_stream
from tests.proxy import HI, Proxy, everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, completion, each, upstream


def thinks(text: str) -> list[dict[str, Any]]:
    return [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]


def says(content: object, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(row).encode() + b"\n\n"


THINKING = [says(""), says(thinks("Hm")), says(thinks(", yes"))]
TEXTS = {
    "strings": [says("Hel"), says("lo")],
    "blocks": [says([{"type": "text", "text": text}]) for text in ("Hel", "lo")],
}
WHOLE = {"role": "assistant", "content": [*thinks("Hm, yes"), {"type": "text", "text": "Hello"}]}


async def mistral(connection: Connection, seen: Seen) -> None:
    """Its model's name says how it goes on once it has thought: only when it is let."""
    if not seen.json.get("stream"):
        choice = {"index": 0, "message": WHOLE, "finish_reason": "stop"}
        await connection.reply({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})
        return
    await connection.head()
    for frame in THINKING:
        await connection.chunk(frame)
    await connection.upstream.go.wait()
    for frame in (*TEXTS[seen.json["model"]], says("", "stop"), DONE):
        await connection.chunk(frame)
    await connection.end()


def told(door: str, body: bytes, *, stream: bool) -> tuple[str, str]:
    """Reasoning and text."""
    lines = body.split(b"\n")
    rows = [json.loads(line[5:]) for line in lines if line.startswith(b"data:")] if stream else [json.loads(body)]
    if door == "messages":
        blocks = [row.get("delta", {}) for row in rows] if stream else rows[0]["content"]
        return "".join(b.get("thinking", "") for b in blocks), "".join(b.get("text", "") for b in blocks)
    if door == "responses":
        thought, message = (rows[-1]["response"] if stream else rows[0])["output"]
        return thought["summary"][0]["text"], message["content"][0]["text"]
    said = [json.loads(line)["message"] for line in lines if line]
    return "".join(m.get("thinking", "") for m in said), "".join(m["content"] for m in said)


async def test_thinking_is_reasoning_through_every_door_that_translates(tmp_path: Path) -> None:
    """It commits: a model that thinks for long is not silent. It does not go back: Mistral refuses such a member."""

    async def post(p: Proxy, path: str, body: dict[str, Any], *, stream: bool) -> bytes:
        async with p.client.post(p.url + path, json={**body, "stream": stream}) as response:
            assert response.status == 200
            up.go.set()  # the head is here, and not a word was said
            return await everything(response)

    async with upstream(each(mistral)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for model in TEXTS:
            for door, path, body in (
                ("messages", "/v1/messages", {**HI, "max_tokens": 9}),
                ("responses", "/v1/responses", {"input": "hi"}),
                ("ollama", "/api/chat", HI),
            ):
                for stream in (True, False):
                    up.go.clear()
                    raw = await post(p, path, {"model": f"p/{model}", **body}, stream=stream)
                    assert told(door, raw, stream=stream) == ("Hm, yes", "Hello"), (door, model, stream)
        _, first, _ = await p.post("/v1/responses", {"model": "p/m", "input": "hi"})
        await p.post("/v1/responses", {"model": "p/m", "input": "go on", "previous_response_id": first["id"]})
        assert up.posts[-1].json["messages"][1] == {"role": "assistant", "content": "Hello"}


def test_a_terminal_shows_the_text_alone() -> None:
    """What is relayed is the provider's own form."""
    for texts in TEXTS.values():
        heard = ChatResult(0.0)
        told = b"".join([*THINKING, *texts, says("", "stop"), DONE])
        assert "".join(parts(told.splitlines(keepends=True), heard)) == "Hello"
        assert (heard.text, heard.error, heard.finish) == ("Hello", None, "stop")


def test_nothing_is_lost_of_an_answer_that_is_kept() -> None:
    """Where a list follows a string, or a string a list: a text is one of its blocks, and blocks of one kind go on."""
    replay = REPLAYS["chat/completions"]
    text = [{"type": "text", "text": "Hello"}]
    for frames, content in (
        ([*THINKING, *TEXTS["strings"]], [*thinks("Hm, yes"), *text]),
        ([*THINKING, says(text), says("!")], [*thinks("Hm, yes"), {"type": "text", "text": "Hello!"}]),
        (
            [says("Hel"), says("lo"), *THINKING, says("x")],
            [*text, *thinks("Hm, yes"), {"type": "text", "text": "x"}],
        ),
        ([says("Hello"), says(None)], "Hello"),
    ):
        whole = json.loads(replay.to_whole(b"".join((*frames, says("", "stop"), DONE)), None) or b"")
        assert whole["choices"][0]["message"]["content"] == content


REASONED = {"reasoning_content": "I add.", "reasoning": "I add."}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ADD = {"name": "add", "input_schema": {"type": "object"}}


async def kimi(connection: Connection, seen: Seen) -> None:
    """Refuses the result of a call without what was thought before it, under the name that its model's name says."""
    key, messages = seen.json["model"], seen.json["messages"]
    if any(message["role"] == "tool" for message in messages):
        if messages[1].get(key) == "I add.":
            await connection.reply(completion("3"))
        else:
            words = f"thinking is enabled but {key} is missing in assistant tool call message at index 1"
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        return
    if not seen.json.get("stream"):
        message = {"content": "", key: "I add.", "tool_calls": [CALL]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await connection.reply({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})
        return
    await connection.head()
    steps: list[dict[str, Any]] = [{"content": None, key: word} for word in ("I", " ", "add", ".")]
    for delta in (*steps, {"tool_calls": [{"index": 0, **CALL}]}):
        row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        await connection.chunk(b"data: " + json.dumps({**row, "choices": [choice]}).encode() + b"\n\n")
    await connection.chunk(says("", "tool_calls") + DONE)
    await connection.end()


@pytest.mark.parametrize("display", ["summarized", "omitted"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_was_thought_before_a_call_comes_back_with_its_result(
    stream: bool, display: str, tmp_path: Path
) -> None:
    """To whom it is from, under the name that it came by, whether the client saw it or not (new-api issue 3121)."""
    async with upstream(each(kimi)) as up, upstream(each(kimi)) as other:
        async with proxy(settings({"p": openai(up.url), "q": openai(other.url)}), tmp_path) as p:
            for model in REASONED:
                asked = {
                    "model": f"p/{model}",
                    "max_tokens": 9,
                    "tools": [ADD],
                    "stream": stream,
                    "thinking": {"type": "adaptive", "display": display},
                }
                async with p.client.post(p.url + "/v1/messages", json={**asked, **HI}) as response:
                    raw = await everything(response)
                content = (anthropic_stream.message(raw) if stream else json.loads(raw))["content"]
                assert [block["type"] for block in content] == ["thinking", "tool_use"]
                assert content[0]["thinking"] == ("I add." if display == "summarized" else "")
                result = {"type": "tool_result", "tool_use_id": "c1", "content": "3"}
                turns = [*HI["messages"], {"role": "assistant", "content": content}]
                later = {**asked, "stream": False, "messages": [*turns, {"role": "user", "content": [result]}]}
                assert (await p.post("/v1/messages", later))[0] == 200
                code, told, _ = await p.post("/v1/messages", {**later, "model": f"q/{model}"})
                assert (code, "is missing" in told["error"]["message"]) == (400, True), "it is of another provider"


@pytest.mark.parametrize("key", REASONED)
async def test_a_server_that_refuses_its_own_reasoning_does_not_get_it(key: str, tmp_path: Path) -> None:
    """Asked once more without, and from then on at once; what else it refuses is the client's to read."""

    async def groq(connection: Connection, seen: Seen) -> None:
        for message in seen.json["messages"]:
            if key in message:
                words = f"'messages.1' : for 'role:assistant' the property '{key}' is unsupported"
                await connection.reply({"error": {"message": words}}, "400 Bad Request")
                return
        choice = {"index": 0, "message": {"content": "Hello", key: "Hm."}, "finish_reason": "stop"}
        await connection.reply({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]})

    async with upstream(each(groq)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        asked = {"model": "p/m", "max_tokens": 9}
        _, first, _ = await p.post("/v1/messages", {**asked, **HI})
        later = [*HI["messages"], {"role": "assistant", "content": first["content"]}, *HI["messages"]]
        for posts in (3, 4):
            assert (await p.post("/v1/messages", {**asked, "messages": later}))[0] == 200
            assert len(up.posts) == posts
            assert up.posts[-1].json["messages"][1] == {"role": "assistant", "content": "Hello"}
        _, response, _ = await p.post("/v1/responses", {"model": "p/m", "input": "hi"})
        again = {"model": "p/m", "input": "go on", "previous_response_id": response["id"]}
        assert ((await p.post("/v1/responses", again))[0], len(up.posts)) == (200, 6)


def test_what_is_no_refusal_of_reasoning() -> None:
    for words in (b"max_tokens is missing", b"unknown reasoning", b"unsupported: 'reasoning_effort'", b""):
        assert not refused_members(words)
    for words in (b"unknown field 'reasoning'", b"extra_forbidden: messages.1.reasoning_content"):
        assert refused_members(words)


@pytest.mark.parametrize(
    "refusal",
    [
        b"property 'reasoning_content' is unsupported",
        b"Unsupported parameter: 'max_tokens'",
        b"Unknown parameter: 'top_k'",
    ],
)
def test_what_a_target_refuses_is_left_out_of_a_long_request_in_a_thread(refusal: bytes) -> None:
    """Also once that is known: then each later request is decoded, or copied, before it is sent."""
    message = {"role": "assistant", "content": "x", "reasoning_content": "Hm"}
    asked = {"model": "m", "messages": [message], "max_tokens": 9, "top_k": 4}
    body = json.dumps(asked, separators=(",", ":")).encode()
    relayed = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r", is_large=True)
    translated = evolve(relayed, relays=False)
    wire, entry = OpenAIWire(), Entry(Target("p", "m"))
    assert wire.splices(relayed) and wire.splices(translated)
    again = wire.reshape(translated, entry, 400, refusal)
    assert again is not None and len(json.loads(again.body)) in (3, 4) and again.body != body
    wire.remember_reshaped(entry, again)
    assert wire.splices(relayed) is (b"reasoning" not in refusal) and not wire.splices(translated)
    assert wire.request(translated, entry).body == again.body
