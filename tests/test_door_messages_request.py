"""Anthropic's requests as chat completions: what becomes of each field, and what is refused, with its place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, ToolCall, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import VISION, Call
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import Entry, Target, Timeouts
from manallm_proxy.doors.carried import Carried, pack
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.messages.tokens import TOKENS_A_FILE, count_tokens
from manallm_proxy.openai.request import TOOLS
from manallm_proxy.providers.gemini import request as gemini_request
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.providers.ollama import request as ollama_request
from tests import anthropic_stream
from tests.cases import every
from tests.sdks import judged

HI: dict[str, Any] = {"role": "user", "content": "hi"}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"x": 1}}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"}
ENTRY = Entry(Target("p", "gemini-2.5-flash"), Timeouts())
CLIENT = Client("req-1")
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    """The chat request that a request becomes, without what is always there."""
    body = json.dumps({"max_tokens": 10, "messages": list(messages) or [HI], **fields}).encode()
    call, _ = MessagesDoor().read(body, Client("req-1"))
    made: dict[str, Any] = json.loads(call.body)
    if not messages:
        assert made.pop("messages") == [HI]
    if "max_tokens" not in fields:
        del made["max_tokens"]
    return made


def said(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    """The messages of it."""
    made: list[dict[str, Any]] = chat(*messages, **fields)["messages"]
    return made


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_text_is_a_plain_string_wherever_it_stands() -> None:
    """System in front and in the middle of the list, prefilled answers, blocks with settings for a cache."""
    cached = {"cache_control": {"type": "ephemeral"}}
    middle = {"role": "system", "content": [text("be brief")]}
    made = said(
        user(text("a", **cached), text("b")), assistant(text("c")), middle, HI, assistant(text("so")), system="s"
    )
    assert made == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "system", "content": "be brief"},
        HI,
        {"role": "assistant", "content": "so"},
    ]
    assert said(HI, system=[text("a", **cached), text("b")])[0] == {"role": "system", "content": "a\nb"}
    assert said(HI, system="") == [HI]


LINE = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;"
"""As Claude Code writes it, with another end each time."""


@pytest.mark.parametrize(
    ("system", "left"),
    [
        ([text(LINE), text("You are X.")], "You are X."),
        (f"{LINE}\nYou are X.", "You are X."),
        ([text(LINE)], ""),
        (LINE, ""),
        ([text(LINE), text(LINE), text("You are X.")], "You are X."),
        ([text("You are X."), text(LINE)], f"You are X.\n{LINE}"),
        ("x-anthropic is a word", "x-anthropic is a word"),
        (f"{LINE}\n" * 9, f"{LINE}\n"),
        ([text("x-anthropic-a:")] * 20_000, "\n".join(["x-anthropic-a:"] * (20_000 - 8))),
        ([text(LINE), text("You are X. " * 100)], "You are X. " * 100),
        (f"{LINE}\n" + "You are X. " * 100, "You are X. " * 100),
    ],
)
@pytest.mark.parametrize("more", [0, 2**20])
def test_a_line_for_anthropic_alone_is_left_out(system: Any, left: str, more: int) -> None:
    """Or no beginning of a prompt would be the same twice, and a local server would read all of it at each turn."""
    made = said({"role": "user", "content": "x" * more + "hi"}, system=system)
    is_long_line = more and isinstance(system, str) and len(system) > 500  # never decoded: it stays
    assert made[0].get("content") == (system if is_long_line else left) if left else len(made) == 1


def test_images_documents_and_search_results() -> None:
    """As far as OpenAI's format has a place for them; the rest as text."""
    url = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    assert said(user(text("see"), PNG, url)) == [
        {
            "role": "user",
            "content": [text("see"), PNG_PART, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}],
        }
    ]
    for data in ("AA-_", "AAA", "AAAA\r\nAAAA"):
        # a part of any values
        assert said(user({"type": "image", "source": {**PNG["source"], "data": data}}))  # type: ignore[dict-item]
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}
    file = {"type": "file", "file": {"filename": "t", "file_data": "data:application/pdf;base64,AAAA"}}
    assert said(user({"type": "document", "source": pdf, "title": "t", "context": "c"}))[0]["content"] == [
        text("c"),
        file,
    ]
    plain = {"type": "text", "media_type": "text/plain", "data": "words"}
    assert said(user({"type": "document", "source": plain, "title": "t"}))[0]["content"] == "t\nwords"
    inner = {"type": "content", "content": [text("a"), PNG]}
    assert said(user({"type": "document", "source": inner}))[0]["content"] == [text("a"), PNG_PART]
    found = {"type": "search_result", "title": "t", "source": "https://x", "content": [text("a"), text("b")]}
    assert said(user(found))[0]["content"] == "t\nhttps://x\na\nb"


