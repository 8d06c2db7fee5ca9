"""Tools that are items of the conversation: those of codex's newer models, and those that its search has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import Delta, ToolCall
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.carried import KEPT, Carried, pack
from manallm_proxy.doors.replay import responses as replay
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.responses import FUNCTION, Opened, chat_of, checked
from tests.upstreams import Connection, Seen, completion, each, upstream

USER = {"role": "user", "content": "hi"}
EXEC = {"type": "custom", "name": "exec", "description": "Runs a script."}
WAIT = {"type": "function", "name": "wait", "parameters": {"type": "object"}, "strict": False}
OFFERED = {
    "type": "additional_tools",
    "id": "at_1",
    "role": "developer",
    "tools": [{"type": "namespace", "name": "functions", "description": "", "tools": [EXEC, WAIT]}, FUNCTION],
}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds.", "parameters": {"type": "object"}}
SEARCHED = {
    "type": "tool_search_call",
    "id": "tsc_1",
    "call_id": "c1",
    "status": "completed",
    "execution": "client",
    "arguments": {"query": "wait"},
}
FOUND = {
    "type": "tool_search_output",
    "call_id": "c1",
    "status": "completed",
    "execution": "client",
    "tools": [{"type": "namespace", "name": "agents", "tools": [WAIT]}, FUNCTION],
}
QUERY = ToolCall("tool_search", '{"query":"x"}', "c1", 0)


def names(chat: Any) -> list[str]:
    return [row["function"]["name"] for row in chat.get("tools", ())]


async def test_items_offer_tools() -> None:
    """As the field does: named, called and chosen alike."""
    door = await Opened().ask(
        input=[OFFERED, USER], tool_choice={"type": "custom", "name": "exec", "namespace": "functions"}
    )
    assert names(door.chat) == ["add", "functions__exec", "functions__wait"]
    assert door.chat["messages"] == [USER]
    assert door.chat["tool_choice"]["function"]["name"] == "functions__exec"
    call = ToolCall("functions__exec", '{"input":"1+1"}', "c1", 0)
    item = door.whole(Delta(tool_calls=(call,), finish="tool_calls"))["output"][0]
    assert (item["type"], item["name"], item["namespace"]) == ("custom_tool_call", "exec", "functions")
    assert item["input"] == "1+1"


async def test_a_tool_that_is_offered_again_stands_there_once() -> None:
    """Providers refuse a name that comes twice."""
    chat = await chat_of(tools=[FUNCTION], input=[OFFERED, OFFERED, USER])
    assert names(chat) == ["add", "functions__exec", "functions__wait"]


async def test_tools_of_an_earlier_response_stay() -> None:
    """They are items of the conversation."""
    door = Opened()
    first = (await door.ask(input=[OFFERED, USER])).whole(Delta(content="Hello", finish="stop"))
    assert names((await door.ask(previous_response_id=first["id"])).chat) == [
        "add",
        "functions__exec",
        "functions__wait",
    ]


async def test_the_clients_search_for_tools_is_a_function() -> None:
    """Offered, called, and answered by the names of what it found, which are offered from then on."""
    chat = await chat_of(tools=[SEARCH], input=[USER, SEARCHED, FOUND])
    assert names(chat) == ["tool_search", "add", "agents__wait"]
    assert chat["tools"][0]["function"] == {
        "name": "tool_search",
        "description": "Finds.",
        "parameters": {"type": "object"},
    }
    call, result = chat["messages"][1:]
    assert call["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "tool_search", "arguments": '{"query":"wait"}'}}
    ]
    assert (result["role"], result["tool_call_id"]) == ("tool", "c1")
    assert result["content"].splitlines()[1:] == ["agents__wait", "add"]


async def test_a_search_that_found_nothing() -> None:
    """It is said so: an empty answer tells a model nothing."""
    chat = await chat_of(tools=[SEARCH], input=[USER, SEARCHED, {**FOUND, "tools": []}])
    assert names(chat) == ["tool_search"]
    assert "No tools" in chat["messages"][-1]["content"]


async def test_a_model_searches() -> None:
    """The item has the arguments as an object, and there are no events for parts of them."""
    door = await Opened().ask(tools=[SEARCH, FUNCTION])
    begin = ToolCall("tool_search", '{"que', "c1", 0)
    events = door.stream(
        Delta(tool_calls=(begin,)),
        Delta(tool_calls=(ToolCall("", 'ry":"x"}', "", 0),)),
        Delta(finish="tool_calls"),
    )
    about = [event for event in events if "output_index" in event]
    assert [event["type"] for event in about] == ["response.output_item.added", "response.output_item.done"]
    item = about[1]["item"]
    assert item.pop("id").startswith("tsc_")
    assert item == {key: value for key, value in SEARCHED.items() if key != "id"} | {"arguments": {"query": "x"}}
    assert about[0]["item"]["arguments"] == {}


@pytest.mark.parametrize("arguments", ["", "x", "[]", '"x"'])
async def test_a_search_whose_arguments_are_none(arguments: str) -> None:
    """The client tells the model what it misses."""
    door = await Opened().ask(tools=[SEARCH])
    item = door.whole(Delta(tool_calls=(ToolCall("tool_search", arguments, "c1", 0),), finish="tool_calls"))
    assert item["output"][0]["arguments"] == {}


async def test_a_kept_answer_with_a_search() -> None:
    """As a stream, whose order is the same."""
    door = await Opened().ask(tools=[SEARCH], stream=True)
    whole = json.dumps(door.whole(Delta(tool_calls=(QUERY,), finish="tool_calls")))
    events = checked(replay.to_stream(whole.encode(), with_usage=True))
    added = next(event for event in events if event["type"] == "response.output_item.added")
    assert added["item"]["arguments"] == {}


async def test_openais_own_search_is_left_out() -> None:
    """What it would search is sent as a whole, also where nothing but a tool will do."""
    hosted = {"type": "tool_search"}
    deferred = {**FUNCTION, "defer_loading": True}
    call, found = (
        {**SEARCHED, "execution": "server", "call_id": None},
        {**FOUND, "execution": "server", "call_id": None},
    )
    for choice in ("auto", "required"):
        door = await Opened().ask(tools=[hosted, deferred], tool_choice=choice, input=[USER, call, found])
        assert names(door.chat) == ["add", "agents__wait"]
        assert door.chat["messages"] == [USER]
        assert door.call.notes == tuple(
            f"not sent on: {each}" for each in ("tool tool_search", "item tool_search_call", "item tool_search_output")
        )


async def test_a_search_that_another_provider_called_for() -> None:
    """It is the client's, whoever the model was, and can be read by all."""
    kept = {**SEARCHED, KEPT: pack(Carried("other"))}
    assert len((await chat_of(tools=[SEARCH], input=[USER, kept, FOUND]))["messages"]) == 3


