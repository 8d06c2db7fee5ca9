"""What a provider gets of a Responses request: messages, tools, settings, and nothing of the door's own."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.carried import Carried, Unpacker, pack, unpack
from manallm_proxy.doors.responses.tool_names import arguments_to_input, flat_name
from manallm_proxy.doors.responses.tools import UnsupportedTool
from tests.cases import each_with_each, every
from tests.responses import FUNCTION, Opened, chat_of

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "2"}


def called(id_: str, name: str = "add", arguments: str = '{"a":1}') -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def said(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | ({"tool_calls": list(calls)} if calls else {})


def tool(id_: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content}


async def messages(*items: Any, **more: Any) -> Any:
    return (await chat_of(input=list(items), **more))["messages"]


async def test_a_string_is_a_users_message() -> None:
    """With instructions as the first system message."""
    assert (await chat_of(input="hi", instructions="be brief"))["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


async def test_roles_and_content_in_all_their_forms() -> None:
    """With a type and without, strings and parts; a developer is a system, also in the middle."""
    text = {"type": "input_text", "text": "a"}
    assert await messages(
        {"type": "message", "role": "developer", "content": [text, {"type": "input_text", "text": "b"}]},
        {"role": "user", "content": [text]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}],
        },
        {"role": "system", "content": "now in German"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ) == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "a"},
        said("yes"),
        {"role": "system", "content": "now in German"},
        {"role": "user", "content": "x"},
        said("no"),
    ]


async def test_pictures_and_files_go_in() -> None:
    """As a chat's parts."""
    uri = "data:image/png;base64,aGk="
    content = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": uri, "detail": "low"},
        {"type": "input_image", "image_url": "https://x/y.png"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    door = await Opened().ask(input=[{"role": "user", "content": content}])
    assert door.chat["messages"][0]["content"] == [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    assert "vision" in door.call.summary.needs


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
        {"type": "input_image", "image_url": {"url": "https://x/y.png"}, "detail": "low"},
        {"type": "input_image", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "input_image", "image_url": {"url": "https://x/y.png", "detail": "high"}, "detail": "low"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": "https://x/y.png", "detail": "low", "file_id": None},
    ],
)
async def test_a_picture_in_every_form_that_clients_give_it(part: dict[str, Any]) -> None:
    """A chat has one: an object with the URL and how closely to look; nothing of the part is lost on the way."""
    wanted = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    [message] = await messages({"role": "user", "content": [part]})
    assert message["content"] == [wanted]
    *_, shown = await messages(USER, CALL, {**RESULT, "output": [part]})
    assert shown["content"][1:] == [wanted]


async def test_the_original_size_of_a_picture_is_the_highest() -> None:
    """Codex asks for it, and vLLM, GLM and others refuse the word: in a message, and in a tool's result."""
    picture = {"type": "input_image", "image_url": "https://x/y.png", "detail": "original"}
    wanted = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}}
    made = await messages({"role": "user", "content": [picture]}, CALL, {**RESULT, "output": [picture]})
    assert made[0]["content"] == [wanted]
    assert made[-1]["content"][1:] == [wanted]


async def test_other_parts_of_a_chat_are_read_too() -> None:
    """Some clients send a chat's parts here; what a chat calls ``file`` is the same thing."""
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}}
    [message] = await messages({"role": "user", "content": [file]})
    assert message["content"] == [file]


@pytest.mark.parametrize(
    ("result", "url"),
    [
        ("aGk=", "data:image/webp;base64,aGk="),
        ("https://x/y.png", "https://x/y.png"),
        ("data:image/png;base64,aGk=", "data:image/png;base64,aGk="),
    ],
)
async def test_a_generated_picture_goes_back_as_it_came(result: str, url: str) -> None:
    """Providers give its data or its address, and an address in a data URI is nothing."""
    item = {"type": "image_generation_call", "id": "ig_1", "result": result, "output_format": "webp"}
    [shown, _] = await messages(item, USER)
    assert shown == {
        "role": "assistant",
        "content": "",
        "images": [{"type": "image_url", "image_url": {"url": url}}],
    }


