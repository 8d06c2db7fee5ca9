"""OpenAI's own SDKs on the Responses door: create, stream, parse, tools, state and errors; and the newest's types."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, ToolCall, Usage
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.providers.loopback import LoopbackProvider
from tests.needs import require
from tests.proxy import openai, proxy, settings
from tests.responses import FIELDS, FUNCTION, Opened
from tests.sdks import CLIENTS, HERE, INSTALLED, TOOL_STREAM, judged, python, run
from tests.upstreams import DONE, Connection, Seen, answers, chunk, completion, each, upstream


async def cloud(connection: Connection, seen: Seen) -> None:
    """An OpenAI-compatible server whose model's name says how it behaves."""
    model, streams = seen.json["model"], seen.json["stream"]
    if model == "tools":
        await connection.head()
        for frame in TOOL_STREAM:
            await connection.chunk(frame)
        await connection.end()
    elif model == "broken":
        await connection.head()
        await connection.chunk(chunk("one"))
        connection.writer.close()
    elif model == "structured" and streams:
        await connection.head()
        for frame in (chunk('{"total'), chunk('": 3}'), chunk(finish="stop"), DONE):
            await connection.chunk(frame)
        await connection.end()
    elif model == "structured":
        await connection.reply(completion('{"total": 3}'))
    else:
        await answers(connection, seen)


TEXT = st.text(max_size=5)
NAME = st.sampled_from(["add", "spawn", "a_b", "x" * 64])
FUNCTIONS = st.fixed_dictionaries(
    {"type": st.just("function"), "name": NAME, "parameters": st.just({"type": "object"}), "strict": st.booleans()}
)
CUSTOM = st.fixed_dictionaries({"type": st.just("custom"), "name": NAME}, optional={"description": TEXT})
NAMESPACES = st.fixed_dictionaries(
    {
        "type": st.just("namespace"),
        "name": NAME,
        "description": TEXT,
        "tools": st.lists(st.one_of(FUNCTIONS, CUSTOM), max_size=2),
    }
)
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "system", "developer"]),
        "content": st.one_of(TEXT, st.lists(st.builds(lambda t: {"type": "input_text", "text": t}, TEXT), max_size=2)),
    },
    optional={"type": st.just("message")},
)