def test_a_reference_to_a_tool_is_its_name() -> None:
    """Claude Code's search for tools gives it; all tools are sent, also those that are deferred."""
    found = {**RESULT, "content": [{"type": "tool_reference", "tool_name": "add"}]}
    made = chat(HI, assistant(USE), user(found), tools=[{**TOOL, "defer_loading": True}])
    assert made["messages"][-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": "Callable now: add"}
    assert [row["function"]["name"] for row in made["tools"]] == ["add"]


def test_a_search_that_anthropic_ran_is_left_out_and_noted() -> None:
    """So the next target of the chain may go on with the conversation."""
    searched = (
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "server_tool_use", "id": "srvtoolu_2", "name": "tool_search_tool_regex", "input": {"query": "x"}},
        {"type": "tool_search_tool_result", "tool_use_id": "srvtoolu_2", "content": {}},
    )
    body = {"max_tokens": 10, "messages": [HI, assistant(*searched, text("It is so.")), HI]}
    call, _ = MessagesDoor().read(json.dumps(body).encode(), CLIENT)
    assert json.loads(call.body)["messages"] == [HI, {"role": "assistant", "content": "It is so."}, HI]
    kinds = ("server_tool_use", "web_search_tool_result", "tool_search_tool_result")
    assert call.notes == tuple(f"not sent on: block {kind}" for kind in kinds)


def test_results_come_before_the_text_of_their_turn() -> None:
    """In the client's order, with its ids; what a tool's message cannot hold follows in the user's."""
    other = {**USE, "id": "toolu_2"}
    turn = user(text("and now?"), {**RESULT, "tool_use_id": "toolu_2", "content": [text("a"), PNG]}, RESULT)
    assert said(HI, assistant(text("wait"), USE, other), turn) == [
        HI,
        {"role": "assistant", "content": "wait", "tool_calls": [CALL, {**CALL, "id": "toolu_2"}]},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "a"},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "3"},
        {"role": "user", "content": [text("From the result of tool call toolu_2:"), PNG_PART, text("and now?")]},
    ]


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": "Error: no such file", "is_error": True}, "Error: no such file"),
        ({"is_error": True}, "Error"),
        ({"content": [PNG]}, "(The result is in the next message.)"),
    ],
)
def test_what_a_tool_gave(result: dict[str, Any], content: str) -> None:
    row = {"type": "tool_result", "tool_use_id": "toolu_1", **result}
    assert said(HI, assistant(USE), user(row))[2] == {"role": "tool", "tool_call_id": "toolu_1", "content": content}


