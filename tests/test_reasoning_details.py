"""OpenRouter's ``reasoning_details`` come back with the next turn, from clients that have no field for them.

Gemini 3 and Claude refuse the result of a call without them (MassGen issue 624, claude-code-router 1057).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.doors.replay.forms import REPLAYS
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.reasoning_details import ReasoningDetails
from manallm_proxy.providers.openai.reply import plain_reply
from tests import anthropic_stream
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, completion, each, upstream

SAID: dict[str, Any] = {"type": "reasoning.text", "format": "google-gemini-v1", "index": 0}
SEALED: dict[str, Any] = {"type": "reasoning.encrypted", "format": "google-gemini-v1", "index": 0, "data": "CiQB=="}
CALL = {"id": "tool_0_add", "type": "function", "function": {"name": "add", "arguments": "{}"}}
WHOLE = [{**SAID, "text": "Let me add."}, {**SEALED, "id": "tool_0_add"}]
"""What has to come back."""
CHUNKS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "", "reasoning": "Let me ", "reasoning_details": [{**SAID, "text": "Let me "}]},
    {"content": "", "reasoning": "add.", "reasoning_details": [{**SAID, "text": "add."}]},
    {"content": None, "tool_calls": [{"index": 0, **CALL}], "reasoning_details": WHOLE[1:]},
]
MESSAGE = {"content": None, "reasoning": "Let me add.", "reasoning_details": WHOLE, "tool_calls": [CALL]}
TOOLS = [{"name": "add", "input_schema": {"type": "object"}}]
FUNCTIONS = [{"type": "function", "name": "add", "parameters": {"type": "object"}}]
HI = {"role": "user", "content": "hi"}


async def openrouter(connection: Connection, seen: Seen) -> None:
    """Calls a tool, and says a word once it has the result."""
    if any(message["role"] == "tool" for message in seen.json["messages"]):
        await connection.reply(completion())
        return
    row = {"id": "gen-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    if not seen.json.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", **MESSAGE}, "finish_reason": "tool_calls"}
        await connection.reply({**row, "object": "chat.completion", "choices": [choice]})
        return
    await connection.head()
    for delta, finish in ((delta, None) for delta in CHUNKS):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await connection.chunk(b"data: " + json.dumps({**row, "choices": [choice]}).encode() + b"\n\n")
    last = {"index": 0, "delta": {"content": ""}, "finish_reason": "tool_calls"}
    await connection.chunk(b"data: " + json.dumps({**row, "choices": [last]}).encode() + b"\n\n" + DONE)
    await connection.end()


async def ask(p: Proxy, path: str, body: dict[str, Any], *, stream: bool) -> Any:
    """The answer; of a stream as its events add up."""
    async with p.client.post(p.url + path, json={**body, "stream": stream}) as response:
        raw = await everything(response)
        assert response.status == 200, raw
    if not stream:
        return json.loads(raw)
    if path == "/v1/messages":
        return anthropic_stream.message(raw)
    return json.loads(raw.rstrip().rpartition(b"data: ")[2])["response"]


def turn(posted: Seen) -> dict[str, Any]:
    """The assistant's turn in a request that a provider got."""
    said: dict[str, Any] = posted.json["messages"][1]
    return said


@pytest.mark.parametrize("stream", [True, False])
async def test_from_the_thinking_blocks_of_messages(tmp_path: Path, stream: bool) -> None:
    """Once more as they were, and only to whom they are from: a strict server refuses such a member."""
    async with upstream(each(openrouter)) as one, upstream(each(openrouter)) as other:
        async with proxy(settings({"or": openai(one.url), "groq": openai(other.url)}), tmp_path) as p:
            asked = {"model": "or/m", "max_tokens": 99, "tools": TOOLS, "messages": [HI]}
            said = (await ask(p, "/v1/messages", asked, stream=stream))["content"]
            assert [(block["type"], block.get("thinking")) for block in said] == [
                ("thinking", "Let me add."),
                ("tool_use", None),
            ]
            result = {"type": "tool_result", "tool_use_id": "tool_0_add", "content": "3"}
            history = [HI, {"role": "assistant", "content": said}, {"role": "user", "content": [result]}]
            for model in ("or/m", "groq/m"):
                await ask(p, "/v1/messages", {**asked, "model": model, "messages": history}, stream=False)
            spoken = {"role": "assistant", "content": None, "tool_calls": [CALL]}
            assert turn(one.posts[-1]) == {**spoken, "reasoning_details": WHOLE}
            assert turn(other.posts[-1]) == spoken