def turn(name: str, arguments: str, output: str) -> list[dict[str, Any]]:
    """A call and its result."""
    call = {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": arguments}
    return [call, {"type": "function_call_output", "call_id": f"call_{name}", "output": output}]


ITEMS = st.builds(
    lambda first, rows, calls: [first, *rows, *(item for call in calls for item in call)],
    MESSAGES,
    st.lists(MESSAGES, max_size=2),
    st.lists(st.builds(turn, NAME, st.sampled_from(["{}", ""]), TEXT), max_size=2),
)
OPTIONAL = {
    "instructions": st.one_of(st.none(), TEXT),
    "metadata": st.dictionaries(TEXT, TEXT, max_size=2),
    "max_output_tokens": st.integers(1, 99),
    "parallel_tool_calls": st.booleans(),
    "reasoning": st.fixed_dictionaries({}, optional={"effort": st.sampled_from(["low", "high"])}),
    "store": st.booleans(),
    "temperature": st.floats(0, 2),
    "text": st.just({"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}),
    "tool_choice": st.sampled_from(["auto", "none"]),
    "tools": st.lists(st.one_of(FUNCTIONS, CUSTOM, NAMESPACES, st.just({"type": "web_search"})), max_size=3),
    "truncation": st.sampled_from(["auto", "disabled"]),
    "include": st.just(["reasoning.encrypted_content"]),
}
REQUESTS = st.fixed_dictionaries({"input": st.one_of(TEXT, ITEMS)}, optional=OPTIONAL)


async def both_ways(body: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """A response and a stream of events, answered by loopback."""
    opened, provider, entry = Opened(), LoopbackProvider("loopback"), Entry(Target("loopback", "echo"))
    whole = await opened.ask(**body)
    answer = await provider.complete(whole.call, entry)
    streamed = await opened.ask(**body, stream=True)
    stream = await provider.stream(streamed.call, entry)
    deltas: list[Delta] = []
    while not (batch := await stream.next()).done:
        deltas += batch.deltas
    events = streamed.stream(*deltas, *batch.deltas, usage=stream.usage)
    return whole.whole(*answer.choices, usage=answer.usage), events


async def everything_at_once(finish: str) -> list[dict[str, Any]]:
    """The events of an answer that has all that an answer may have."""
    token = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    page = {"type": "url_citation", "start_index": 0, "end_index": 2, "url": "https://x.org", "title": "X"}
    calls = ("add", "apply_patch", "agents__spawn")
    signature = {"extra_content": {"google": {"thought_signature": "c2ln"}}}
    tools = [FUNCTION, {"type": "custom", "name": "apply_patch"}]
    inside = {"type": "namespace", "name": "agents", "description": "", "tools": [{**FUNCTION, "name": "spawn"}]}
    door = await Opened().ask(tools=[*tools, inside], include=["reasoning.encrypted_content"], top_logprobs=1)
    return door.stream(
        Delta(reasoning="Hm."),
        Delta(content="Hi", logprobs={"content": [token]}, citations=(page,)),
        Delta(refusal="no"),
        Delta(images=("data:image/png;base64,aGk=",)),
        *(Delta(tool_calls=(ToolCall(name, '{"input":"x"}', "", n, signature),)) for n, name in enumerate(calls)),
        Delta(finish=finish),
        usage=Usage(1, 2, 3, 4),
    )


def test_any_legal_request_gets_a_legal_response() -> None:
    """Whole and streamed; the newest SDK's own types have the last word."""
    responses: list[Any] = []
    events: list[dict[str, Any]] = []

    @given(REQUESTS)
    def ask(body: dict[str, Any]) -> None:
        response, told = asyncio.run(both_ways(body))
        assert set(response) == FIELDS
        assert told[-1]["response"]["output"][0]["content"] == response["output"][0]["content"]
        responses.append(response)
        events.extend(told)

    ask()
    for finish in ("stop", "length", "content_filter"):
        told = asyncio.run(everything_at_once(finish))
        responses.append(told[-1]["response"])
        events.extend(told)
    assert judged("openai-newest", "responses_types.py", {"responses": responses, "events": events}) == []


@pytest.mark.parametrize("client", CLIENTS)
async def test_an_sdk_sees_openai(tmp_path: Path, client: str) -> None:
    """Each call of its own kind, as against OpenAI."""
    language, package = CLIENTS[client]
    async with upstream(each(cloud), ["m"]) as provider:
        config = settings({"gpu": openai(provider.url)}, ["gpu/m"])
        for name in ("tools", "structured", "broken"):
            config["aliases"][f"mana/{name}"] = {"chain": [f"gpu/{name}"]}
        async with proxy(config, tmp_path) as p:
            base = f"{p.url}/v1"
            if language == "python":
                saw = await python(package, "responses_sdk.py", base)
            else:
                node = require("node", "npm's SDK needs Node")
                where = require(INSTALLED / "node_modules" / package, "the SDK is installed by make test")
                entry = next(e for e in (where / "index.mjs", where / "index.js") if e.exists())
                saw = await run(str(node), str(HERE / "clients" / "responses_sdk.mjs"), str(entry), base)
    assert saw["create"] == ["Hello", "gpu/m", "completed", 5]
    assert saw["events"] == ["response.created", "response.completed", list(range(10))]
    assert saw["stream"] == ["Hello", "response.created", "response.completed"]
    assert saw["tools"] == [["function_call", "add", {"a": 1}]]
    assert saw["continued"] == saw["whole history"] == saw["retrieve"] == "Hello"
    assert saw["parse"] == saw["stream parse"] == 3
    assert saw["input items"] == [["user", "hi"]]
    assert saw["gone"] == ["NotFoundError", 404, "response_not_found"]
    assert saw["unknown"] == ["BadRequestError", 400, "previous_response_not_found"]
    assert saw["refused"] == ["BadRequestError", 400, "invalid_request"]
    assert saw["broken"][0] == "APIError"