def test_thoughts_stay_here_but_for_what_a_provider_wants_back() -> None:
    """Other systems' signatures are dropped; ours goes to its call, and only for the provider that it is of."""
    google = {"google": {"thought_signature": "AA=="}}
    signed = pack(Carried("g", extras={"toolu_1": google, "toolu_2": google}))
    ours = {"type": "thinking", "thinking": "hm", "signature": signed}
    theirs = {"type": "thinking", "thinking": "hm", "signature": "EqQB"}
    turns = [HI, assistant({"type": "redacted_thinking", "data": "x"}, theirs, ours, USE), user(RESULT)]
    body = json.dumps({"max_tokens": 10, "messages": turns, "tools": [TOOL]}).encode()
    call, _ = MessagesDoor().read(body, Client("req-1"))
    for provider, extra in (("g", {"extra_content": google}), ("h", {}), ("", {})):
        own = call.at(provider)
        assert json.loads(own.body)["messages"][1] == {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, **extra}],
            **({"reasoning_content": "hm"} if extra else {}),
        }
        assert (own.summary.needs, own.cuts_length, own.length) == (call.summary.needs, True, 10)
    assert said(HI, assistant(theirs), HI) == [HI, HI]
    alone, _ = MessagesDoor().read(
        json.dumps({"max_tokens": 1, "messages": [HI, assistant(ours), HI]}).encode(), CLIENT
    )
    assert json.loads(alone.at("g").body)["messages"] == [HI, HI]
    kept, _ = MessagesDoor().read(
        json.dumps({"max_tokens": 1, "messages": [HI, assistant(ours, text("so")), HI]}).encode(), CLIENT
    )
    assert json.loads(kept.at("g").body)["messages"][1] == {  # of which a client has left out the calls
        "role": "assistant",
        "content": "so",
        "reasoning_content": "hm",
    }


def test_a_call_without_input_has_no_arguments() -> None:
    for given_ in ({}, {"input": None}):
        used = {"type": "tool_use", "id": "toolu_1", "name": "add", **given_}
        (call,) = said(HI, assistant(used), user(RESULT))[1]["tool_calls"]
        assert call["function"] == {"name": "add", "arguments": "{}"}


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sampling": ({"temperature": 0.5, "top_p": 1, "top_k": 3}, {"temperature": 0.5, "top_p": 1, "top_k": 3}),
    "limits": ({"max_tokens": 5, "stop_sequences": ["a", "b"]}, {"max_tokens": 5, "stop": ["a", "b"]}),
    "nothing to stop at": ({"stop_sequences": []}, {}),
    "model": ({"model": "mana/x", "stream": True}, {"model": "mana/x", "stream": True}),
    "left out": ({"metadata": {"user_id": "u"}, "service_tier": "auto", "container": "c", "speed": "fast"}, {}),
    "thoughts, few": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
    "thoughts": ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, {"reasoning_effort": "medium"}),
    "thoughts, many": ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, {"reasoning_effort": "high"}),
    "no thoughts": ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
    "thoughts as it likes": ({"thinking": {"type": "adaptive", "display": "omitted"}}, {}),
    "thoughts between tools": ({"thinking": {"type": "between_tools"}}, {}),
    "effort": ({"output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}}, {"reasoning_effort": "max"}),
    "form": (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    ),
    "form, older": (
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    ),
    "no tools": ({"tools": [], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {}),
}


@every(FIELDS.values())
def test_fields(given_: dict[str, Any], made: dict[str, Any]) -> None:
    assert chat(**given_) == made


FUNCTION = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "auto"}, {"tool_choice": "auto"}),
    ({"type": "none"}, {"tool_choice": "none"}),
    ({"type": "any"}, {"tool_choice": "required"}),
    ({"type": "tool", "name": "add"}, {"tool_choice": {"type": "function", "function": {"name": "add"}}}),
    ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
]


@pytest.mark.parametrize(("choice", "made"), CHOICES)
def test_tools(choice: dict[str, Any], made: dict[str, Any]) -> None:
    """Settings for Anthropic's own servers go no further."""
    tool = {**TOOL, "type": "custom", "eager_input_streaming": True, "defer_loading": False, "input_examples": [{}]}
    assert chat(tools=[tool], tool_choice=choice) == {"tools": [FUNCTION], **made}
    shared = {**TOOL, "allowed_callers": ["direct", "code_execution_20260120"]}
    assert chat(tools=[shared], tool_choice=choice) == {"tools": [FUNCTION], **made}
    strict = chat(tools=[{"name": "f", "input_schema": {}, "strict": True}])["tools"]
    assert strict == [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]