@pytest.mark.parametrize("kept", ["store", "include", "items"])
@pytest.mark.parametrize("stream", [True, False])
async def test_from_the_items_of_responses(tmp_path: Path, stream: bool, kept: str) -> None:
    """From the store, and from a client that keeps its own history, with the whole of it, or without, as the Agents
    SDKs do."""
    async with upstream(each(openrouter)) as one, upstream(each(openrouter)) as other:
        async with proxy(settings({"or": openai(one.url), "groq": openai(other.url)}), tmp_path) as p:
            own = {"store": False, "include": ["reasoning.encrypted_content"]} if kept == "include" else {}
            asked = {"model": "or/m", "tools": FUNCTIONS, "input": [HI], **own}
            first = await ask(p, "/v1/responses", asked, stream=stream)
            assert [item["type"] for item in first["output"]] == ["reasoning", "function_call"]
            assert first["output"][0]["summary"] == [{"type": "summary_text", "text": "Let me add."}]
            result = {"type": "function_call_output", "call_id": "tool_0_add", "output": "3"}
            later = {"input": [HI, *first["output"], result]}
            if kept == "store":
                later = {"input": [result], "previous_response_id": first["id"]}
            for model in ("or/m", "groq/m"):
                await ask(p, "/v1/responses", {**asked, **later, "model": model}, stream=False)
            spoken = {"role": "assistant", "content": None, "tool_calls": [CALL]}
            assert turn(one.posts[-1]) == {**spoken, "reasoning_details": WHOLE}
            assert turn(other.posts[-1]) == spoken


def test_parts_of_one_text_are_one() -> None:
    """With the signature of the last of them. What is encrypted is whole, and so is what has no index."""
    signed = {"type": "reasoning.text", "index": 1, "signature": "sig", "id": None}
    details = ReasoningDetails()
    details.add([{**SAID, "text": "a"}, {**SAID, "text": None}, {**SAID, "text": "b"}])
    assert not details.is_needed
    details.add([{**SAID, "index": 1, "text": "c"}, signed, SEALED, {**SEALED, "id": "x"}])
    loose = {"type": "reasoning.summary", "summary": "d"}
    details.add([loose, loose, {"type": 3}, {}])
    assert details.is_needed
    assert details.whole() == [
        {**SAID, "text": "ab"},
        {**SAID, "index": 1, "text": "c", "signature": "sig"},
        *(SEALED, {**SEALED, "id": "x"}, loose, loose, {"type": 3}, {}),
    ]


TEXT = st.text("ab", max_size=2) | st.none()


@given(st.lists(st.tuples(st.integers(0, 1), TEXT, st.sampled_from([None, "s"])), max_size=6))
def test_no_text_is_lost(rows: list[tuple[int, str | None, str | None]]) -> None:
    details = ReasoningDetails()
    for index, text, signature in rows:
        details.add([{"type": "reasoning.text", "index": index, "text": text, "signature": signature}])
    assert "".join(row["text"] or "" for row in details.whole()) == "".join(text or "" for _, text, _ in rows)
    assert details.is_needed == any(signature for _, _, signature in rows)


def test_too_many_are_refused() -> None:
    details = ReasoningDetails(limit=2)
    details.add([SEALED, SEALED])
    with pytest.raises(BadResponse, match=r"more than 2 "):
        details.add([SEALED])


def test_an_answer_with_them_is_not_plain_text() -> None:
    """Which is read in a shorter way."""
    body = completion()
    assert plain_reply(encode(body)) is not None
    body["choices"][0]["message"]["reasoning_details"] = []
    assert plain_reply(encode(body)) is not None
    body["choices"][0]["message"]["reasoning_details"] = [SEALED]
    assert plain_reply(encode(body)) is None


def test_a_stream_that_is_kept_has_them_as_a_whole_answer_has() -> None:
    """A text and what is encrypted may have one index, and are two."""
    row = {"id": "gen-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    steps: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in CHUNKS]
    steps.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    stream = b"".join([b"data: " + encode({**row, "choices": [step]}) + b"\n\n" for step in steps]) + DONE
    whole = json.loads(REPLAYS["chat/completions"].to_whole(stream, None) or b"")
    assert whole["choices"][0]["message"]["reasoning_details"] == WHOLE