async def test_a_turn_is_one_message() -> None:
    """Text and calls of one turn together, then the results, then what comes next."""
    second = {**CALL, "call_id": "c2"}
    assert await messages(
        USER,
        {"role": "assistant", "content": "I add."},
        CALL,
        second,
        RESULT,
        {**RESULT, "call_id": "c2"},
        CALL,
        RESULT,
    ) == [
        USER,
        said("I add.", called("c1"), called("c2")),
        tool("c1", "2"),
        tool("c2", "2"),
        said(None, called("c1")),
        tool("c1", "2"),
    ]


async def test_results_come_before_the_text_of_their_turn() -> None:
    """In the client's order, wherever the client put them."""
    other = {**CALL, "call_id": "c2"}
    assert await messages(CALL, other, {**RESULT, "call_id": "c2"}, USER, RESULT) == [
        said(None, called("c1"), called("c2")),
        tool("c2", "2"),
        tool("c1", "2"),
        USER,
    ]


async def test_a_result_with_a_picture() -> None:
    """A chat's tool message holds text: the picture follows it."""
    picture = {"type": "input_image", "image_url": "https://x/y.png"}
    texts = [{"type": "input_text", "text": "seen"}, picture]
    rows = await messages(CALL, {**RESULT, "output": texts}, {"role": "user", "content": "and?"})
    shown = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    assert rows[1:] == [
        tool("c1", "seen"),
        {"role": "user", "content": [{"type": "text", "text": "Output of the tool call c1:"}, shown]},
        {"role": "user", "content": "and?"},
    ]
    assert (await messages(CALL, {**RESULT, "output": [picture]}))[1]["content"]
    assert (await messages(CALL, {**RESULT, "output": ""}))[1] == tool("c1", "")


async def test_reasoning_goes_back_to_whom_it_came_from() -> None:
    """What we packed returns as it was; a summary alone, and what another server sealed, is left out."""
    signature = {"google": {"thought_signature": "c2ln"}}
    ours = pack(Carried("g", "I think.", "reasoning", {"c1": signature}))
    item: dict[str, Any] = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "encrypted_content": ours,
        "content": None,
    }
    door = await Opened().ask(input=[USER, item, CALL, RESULT])
    own = said(None, {**called("c1"), "extra_content": signature}) | {"reasoning": "I think."}
    assert door.at("g")["messages"] == [USER, own, tool("c1", "2")]
    for other in ("h", ""):
        assert door.at(other)["messages"] == [USER, said(None, called("c1")), tool("c1", "2")]
    assert await messages(USER, {**item, "encrypted_content": "gAAAA"}, CALL) == [USER, said(None, called("c1"))]
    assert await messages(USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}) == [USER]


@pytest.mark.parametrize(
    "content", [None, 3, "manallm1.%%%", "manallm1.W10=", "manallm1.eyJyZWFzb25pbmciOjF9", "manallm1.e30="]
)
def test_what_is_not_ours_carries_nothing(content: Any) -> None:
    """Nor does what looks like it, or is for nobody, or would go to another place than reasoning's."""
    assert unpack(content) == Carried()
    assert unpack(pack(Carried("", "I think."))) == unpack(pack(Carried("p", "x", "content"))) == Carried()


def test_what_is_carried_is_bounded() -> None:
    """It is a text in the request, so what is in it was not counted there; what an answer may lead to is fine."""
    small = pack(Carried("p", details=[{"data": "d", "n": n} for n in range(6000)]))
    unpacker = Unpacker(left=15_000)
    assert [bool(unpack(small, unpacker).details) for _ in range(4)] == [True, True, False, False]
    assert unpack(pack(Carried("p", "{[" * 50_000))).reasoning, "braces in a text are none"
    for inner in ("[" * 70 + "]" * 70, "[" + ",".join(["{}"] * 30_000) + "]", "[" + "1," * 300_000 + "1]"):
        text = f'{{"provider":"p","details":[{{"x":{inner}}}]}}'
        assert unpack("manallm1." + base64.urlsafe_b64encode(text.encode()).decode()) == Carried()