def test_what_routing_needs_to_know() -> None:
    body = json.dumps(
        {"max_tokens": 1, "messages": [user(PNG)], "tools": [TOOL], "stream": True, "model": "m"}
    ).encode()
    call, _ = MessagesDoor().read(body, Client("req-1"))
    assert (call.summary.model, call.summary.stream, set(call.summary.needs)) == ("m", True, {TOOLS, VISION})
    assert (call.relays, call.request_id, call.summary.wants_usage) == (False, "req-1", False)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no messages": ({"messages": None}, "messages", "missing"),
    "messages of another kind": ({"messages": {}}, "messages", "an array"),
    "no message": ({"messages": []}, "messages", "add a user message"),
    "system alone": ({"messages": [], "system": "s"}, "messages", "add a user message"),
    "a message that is none": ({"messages": ["hi"]}, "messages[0]", "an object"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
    "another role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    "no content": ({"messages": [HI, {"role": "user"}]}, "messages[1].content", "missing"),
    "content of another kind": ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a string or"),
    "a block that is none": ({"messages": [user("x")]}, "messages[0].content[0]", "an object"),
    "a block without a type": ({"messages": [user({"text": "x"})]}, "messages[0].content[0].type", "missing"),
    "an unknown block": (
        {"messages": [HI, HI, user(text("a"), {"type": "hologram"})]},
        "messages[2].content[1]",
        "hologram",
    ),
    "a call by the user": ({"messages": [user(USE)]}, "messages[0].content[0]", "tool_use"),
    "a result by the assistant": ({"messages": [assistant(RESULT)]}, "messages[0].content[0]", "tool_result"),
    "a server's call": (
        {"messages": [assistant({**USE, "type": "server_tool_use"})]},
        "messages[0].content[0]",
        "server_tool_use",
    ),
    "no text": ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text", "missing"),
    "an image without a source": ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source", "missing"),
    "an image that is kept": (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
        "messages[0].content[0].source",
        "uploaded file",
    ),
    "an image of nothing": (
        # a part of any values
        {"messages": [user({"type": "image", "source": {**PNG["source"], "data": ""}})]},  # type: ignore[dict-item]
        "messages[0].content[0].source.data",
        "base64",
    ),
    "an image of no base64": (
        # a part of any values
        {"messages": [user({"type": "image", "source": {**PNG["source"], "data": "a b"}})]},  # type: ignore[dict-item]
        "messages[0].content[0].source.data",
        "base64",
    ),
    "an image of no type": (
        # a part of any values
        {"messages": [user({"type": "image", "source": {**PNG["source"], "media_type": ""}})]},  # type: ignore[dict-item]
        "messages[0].content[0].source.media_type",
        "image/png",
    ),
    "an image of another source": (
        {"messages": [user({"type": "image", "source": {"type": "ftp"}})]},
        "messages[0].content[0].source.type",
        "'base64' or 'url'",
    ),
    "a document by URL": (
        {"messages": [user({"type": "document", "source": {"type": "url", "url": "https://x"}})]},
        "messages[0].content[0].source",
        "none are fetched",
    ),
    "a document of another source": (
        {"messages": [user({"type": "document", "source": {"type": "ftp"}})]},
        "messages[0].content[0].source.type",
        "'content'",
    ),
    "a document in a document": (
        {"messages": [user({"type": "document", "source": {"type": "content", "content": [{"type": "document"}]}})]},
        "messages[0].content[0].source.content[0]",
        "document",
    ),
    "an image in system": ({"system": [PNG]}, "system[0]", "image"),
    "system of another kind": ({"system": 3}, "system", "a string or"),
    "a result without its call": ({"messages": [user(RESULT)]}, "messages[0].content[0]", "toolu_1"),
    "a result before its call": ({"messages": [user(RESULT), assistant(USE)]}, "messages[0].content[0]", "toolu_1"),
    "a result without an id": (
        {"messages": [user({"type": "tool_result"})]},
        "messages[0].content[0].tool_use_id",
        "miss",
    ),
    "a call without an id": ({"messages": [assistant({**USE, "id": None})]}, "messages[0].content[0].id", "missing"),
    "a call without a name": ({"messages": [assistant({**USE, "name": 1})]}, "messages[0].content[0].name", "a string"),
    "input of another kind": (
        {"messages": [assistant({**USE, "input": "x"})]},
        "messages[0].content[0].input",
        "object",
    ),
    "no max_tokens": ({"max_tokens": None}, "max_tokens", "missing"),
    "max_tokens of another kind": ({"max_tokens": "9"}, "max_tokens", "a whole number"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "at least 1"),
    "model of another kind": ({"model": 3}, "model", "a string"),
    "stream of another kind": ({"stream": "yes"}, "stream", "true or false"),
    "temperature of another kind": ({"temperature": "hot"}, "temperature", "a number"),
    "a stop that is none": ({"stop_sequences": ["a", 1]}, "stop_sequences[1]", "a string"),
    "a server's tool": (
        {"tools": [TOOL, {"type": "web_search_20260318", "name": "w"}]},
        "tools[1]",
        "web_search_20260318",
    ),
    "a tool for other code than the client's": (
        {"tools": [TOOL, {**TOOL, "allowed_callers": ["code_execution_20260120"]}]},
        "tools[1].allowed_callers",
        "allow 'direct' calls",
    ),
    "callers of another kind": (
        {"tools": [{**TOOL, "allowed_callers": "direct"}]},
        "tools[0].allowed_callers",
        "array",
    ),
    "a tool without a name": ({"tools": [{"input_schema": {}}]}, "tools[0].name", "missing"),
    "a tool without a schema": ({"tools": [{"name": "f"}]}, "tools[0].input_schema", "missing"),
    "a choice of another kind": ({"tool_choice": "auto"}, "tool_choice", "an object"),
    "another choice": ({"tool_choice": {"type": "most"}}, "tool_choice.type", "'any'"),
    "a choice among none": ({"tool_choice": {"type": "any"}}, "tool_choice", "has none"),
    "a choice of no tool": (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sub"}},
        "tool_choice.name",
        "'sub'",
    ),
    "thoughts of another kind": ({"thinking": True}, "thinking", "an object"),
    "other thoughts": ({"thinking": {"type": "deep"}}, "thinking.type", "'adaptive'"),
    "thoughts without a budget": ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "missing"),
    "another effort": ({"output_config": {"effort": "huge"}}, "output_config.effort", "'xhigh'"),
    "another form": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", "'json_schema'"),
    "a form without a schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema",
        "missing",
    ),
    "other people's servers": ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers", "in the client"),
    "a thread": ({"thread": {"type": "create"}}, "thread", "send all messages"),
}


