"""Parts of tool calls as OpenAI-compatible servers send them, well or badly, through each door that translates them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, ToolCall
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.providers.openai.call_parts import CallParts
from tests.anthropic_stream import message
from tests.ollama_lines import lines_of
from tests.proxy import HI, Proxy, everything, openai, proxy, settings
from tests.responses import checked
from tests.upstreams import DONE, Connection, Seen, each, upstream

Part = tuple[str | None, str | None, str | None]
"""Id, name and arguments; None: the member is missing. All have index 0."""
Call = tuple[str, Any]

TRANSCRIPTS: dict[str, tuple[list[Part], list[Call]]] = {
    "as it should be": ([("a", "f", ""), (None, None, '{"x":'), (None, None, "1}")], [("f", {"x": 1})]),
    "the name again at the end": ([("a", "f", '{"x":1}'), (None, "f", "")], [("f", {"x": 1})]),
    "the name and the id again at the end": ([("a", "f", '{"x":1}'), ("a", "f", "")], [("f", {"x": 1})]),
    "an empty id": ([("a", "f", '{"x":1}'), ("", "f", "")], [("f", {"x": 1})]),
    "no arguments at the end": ([("a", "f", '{"x":1}'), (None, "f", None)], [("f", {"x": 1})]),
    "blanks at the end": ([("a", "f", '{"x":1}'), (None, "f", " \n")], [("f", {"x": 1})]),
    "twice at the end": ([("a", "f", '{"x":1}'), (None, "f", ""), (None, "f", "")], [("f", {"x": 1})]),
    "the name with each part": ([(None, "f", '{"x"'), (None, "f", ":1}"), (None, "f", "")], [("f", {"x": 1})]),
    "another id with each part": ([("a", "f", '{"x"'), ("b", "f", ":1}"), ("c", "f", "")], [("f", {"x": 1})]),
    "an empty part in the middle": ([("a", "f", '{"x"'), (None, "f", ""), (None, None, ":1}")], [("f", {"x": 1})]),
    "an object without members": ([("a", "f", "{}"), (None, "f", "")], [("f", {})]),
    "the id before the name": ([("a", None, ""), (None, "f", ""), (None, None, '{"x":1}')], [("f", {"x": 1})]),
    "arguments before the name": ([("a", None, '{"x"'), (None, "f", ":1"), (None, None, "}")], [("f", {"x": 1})]),
    "the name before the id": ([(None, "f", ""), ("a", None, '{"x":1}')], [("f", {"x": 1})]),
    # calls that are no phantoms
    "no arguments at all": ([("a", "f", "")], [("f", {})]),
    "a call of the same tool": (
        [("a", "f", '{"x":1}'), ("b", "f", ""), (None, None, '{"x":2}')],
        [("f", {"x": 1}), ("f", {"x": 2})],
    ),
    "a call of the same tool without an id": (
        [(None, "f", '{"x":1}'), (None, "f", ""), (None, None, '{"x":2}'), (None, "f", "")],
        [("f", {"x": 1}), ("f", {"x": 2})],
    ),
    "blanks in the middle of a text": (
        [("a", "f", '{"x":"a'), ("a", "f", " "), (None, "f", "  "), ("a", "f", 'b"}')],
        [("f", {"x": "a   b"})],
    ),
    "blanks between two calls": (
        [("a", "f", '{"x":1}'), (None, "f", " "), ("b", "f", '{"x":2}')],
        [("f", {"x": 1}), ("f", {"x": 2})],
    ),
    "whole calls without an id": ([(None, "f", '{"x":1}'), (None, "f", '{"x":2}')], [("f", {"x": 1}), ("f", {"x": 2})]),
    "another tool without arguments": ([("a", "f", '{"x":1}'), ("b", "g", "")], [("f", {"x": 1}), ("g", {})]),
    "the same tool without arguments": ([("a", "f", '{"x":1}'), ("b", "f", "")], [("f", {"x": 1}), ("f", {})]),
    "another tool after an empty part": (
        [("a", "f", '{"x":1}'), (None, "f", ""), ("b", "g", '{"y":2}')],
        [("f", {"x": 1}), ("g", {"y": 2})],
    ),
}


def row(part: Part) -> dict[str, Any]:
    id_, name, arguments = part
    function = {"name": name, "arguments": arguments}
    call = {"index": 0, "id": id_, "type": "function", "function": {k: v for k, v in function.items() if v is not None}}
    return {key: value for key, value in call.items() if value is not None}


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"
    )


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"type": "object"}}


async def of_messages(p: Proxy) -> tuple[list[Call], list[str]]:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in "fg"]
    body = {**HI, "max_tokens": 9, "stream": True, "tools": tools}
    async with p.client.post(f"{p.url}/v1/messages", json=body) as response:
        made = message(await everything(response))
    assert made["stop_reason"] == "tool_use"
    blocks = [block for block in made["content"] if block["type"] == "tool_use"]
    return [(block["name"], block["input"]) for block in blocks], [block["id"] for block in blocks]


async def of_responses(p: Proxy) -> tuple[list[Call], list[str]]:
    body = {"input": "hi", "stream": True, "tools": [{"type": "function", **tool(name)} for name in "fg"]}
    async with p.client.post(f"{p.url}/v1/responses", json=body) as response:
        last = checked(await everything(response))[-1]
    items = [item for item in last["response"]["output"] if item["type"] == "function_call"]
    return [(item["name"], json.loads(item["arguments"])) for item in items], [item["call_id"] for item in items]


async def of_ollama(p: Proxy) -> tuple[list[Call], list[str]]:
    body = {**HI, "model": "mana/test", "tools": [{"type": "function", "function": tool(name)} for name in "fg"]}
    async with p.client.post(f"{p.url}/api/chat", json=body) as response:
        rows = lines_of(await everything(response))
    calls = [call for row in rows for call in row["message"].get("tool_calls", ())]
    found = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return found, [call["id"] for call in calls]


@pytest.mark.parametrize("what", TRANSCRIPTS)
async def test_no_call_is_made_up_and_none_is_lost(what: str, tmp_path: Path) -> None:
    """Each door tells the same calls, each under an id of its own; those that the server gives are kept."""
    parts, calls = TRANSCRIPTS[what]

    async def says(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for part in parts:
            await connection.chunk(event({"tool_calls": [row(part)]}))
        await connection.chunk(event({}, "tool_calls") + DONE)
        await connection.end()

    async with upstream(each(says)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for door in (of_messages, of_responses, of_ollama):
            found, ids = await door(p)
            assert found == calls, door
            assert len(set(ids)) == len(calls) and all(ids), door
            if parts[0][0]:
                assert ids[0] == parts[0][0], door


CALLS = st.lists(
    st.tuples(st.sampled_from("fg"), st.text('{}a:" \\n1', max_size=12), st.lists(st.integers(0, 12), max_size=4)),
    min_size=1,
    max_size=4,
)


@given(CALLS, st.randoms(use_true_random=False))
def test_what_is_sent_as_it_should_be_passes_unchanged(calls: list[tuple[str, str, list[int]]], order: Random) -> None:
    """Each call under an index of its own, id and name in its first part, cut anywhere, parts of all in any order."""
    waiting: list[list[ToolCall]] = []
    for index, (name, arguments, cuts) in enumerate(calls):
        places = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
        pieces = [arguments[a:b] for a, b in itertools.pairwise(places)]
        first = ToolCall(name, "", f"c{index}", index)
        waiting.append([first, *(ToolCall("", piece, "", index) for piece in pieces)])
    sent: list[ToolCall] = []
    while waiting:
        each = order.choice(waiting)
        sent.append(each.pop(0))
        waiting = [parts for parts in waiting if parts]
    reader = CallParts()
    assert [part for each in sent for part in reader.read(Delta(tool_calls=(each,))).tool_calls] == sent


PARTS = st.builds(
    ToolCall,
    st.sampled_from(["", "f", "g"]),
    st.sampled_from(["", " ", "{}", '{"x"', ":1}"]),
    st.sampled_from(["", "a", "b"]),
)


@given(st.lists(PARTS, max_size=12))
def test_no_arguments_are_lost_whatever_comes(parts: list[ToolCall]) -> None:
    """And what is named has an id, since a client answers by that. Without any name it is no call."""
    reader = CallParts()
    passed = [part for each in parts for part in reader.read(Delta(tool_calls=(each,))).tool_calls]
    if parts and not any(part.name for part in parts):
        with pytest.raises(BadResponse, match="without a name"):
            reader.read(Delta(finish="tool_calls"))
        return
    passed += reader.read(Delta(finish="tool_calls")).tool_calls
    assert "".join(part.arguments for part in passed) == "".join(part.arguments for part in parts)
    assert all(part.id for part in passed if part.name)