async def test_custom_tools_are_functions_with_one_property() -> None:
    """Declared, chosen, called and answered."""
    patch = {"type": "custom", "name": "apply_patch", "description": "Patches."}
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    chat = await chat_of(
        tools=[{**patch, "format": grammar}],
        tool_choice={"type": "custom", "name": "apply_patch"},
        input=[
            {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": 'a "b"'},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        ],
    )
    function = chat["tools"][0]["function"]
    assert list(function["parameters"]["properties"]) == function["parameters"]["required"] == ["input"]
    assert "Patches." in function["description"] and "start: X" in function["description"]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "apply_patch"}}
    assert chat["messages"] == [said(None, called("c1", "apply_patch", '{"input":"a \\"b\\""}')), tool("c1", "done")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input":"x"}', "x"), ('{"patch":"x"}', "x"), ("x", "x"), ('{"a":1,"b":2}', '{"a":1,"b":2}'), ('"x"', "x")],
)
def test_what_a_model_makes_of_a_custom_tool(arguments: str, text: str) -> None:
    """The input, even where it did not keep to the one property."""
    assert arguments_to_input(arguments) == text


async def test_namespaces_are_flattened_in_tools_choice_and_history() -> None:
    """By one name throughout; also one whose namespace is not offered any more."""
    agents = {"type": "namespace", "name": "agents", "description": "", "tools": [{**FUNCTION, "name": "spawn"}]}
    call = {**CALL, "namespace": "agents", "name": "spawn"}
    chat = await chat_of(
        tools=[FUNCTION, agents],
        input=[USER, call, RESULT],
        tool_choice={"type": "function", "name": "spawn", "namespace": "agents"},
    )
    names = [row["function"]["name"] for row in chat["tools"]]
    assert names == ["add", "agents__spawn"]
    assert chat["messages"][1]["tool_calls"][0]["function"]["name"] == names[1]
    assert chat["tool_choice"]["function"]["name"] == names[1]
    assert (await messages(USER, call, RESULT))[1]["tool_calls"][0]["function"]["name"] == names[1]


async def test_a_flat_name_that_is_taken() -> None:
    """Makes way for the tool that has it already."""
    agents = {"type": "namespace", "name": "agents", "tools": [{**FUNCTION, "name": "spawn"}]}
    door = await Opened().ask(tools=[agents, {**FUNCTION, "name": "agents__spawn"}])
    first, second = (row["function"]["name"] for row in door.chat["tools"])
    assert first == "agents__spawn" != second and second.endswith("__spawn")


@each_with_each(
    ["", "a", "a.b", "ä", "n" * 64, "n" * 200],
    ["x", "spawn.now", "s" * 30, *("s" * n for n in range(50, 66)), "s" * 200],
    [False, True],
)
def test_flat_names(namespace: str, name: str, unique: bool) -> None:
    """At most 64 characters that every provider takes, unlike the inner name, and with it as far as there is room."""
    flat = flat_name(namespace, name, unique=unique)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", flat)
    assert flat != name
    if len(name) < 64:
        assert name.replace(".", "_") in flat


async def test_tool_choice_and_parallel_calls() -> None:
    """As they are; only the tools that are allowed are sent."""
    other = {**FUNCTION, "name": "sub"}
    for choice in ("auto", "none", "required"):
        assert (await chat_of(tools=[FUNCTION], tool_choice=choice))["tool_choice"] == choice
    named = await chat_of(tools=[FUNCTION], tool_choice={"type": "function", "name": "add"}, parallel_tool_calls=False)
    assert named["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert named["parallel_tool_calls"] is False
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]}
    chat = await chat_of(tools=[FUNCTION, other], tool_choice=allowed)
    assert [row["function"]["name"] for row in chat["tools"]] == ["sub"]
    assert chat["tool_choice"] == "required"