def translated(body: bytes) -> Call:
    """The chat that a request becomes. Raises also where only a provider of the same API could serve it."""
    call, _ = MessagesDoor().read(body, Client("req-1"))
    if call.refusal is not None:
        raise call.refusal
    return call


@every(BAD.values())
def test_what_is_wrong_is_named_by_its_place(fields: dict[str, Any], param: str, words: str) -> None:
    body = json.dumps({"max_tokens": 10, "messages": [HI], **fields}).encode()
    with pytest.raises(InvalidRequest) as caught:
        translated(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message
    assert param.split(".")[0] in caught.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"model":"a","model":"b"}', b"[" * 100_000, b'{"messages":' + b"[" * 5000, b"null"],
)
def test_what_is_no_request_at_all(body: bytes) -> None:
    for read in (lambda b: MessagesDoor().read(b, Client("req-1")), count_tokens):
        with pytest.raises(InvalidRequest):
            read(body)


@pytest.mark.parametrize("depth", [10, 500, 900, 5000])
def test_a_schema_may_be_deep_and_is_refused_where_nobody_can_read_it(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    front = b'{"max_tokens":1,"messages":[{"role":"user","content":"x"}],"tools":[{"name":"f","input_schema":{"x":'
    try:
        call, _ = MessagesDoor().read(front + deep + b"}}]}", Client("req-1"))
    except InvalidRequest:
        assert depth > 500
    else:
        assert deep in call.body


def test_tokens_are_estimated_from_bytes() -> None:
    """More for more, a fixed price for a picture, and no need for max_tokens."""

    def count(*messages: Any, **fields: Any) -> int:
        model, counted = count_tokens(json.dumps({"messages": messages, "model": "x", **fields}).encode())
        assert model == "x"
        tokens = json.loads(counted)
        assert set(tokens) == {"input_tokens"}
        return int(tokens["input_tokens"])

    small, large = count(HI), count({"role": "user", "content": "word " * 400})
    assert 1 <= small < 40
    assert 400 <= large <= 600
    big = {**PNG, "source": {**PNG["source"], "data": "A" * 100_000}}  # type: ignore[dict-item]  # a part of any values
    assert count(user(big)) == count(user(PNG))
    assert 0 < count(user(PNG)) - TOKENS_A_FILE < 60
    assert count(HI, tools=[TOOL], system="be brief") > small


# --- any legal request -----------------------------------------------------------------------------

WORDS = st.text(max_size=6)
TEXTS = st.builds(text, WORDS)
IMAGES = st.just(PNG)
READABLE = st.one_of(TEXTS, IMAGES)
TURNS = st.lists(
    st.one_of(
        st.builds(lambda words: {"role": "user", "content": words}, WORDS),
        st.builds(lambda blocks: user(*blocks), st.lists(READABLE, min_size=1, max_size=3)),
        st.builds(lambda words: {"role": "system", "content": words}, WORDS),
        st.builds(lambda blocks: assistant(*blocks), st.lists(TEXTS, min_size=1, max_size=2)),
        st.builds(lambda n: ("call", n), st.integers(1, 3)),
    ),
    max_size=5,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A request that Anthropic's documentation allows."""
    messages: list[dict[str, Any]] = []
    for turn in [*draw(TURNS), HI]:
        if not isinstance(turn, tuple):
            messages.append(turn)
            continue
        ids = [f"toolu_{len(messages)}_{n}" for n in range(turn[1])]
        thought = {"type": "thinking", "thinking": "t", "signature": draw(st.sampled_from(["", "x", "manallm1.x"]))}
        messages.append(assistant(thought, *({**USE, "id": id_, "input": {"w": draw(WORDS)}} for id_ in ids)))
        contents = st.one_of(WORDS, st.lists(READABLE, max_size=2), st.none())
        rows = [{**RESULT, "tool_use_id": id_, "content": draw(contents)} for id_ in draw(st.permutations(ids))]
        messages.append(user(*rows, *draw(st.lists(TEXTS, max_size=1))))
    fields = st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 200_000), "stream": st.booleans()},
        optional={
            "system": st.one_of(WORDS, st.lists(TEXTS, max_size=2)),
            "temperature": st.floats(0, 1),
            "top_k": st.integers(1, 100),
            "stop_sequences": st.lists(st.text(min_size=1, max_size=3), max_size=3),
            "thinking": st.sampled_from(
                [{"type": "adaptive"}, {"type": "disabled"}, {"type": "enabled", "budget_tokens": 2048}]
            ),
            "output_config": st.sampled_from(
                [{"effort": "low"}, {"format": {"type": "json_schema", "schema": SCHEMA}}]
            ),
            "tools": st.sampled_from([[], [TOOL]]),
            "metadata": st.just({"user_id": "u"}),
        },
    )
    return {"messages": messages, **draw(fields)}