async def test_what_agents_tell_each_other() -> None:
    """Codex's agents: in clear, which is said of the call, or codex takes the words for encrypted ones."""
    message = {"type": "object", "properties": {"message": {"type": "string", "encrypted": True}}}
    told = {
        "type": "agent_message",
        "author": "lead",
        "recipient": "lead/a",
        "content": [{"type": "input_text", "text": "Payload:"}, {"type": "input_text", "text": "do it"}],
    }
    door = await Opened().ask(tools=[{**FUNCTION, "parameters": message}, WAIT], input=[USER, told])
    assert door.chat["messages"][1] == {"role": "user", "content": "Payload:\ndo it"}
    calls = (ToolCall("add", '{"message":"x"}', "c1", 0), ToolCall("wait", "{}", "c2", 1))
    first, second = door.whole(Delta(tool_calls=calls, finish="tool_calls"))["output"]
    assert first["encrypted_function_args"] == []
    assert "encrypted_function_args" not in second


async def test_a_result_that_nobody_called_for() -> None:
    """Codex's desktop app says so what its own tools did, in between: a chat has only a user's words for it."""
    ran = {"type": "function_call_output", "name": "panel", "namespace": "app", "output": "3 rows"}
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    shown = {**ran, "call_id": None, "output": [{"type": "input_text", "text": "seen"}, image]}
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "5"}
    chat = await chat_of(tools=[FUNCTION], input=[USER, call, ran, result, shown])
    assert [row["role"] for row in chat["messages"]] == ["user", "assistant", "tool", "user", "user"]
    said, parts = (row["content"] for row in chat["messages"][3:])
    assert ("app__panel" in said, said.splitlines()[-1]) == (True, "3 rows")
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[0]["text"].splitlines()[-1] == "seen"


@every(
    [
        ({"input": [USER, {"type": "function_call_output", "output": "x"}]}, "input[1].call_id", "missing"),
        ({"input": [USER, {"type": "function_call_output", "name": "a"}]}, "input[1].output", "missing"),
        ({"input": [{**OFFERED, "tools": {}}, USER]}, "input[0].tools", "array"),
        ({"input": [{**OFFERED, "tools": [3]}, USER]}, "input[0].tools[0]", "object"),
        ({"input": [USER, {**OFFERED, "tools": [{"type": "function"}]}]}, "input[1].tools[0].name", "missing"),
        ({"input": [USER, {**OFFERED, "tools": [{"type": "mcp"}]}]}, "input[1].tools[0]", "mcp"),
        ({"input": [OFFERED]}, "input", "empty"),
        ({"input": [USER, {**OFFERED, "type": {}}]}, "input[1].type", "string"),
        ({"input": [USER, {**OFFERED, "type": [5]}]}, "input[1].type", "string"),
        ({"input": [USER, FOUND]}, "input[1].call_id", "c1"),
        ({"input": [USER, {**SEARCHED, "arguments": "x"}]}, "input[1].arguments", "object"),
        ({"input": [USER, {**SEARCHED, "call_id": None}]}, "input[1].call_id", "missing"),
        ({"input": [USER, {"type": "agent_message"}]}, "input[1].content", "missing"),
        (
            {
                "input": [
                    {"type": "agent_message", "content": [{"type": "encrypted_content", "encrypted_content": "x"}]}
                ]
            },
            "input[0].content[0]",
            "encrypted_content",
        ),
    ]
)
async def test_what_cannot_be_read_is_named(body: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await Opened().ask(**body)
    assert (raised.value.param, word in raised.value.message) == (param, True)


async def test_over_a_socket(tmp_path: Path) -> None:
    """A provider of chats gets what codex offers to a model that it knows; it was 400 before."""

    async def answer(connection: Connection, seen: Seen) -> None:
        assert names(seen.json) == ["add", "functions__exec", "functions__wait"]
        await connection.reply(completion("Hello"))

    async with upstream(each(answer), ["m"]) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        status, body, _ = await p.post("/v1/responses", {"model": "p/m", "input": [OFFERED, USER], "store": False})
        assert (status, body["output"][0]["content"][0]["text"]) == (200, "Hello")
