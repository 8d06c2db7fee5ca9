"""A tool that must be called is called, also by servers that cannot be told so: their structured output is the call."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, ToolCall
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.forced_call import CallReader, as_structured_output, schema_of_calls
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.ollama.wire import OllamaWire
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, completion, each, upstream

ARGUMENTS = '{"city": "Graz \\"}]", "days": [1, {"x": {}}]}'
TEXT = f' {{ "name": "weather", "arguments": {ARGUMENTS} }} '
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or WEATHER}}


def read(*texts: str, finish: str = "stop") -> tuple[str, str, str | None]:
    """Name, arguments and finish reason."""
    reader = CallReader()
    deltas = [*(reader.read(Delta(content=text)) for text in texts), reader.read(Delta(finish=finish))]
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert not any(delta.content for delta in deltas)
    assert [bool(call.id) for call in calls] == [True, *([False] * (len(calls) - 1))][: len(calls)]
    return "".join(call.name for call in calls), "".join(call.arguments for call in calls), deltas[-1].finish


@given(st.lists(st.integers(0, len(TEXT)), max_size=6))
def test_the_text_is_the_call_wherever_it_is_cut(cuts: list[int]) -> None:
    """The arguments keep their bytes, and leave as they come."""
    at = [0, *sorted(cuts), len(TEXT)]
    texts = [TEXT[start:end] for start, end in pairwise(at)]
    assert read(*texts) == ("weather", ARGUMENTS, "tool_calls")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_any_arguments_pass(value: Any) -> None:
    """Whatever is in their strings."""
    for indent in (None, 1):
        text = json.dumps({"name": 'a"b', "arguments": {"v": value}}, indent=indent, ensure_ascii=False)
        name, arguments, finish = read(*text)
        assert (name, json.loads(arguments), finish) == ('a"b', {"v": value}, "tool_calls")


def test_a_tool_that_is_none_is_named() -> None:
    """By its place in the request, before anything is made of it, towards an OpenAI-compatible server and an Ollama."""
    for function, place in (
        ({}, "tools[0].function.name"),
        ({"name": "f", "parameters": "x"}, "tools[0].function.parameters"),
        ({"name": "f", "parameters": []}, "tools[0].function.parameters"),
    ):
        asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tool_choice": "required"}
        body = json.dumps(asked | {"tools": [{"type": "function", "function": function}]}).encode()
        call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r")
        for write in (
            lambda call: as_structured_output(call, "m", False),
            lambda call: OllamaWire().request(call, Entry(Target("ollama", "m"))),
        ):
            with pytest.raises(InvalidRequest) as refused:
                write(call)
            assert refused.value.param == place


def test_a_call_that_the_length_cut_has_that_finish_reason() -> None:
    """As any other answer that was cut."""
    assert read(TEXT[:40], finish="length")[2] == "length"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would rather talk",
        '{"arguments": {}, "name": "f"}',
        TEXT[:40],
        "x" * 9000,
        '{"name": "\\x", "arguments": {}}',
    ],
)
def test_text_that_is_no_call_is_a_failure(text: str) -> None:
    """The model or its server went by something else: another target may do better."""
    with pytest.raises(BadResponse):
        read(text)


def test_a_call_that_the_server_has_made_of_it_is_one() -> None:
    """As a server does that reads its own format: it passes, and what the model said beside it does not."""
    reader, call = CallReader(), ToolCall("f", "{}", "call_1")
    assert reader.read(Delta(content="So:", tool_calls=(call,))) == Delta(content="", tool_calls=(call,))
    assert reader.read(Delta(finish="tool_calls")).finish == "tool_calls"


def test_definitions_keep_their_meaning() -> None:
    """Two tools may use one name for two things."""
    a = tool("a", type="object", properties={"p": {"$ref": "#/$defs/P"}}, **{"$defs": {"P": {"type": "string"}}})
    b = tool("b", properties={"p": {"items": {"$ref": "#/definitions/P"}}}, definitions={"P": {"$ref": "#/$defs/Q"}})
    schema = schema_of_calls([a, b])
    assert schema["$defs"] == {"tool0_P": {"type": "string"}, "tool1_P": {"$ref": "#/$defs/Q"}}
    first, second = (each["properties"]["arguments"] for each in schema["anyOf"])
    assert first["properties"]["p"] == {"$ref": "#/$defs/tool0_P"}
    assert second["properties"]["p"] == {"items": {"$ref": "#/$defs/tool1_P"}}
    assert list(first) == ["type", "properties"]
    assert list(schema_of_calls([a])["properties"]) == ["name", "arguments"]


async def obedient(connection: Connection, seen: Seen) -> None:
    """An Ollama whose model writes what its format demands; without one it talks."""
    asked = seen.json
    wanted = asked.get("format")
    call = {"name": wanted["properties"]["name"]["const"], "arguments": {"city": "Graz"}} if wanted else None
    text = json.dumps(call) if call else "Let me talk first."
    row: dict[str, Any] = {"model": "m", "message": {"role": "assistant", "content": text}, "done": False}
    done = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
    if asked["stream"]:
        parts = [text[n : n + 3] for n in range(0, len(text), 3)]  # so many that they are recognised by their pattern
        rows = [{"model": "m", "message": {"role": "assistant", "content": part}, "done": False} for part in parts]
        await connection.head(content_type="application/x-ndjson")
        for each_row in [*rows, done]:
            await connection.chunk(json.dumps(each_row).encode() + b"\n")
        await connection.end()
    else:
        await connection.reply({**row, **done})


NAMED = {"type": "function", "function": {"name": "weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED])
async def test_ollama_is_made_to_call(choice: Any, tmp_path: Path) -> None:
    """Whole and streamed, in each form of the choice."""
    async with upstream(each(obedient)) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url}}, ["gpu/m"])
        tools = [tool("weather"), *([tool("other")] if choice != "required" else [])]
        async with proxy(config, tmp_path) as p:
            status, body, _ = await p.chat(tools=tools, tool_choice=choice)
            assert status == 200
            (answer,) = body["choices"]
            (call,) = answer["message"]["tool_calls"]
            assert call["function"] == {"name": "weather", "arguments": '{"city": "Graz"}'}
            assert (answer["message"]["content"], answer["finish_reason"]) == (None, "tool_calls")
            events = (await p.stream(tools=tools, tool_choice=choice))[1]
            assert b'"name":"weather"' in events and b'"finish_reason":"tool_calls"' in events
            assert b"[DONE]" in events
        assert [len(seen.json["tools"]) for seen in gpu.posts] == [1, 1]


async def test_on_the_other_doors_too(tmp_path: Path) -> None:
    """Agents' ``required``, Anthropic's ``any``."""
    async with upstream(each(obedient)) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url}}, ["gpu/m"])
        async with proxy(config, tmp_path) as p:
            function = {"type": "function", "name": "weather", "parameters": WEATHER}
            asked = {"model": "mana/test", "input": "hi", "tools": [function], "tool_choice": "required"}
            _, body, _ = await p.post("/v1/responses", asked)
            assert [(item["type"], item["name"]) for item in body["output"]] == [("function_call", "weather")]
            message = {"role": "user", "content": "hi"}
            block = {"name": "weather", "input_schema": WEATHER}
            choice = {"tools": [block], "tool_choice": {"type": "any"}}
            limits = {"model": "mana/test", "max_tokens": 9, "messages": [message]}
            _, body, _ = await p.post("/v1/messages", {**limits, **choice})
            assert (body["content"][0]["name"], body["stop_reason"]) == ("weather", "tool_use")


async def test_a_model_that_writes_text_instead_is_a_failure(tmp_path: Path) -> None:
    """The next target is asked, and nothing of the talk leaves."""

    async def talker(connection: Connection, seen: Seen) -> None:
        await obedient(connection, Seen(seen.method, seen.path, seen.headers, seen.body.replace(b'"format"', b'"x"')))

    async with upstream(each(talker)) as bad, upstream(each(obedient)) as good:
        providers = {name: {"kind": "ollama", "base_url": o.url} for name, o in (("bad", bad), ("good", good))}
        async with proxy(settings(providers), tmp_path) as p:
            for asking in (p.chat, p.stream):
                headers = (await asking(tools=[tool("weather")], tool_choice="required"))[2]
                assert headers["x-mana-llm-resolved"] == "good/m"


async def test_an_openai_compatible_server_may_be_made_to_call(tmp_path: Path) -> None:
    """``options: {force_tools: schema}``: its format is the call; without it the choice is the server's to heed. It is
    asked again without what it does not know, as for any other request."""

    async def server(connection: Connection, seen: Seen) -> None:
        asked = seen.json
        if "stream_options" in asked:
            await connection.reply({"error": {"message": "unknown field: stream_options"}}, "400 Bad Request")
            return
        if "response_format" not in asked:
            await connection.reply(completion())
            return
        name = asked["response_format"]["json_schema"]["schema"]["properties"]["name"]["const"]
        text = json.dumps({"name": name, "arguments": {}})
        if not asked.get("stream"):
            await connection.reply(completion(text))
            return
        parts = [text[n : n + 3] for n in range(0, len(text), 3)]
        rows = [{"index": 0, "delta": {"content": part}, "finish_reason": None} for part in parts]
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await connection.head(content_type="text/event-stream")
        for choice in (*rows, end):
            data = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            await connection.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end()

    async with upstream(each(server)) as own:
        providers = {"own": openai(own.url, options={"force_tools": "schema"})}
        async with proxy(settings(providers), tmp_path) as p:
            _, body, _ = await p.chat(tools=[tool("weather")], tool_choice="required")
            assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
            events = (await p.stream(tools=[tool("weather")], tool_choice="required"))[1]
            assert b'"name":"weather"' in events and b'"finish_reason":"tool_calls"' in events
            assert (await p.chat(tools=[tool("weather")]))[1]["choices"][0]["finish_reason"] == "stop"
        asked = own.posts[0].json
        assert "tools" not in asked and "tool_choice" not in asked
        assert "weather" in asked["messages"][-1]["content"]
        assert "response_format" not in own.posts[-1].json