async def answered(asked: dict[str, Any]) -> tuple[Call, bytes]:
    """What the gateway does, in short, with the loopback provider."""
    call, reply = MessagesDoor().read(json.dumps(asked).encode(), Client("req-1"))
    provider = LoopbackProvider("p")
    if not asked["stream"]:
        return call, reply.whole(ENTRY.target, await provider.complete(call, ENTRY))
    stream = await provider.stream(call, ENTRY)
    reply.start(ENTRY.target)
    frames, batch = b"", StreamBatch()
    while not batch.done:
        batch = await stream.next()
        frames += reply.events(batch)
    return call, frames + reply.end(stream.usage)


def test_any_legal_request_gets_a_legal_answer() -> None:
    """From loopback, by a strict client and by the SDK's own types; the other dialects can be told of it, or say in
    words of ours why not."""
    told: dict[str, list[Any]] = {"messages": [], "events": []}

    @given(requests())
    def ask(asked: dict[str, Any]) -> None:
        call, body = asyncio.run(answered(asked))
        made = anthropic_stream.message(body) if asked["stream"] else json.loads(body)
        assert made["content"][0]["text"].startswith("This is manallm-proxy")
        assert (made["stop_reason"], made["model"], made["type"]) == ("end_turn", "p/gemini-2.5-flash", "message")
        assert made["usage"]["output_tokens"] > 0
        told["messages"].append(made)
        told["events"] += anthropic_stream.events(body) if asked["stream"] else []
        for dialect in (ollama_request, gemini_request):
            with contextlib.suppress(InvalidRequest, Unsupported):
                dialect.build(call, ENTRY)

    ask()
    told["events"] = [row for row in told["events"] if row["type"] != "ping"]
    assert judged("anthropic", "anthropic_types.py", told) == []