@pytest.mark.parametrize("search", ["web_search", "web_search_preview", "web_search_2025_08_26"])
async def test_a_web_search_is_dropped_and_noted(search: str) -> None:
    """Codex offers it unasked. Where nothing is left, nothing of tools is sent."""
    hosted = {"type": search, "external_web_access": False}
    door = await Opened().ask(tools=[hosted, FUNCTION], tool_choice="auto", parallel_tool_calls=True)
    assert [row["function"]["name"] for row in door.chat["tools"]] == ["add"]
    assert door.call.notes == ("not sent on: tool web_search",)
    alone = await chat_of(tools=[hosted], tool_choice="auto", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(alone)
    assert not {"tools", "tool_choice"} & set(await chat_of(tools=[], tool_choice="auto"))


async def test_a_file_search_that_nobody_insists_on() -> None:
    """Is dropped as well."""
    hosted = {"type": "file_search", "vector_store_ids": ["v"]}
    assert "tools" not in await chat_of(tools=[hosted])
    assert "tools" not in await chat_of(tools=[{"type": "mcp"}], tool_choice="none")


@every([FUNCTION, {"type": "custom", "name": "c"}, {"type": "namespace", "name": "n", "tools": [FUNCTION]}])
async def test_pictures_that_an_agent_always_offers(own: dict[str, Any]) -> None:
    """codex since 0.122 and Cline offer them in each request, beside tools of their own: the session was over. Who
    offers nothing else wants pictures."""
    pictures = {"type": "image_generation", "output_format": "png"}
    door = await Opened().ask(tools=[{"type": "web_search"}, pictures, own], tool_choice="auto")
    assert len(door.chat["tools"]) == 1
    assert door.call.notes == ("not sent on: tool web_search", "not sent on: tool image_generation")
    for asked in ({"tools": [pictures]}, {"tools": [pictures, own], "tool_choice": "required"}):
        with pytest.raises(UnsupportedTool, match="image_generation"):
            await chat_of(**asked)


async def test_settings_and_formats() -> None:
    """Each under the name that a chat has for it."""
    schema = {"type": "object", "properties": {}}
    chat = await chat_of(
        model="a/b",
        stream=True,
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        user="u",
        text={"format": {"type": "json_schema", "name": "n", "strict": True, "schema": schema}, "verbosity": "low"},
    )
    assert chat == {
        "model": "a/b",
        "messages": [USER],
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "max_tokens": 7,
        "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "logprobs": True,
        "top_logprobs": 2,
    }
    thinks = await chat_of(reasoning={"effort": "low", "summary": "auto"}, max_output_tokens=7)
    assert (thinks["reasoning_effort"], thinks["max_completion_tokens"]) == ("low", 7)
    shows = await chat_of(reasoning={"summary": "auto"}, max_output_tokens=7)
    assert "max_completion_tokens" not in shows and shows["max_tokens"] == 7
    nameless = await chat_of(text={"format": {"type": "json_schema", "schema": schema}})
    assert nameless["response_format"]["json_schema"]["name"]
    assert (await chat_of(text={"format": {"type": "json_object"}}))["response_format"] == {"type": "json_object"}
    assert "response_format" not in await chat_of(text={"format": {"type": "text"}})
    assert (await chat_of(include=["message.output_text.logprobs"]))["logprobs"] is True


async def test_fields_of_the_door_alone_never_go_up() -> None:
    """Strict providers refuse what they do not know."""
    chat = await chat_of(
        store=False,
        include=["reasoning.encrypted_content", "something.new"],
        metadata={"a": "b"},
        truncation="auto",
        client_metadata={"a": "b"},
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        safety_identifier="s",
        max_tool_calls=3,
        background=False,
        conversation=None,
        stream_options={"include_obfuscation": False},
        context_management=[],
        reasoning={"summary": "auto"},
        text={},
        tool_choice=None,
        whatever=1,
    )
    assert set(chat) == {"messages", "stream"}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"input": 3}, "input", "input"),
    ({"input": None}, "input", "input"),
    ({"input": []}, "input", "empty"),
    ({"input": ["hi"]}, "input[0]", "object"),
    ({"input": [{}]}, "input[0]", "neither"),
    ({"input": [{"type": "computer_call"}]}, "input[0]", "computer_call"),
    ({"input": [USER, {"type": "mcp_call", "id": "mcp_1"}]}, "input[1]", "mcp_call"),
    ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role", "user"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing"),
    ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "parts"),
    ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0]", "input_video"),
    ({"input": [{"role": "user", "content": [{"text": "x"}]}]}, "input[0].content[0].type", "missing"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].image_url",
        "base64",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,a b"}]}]},
        "input[0].content[0].image_url",
        "base64",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]},
        "input[0].content[0].image_url",
        "base64",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "data:a/b;base64,"}]}]},
        "input[0].content[0].file_data",
        "base64",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
        "uploaded",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]},
        "input[0].content[0].file_url",
        "file_data",
    ),
    (
        {"input": [{**USER, "role": "system", "content": [{"type": "input_image", "image_url": "http://u"}]}]},
        "input[0].content",
        "text",
    ),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name", "missing"),
    ({"input": [{"type": "function_call", "name": "c", "arguments": "{}"}]}, "input[0].call_id", "missing"),
    ({"input": [USER, {**RESULT, "call_id": "call_lost"}]}, "input[1].call_id", "call_lost"),
    ({"input": [CALL, {"type": "function_call_output", "call_id": "c1"}]}, "input[1].output", "missing"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id", "missing"),
    ({"model": 3}, "model", "string"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"instructions": ["x"]}, "instructions", "string"),
    ({"store": "no"}, "store", "true or false"),
    ({"metadata": []}, "metadata", "object"),
    ({"include": "x"}, "include", "array"),
    ({"include": [3]}, "include[0]", "string"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"top_logprobs": 50}, "top_logprobs", "20"),
    ({"reasoning": "high"}, "reasoning", "object"),
    ({"reasoning": {"effort": 3}}, "reasoning.effort", "string"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing"),
    ({"background": True}, "background", "background"),
    ({"conversation": "conv_1"}, "conversation", "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "prompt"),
    ({"tools": {}}, "tools", "array"),
    ({"tools": [{"name": "x"}]}, "tools[0].type", "missing"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
    ({"tools": [{"type": "function", "name": ""}]}, "tools[0].name", "name"),
    ({"tools": [FUNCTION, {"type": "mcp", "server_label": "x"}]}, "tools[1]", "mcp"),
    ({"tools": [{"type": "computer_use_preview"}]}, "tools[0]", "computer_use_preview"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0]", "code_interpreter"),
    ({"tools": [{"type": "brand_new"}]}, "tools[0]", "brand_new"),
    (
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp", "name": "x"}]}]},
        "tools[0].tools[0]",
        "mcp",
    ),
    ({"tools": [{"type": "file_search"}, FUNCTION], "tool_choice": "required"}, "tools[0]", "file_search"),
    ({"tools": [{"type": "file_search"}], "tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice", "web_search"),
    ({"tool_choice": "required"}, "tool_choice", "tool"),
    ({"tool_choice": "perhaps"}, "tool_choice", "auto"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice.name", "tools"),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
        "tool_choice.tools[0]",
        "mcp",
    ),
]


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(
            [
                *("", "x", "auto", "required", "none", "function", "custom", "namespace", "web_search", "file_search"),
                *("message", "function_call", "function_call_output", "reasoning", "item_reference", "json_schema"),
                *("user", "assistant", "input_text", "input_image", "allowed_tools", "manallm1.e30="),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "type",
                        "role",
                        "content",
                        "text",
                        "name",
                        "tools",
                        "call_id",
                        "arguments",
                        "output",
                        "id",
                        "mode",
                    ),
                    *("format", "schema", "effort", "encrypted_content", "image_url", "parameters", "input", "summary"),
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "store", "stream", "model"),
        *("instructions", "max_output_tokens", "temperature", "top_logprobs", "previous_response_id", "conversation"),
        *("prompt_cache_key", "service_tier", "truncation", "user", "unknown"),
    ]
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
async def test_whatever_comes_is_read_or_refused(body: dict[str, Any]) -> None:
    """Never a bug of ours; what is read is answered."""
    refused = None
    try:
        door = await Opened().ask(**body)
    except InvalidRequest as error:
        refused = error
    if refused is not None:
        assert refused.param
    else:
        assert door.whole(Delta(content="Hello", finish="stop"))["status"] == "completed"


@every(BAD)
async def test_bad_input_is_named_by_its_place(body: dict[str, Any], param: str, word: str) -> None:
    """Before any provider is bothered."""
    with pytest.raises(InvalidRequest) as raised:
        await Opened().ask(**body)
    assert raised.value.status == 400
    assert raised.value.param == param
    assert word in raised.value.message