def test_all_that_an_answer_may_hold_is_legal() -> None:
    """Thinking with a signature, text, a refusal, a picture and calls, cut or not; by the SDK's own types."""
    told: dict[str, list[Any]] = {"messages": [], "events": []}
    call = ToolCall("add", '{"x":1}', "c1", 0, {"extra_content": {"google": {"thought_signature": "c2ln"}}})
    for finish in ("stop", "length", "content_filter", "tool_calls"):
        deltas = (
            Delta(reasoning="Hm."),
            Delta(content="Hi"),
            Delta(refusal="no"),
            Delta(images=("data:image/png;base64,aGk=",)),
            Delta(tool_calls=(call,)),
            Delta(finish=finish),
        )
        for stream in (False, True):
            _, reply = MessagesDoor().read(json.dumps({"max_tokens": 9, "messages": [HI]}).encode(), Client("req-1"))
            if not stream:
                one = Delta("Hi", "Hm.", (call,), finish, refusal="no")
                told["messages"].append(
                    json.loads(reply.whole(ENTRY.target, Answer(choices=(one,), usage=Usage(1, 2, 3, 4))))
                )
                continue
            reply.start(ENTRY.target)
            body = b"".join(reply.events(StreamBatch(deltas=(delta,))) for delta in deltas) + reply.end(
                Usage(1, 2, 3, 4)
            )
            told["messages"].append(anthropic_stream.message(body))
            told["events"] += anthropic_stream.events(body)
    assert {block["type"] for row in told["messages"] for block in row["content"]} == {"thinking", "text", "tool_use"}
    assert judged("anthropic", "anthropic_types.py", told) == []


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-9, 9), st.sampled_from(["text", "image", "x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "role", "content", "source", "text", "name", "id", "data"]), inner, max_size=4
        ),
    ),
    max_leaves=8,
)
PLACES: list[Callable[[Any], dict[str, Any]]] = [
    lambda value: {"messages": value},
    lambda value: {"messages": [value]},
    lambda value: {"messages": [{"role": "user", "content": value}]},
    lambda value: {"messages": [user({"type": "document", "source": value})]},
    lambda value: {
        "messages": [assistant(USE, {"type": "thinking", "signature": value}), user({**RESULT, "content": value})]
    },
    lambda value: {"system": value, "thinking": value},
    lambda value: {"tools": value},
    lambda value: {"tools": [value], "tool_choice": value},
    lambda value: {"tools": [TOOL], "tool_choice": value},
    lambda value: {"output_config": value, "max_tokens": value},
    lambda value: {"output_config": {"format": value, "effort": value}},
    lambda value: {"stop_sequences": value, "temperature": value, "top_k": value, "mcp_servers": value},
]


@pytest.mark.parametrize("place", range(len(PLACES)))
@given(value=ANYTHING)
def test_anything_anywhere_is_read_or_refused(place: int, value: Any) -> None:
    """By an error with a place, never by a bug."""
    body = json.dumps({"max_tokens": 10, "messages": [HI], **PLACES[place](value)}).encode()
    refused: InvalidRequest | None = None
    try:
        MessagesDoor().read(body, Client("req-1"))
    except InvalidRequest as error:
        refused = error
    if refused is not None:
        assert refused.param and re.split(r"[.\[]", refused.param)[0] in refused.message
