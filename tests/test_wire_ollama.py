"""Ollama's dialect: what is sent for what a client asked, and what its replies become. Bytes in, bytes out."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import struct
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList, RequestSummary
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    Blame,
    ContextTooLong,
    Disconnected,
    KeyRejected,
    MissingModel,
    ModelFailed,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerBusy,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.model_list import ODD_ROWS
from manallm_proxy.providers.ollama import reply as ollama_module
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.wire import Translator, Wire
from tests.cases import every
from tests.through_doors import events, whole

WIRE: Wire = OllamaWire()
OPEN: Wire = OllamaWire(client_options=True)
"""Of a provider whose clients may set what concerns everybody."""
TARGET = Target("ollama", "qwen2.5:7b")
HI = [{"role": "user", "content": "hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
ENDPOINTS = {"chat": Endpoint.CHAT, "generate": Endpoint.COMPLETIONS, "embed": Endpoint.EMBEDDINGS}


def call_of(asked: object, endpoint: Endpoint = Endpoint.CHAT) -> Call:
    """A call as the web layer hands it on; where it would have refused the body, one with a blank head."""
    body = json.dumps(asked).encode()
    try:
        head = read_summary(body, ("input", (str, list)) if endpoint is Endpoint.EMBEDDINGS else ("model", str))
    except ProxyError:
        stream = isinstance(asked, dict) and asked.get("stream") is True
        options = asked.get("stream_options") if isinstance(asked, dict) else None
        wants = isinstance(options, dict) and options.get("include_usage") is True
        head = RequestSummary("", stream, wants, frozenset(), {})
    return Call(endpoint, head, body, "req-1")


def sent(asked: Any, endpoint: Endpoint = Endpoint.CHAT, /, wire: Wire = OPEN, **options: Any) -> dict[str, Any]:
    """The body that goes to Ollama for what a client asked, under the operator's options."""
    request = wire.request(call_of(asked, endpoint), Entry(TARGET, options=options))
    body = json.loads(request.body)
    assert isinstance(body, dict)
    return body


def chat(**asked: Any) -> dict[str, Any]:
    return sent({"messages": HI, **asked})


def refused(asked: object, endpoint: Endpoint = Endpoint.CHAT, wire: Wire = WIRE) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        wire.request(call_of(asked, endpoint), Entry(TARGET))
    return caught.value


def line(**members: Any) -> bytes:
    return json.dumps({"model": "qwen2.5:7b", "created_at": "2026-08-21T10:00:00Z", **members}).encode() + b"\n"


def has_content(content: str = "", **message: Any) -> bytes:
    return line(message={"role": "assistant", "content": content, **message}, done=False)


def done(content: str = "", reason: str = "stop", **members: Any) -> bytes:
    message = {"role": "assistant", "content": content, **members.pop("message", {})}
    return line(message=message, done=True, done_reason=reason, **members)


def called(name: str, arguments: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"function": {"index": 0, "name": name, "arguments": arguments}, **members}


CALLS: dict[int, Call] = {}
"""The call of each translator that a test has made, for the door that writes its answer."""


def stream(*, usage: bool = False, endpoint: Endpoint = Endpoint.CHAT) -> Translator:
    asked: dict[str, Any] = {"messages": HI, "stream": True}
    if usage:
        asked["stream_options"] = {"include_usage": True}
    call = call_of(asked, endpoint)
    translator = WIRE.translator(call, Entry(TARGET), "application/x-ndjson")
    CALLS[id(translator)] = call
    return translator


def poured(chunks: list[bytes], translator: Translator | None = None) -> tuple[list[Any], StreamBatch]:
    """All events of a stream that arrives in `chunks` (without what differs from run to run), and how it ended."""
    translator = translator or stream()
    call = CALLS.get(id(translator)) or call_of({"messages": HI, "stream": True})
    batches: list[StreamBatch] = []
    for chunk in chunks:
        batches.append(batch := translator.feed(chunk))
        if batch.done or batch.error:
            break
    else:
        batches.append(batch := translator.close())
    return [steady(event) for event in events(call, TARGET, batches, translator.usage, end=batch.done)], batch


def steady(event: dict[str, Any]) -> dict[str, Any]:
    """`event` without ``id`` and ``created``, and with made-up call ids replaced."""
    for choice in event["choices"]:
        for tool in choice.get("delta", {}).get("tool_calls", ()):
            tool["id"] = "made-up" if len(tool["id"]) == len("call_") + 24 else tool["id"]
    return {k: v for k, v in event.items() if k not in ("id", "created")}


def deltas(told: list[Any]) -> list[Any]:
    return [event["choices"][0]["delta"] for event in told if event["choices"]]


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "asked", "path"),
    [
        (Endpoint.CHAT, {"messages": HI}, "api/chat"),
        (Endpoint.COMPLETIONS, {"prompt": "hi"}, "api/generate"),
        (Endpoint.EMBEDDINGS, {"input": "hi"}, "api/embed"),
    ],
)
def test_each_endpoint_has_its_path_and_the_targets_model(endpoint: Endpoint, asked: Any, path: str) -> None:
    """Paths lie below the base URL, and the model is the target's, whatever the client called it."""
    request = WIRE.request(call_of({"model": "mana/fast-text", **asked}, endpoint), Entry(TARGET))
    assert (request.path, json.loads(request.body)["model"]) == (path, "qwen2.5:7b")


@pytest.mark.parametrize("asked", [None, True, False])
def test_stream_is_always_said(asked: bool | None) -> None:
    """Ollama streams unless told otherwise, so silence is no choice."""
    given = {} if asked is None else {"stream": asked}
    assert chat(model="m", **given)["stream"] is bool(asked)
    assert "stream" not in sent({"input": "a"}, Endpoint.EMBEDDINGS)


def test_a_plain_chat_says_nothing_that_the_client_did_not_say() -> None:
    """No options, so that the Modelfile's own temperature and context hold; and nothing is cut in silence."""
    assert chat() == {"model": "qwen2.5:7b", "messages": HI, "stream": False, "truncate": False}


@every(
    [
        ({"max_tokens": 5}, "num_predict", 5),
        ({"max_completion_tokens": 6}, "num_predict", 6),
        ({"max_completion_tokens": 6, "max_tokens": 5}, "num_predict", 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, "num_predict", 5),
        ({"max_tokens": 5.0}, "num_predict", 5),
        ({"max_tokens": -1}, "num_predict", -1),
        ({"temperature": 0}, "temperature", 0),
        ({"temperature": 0.3}, "temperature", 0.3),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"seed": 7}, "seed", 7),
        ({"frequency_penalty": 0.1}, "frequency_penalty", 0.1),
        ({"presence_penalty": -0.1}, "presence_penalty", -0.1),
        ({"top_k": 40}, "top_k", 40),
        ({"min_p": 0.05}, "min_p", 0.05),
        ({"repeat_penalty": 1.1}, "repeat_penalty", 1.1),
        ({"stop": "\n"}, "stop", ["\n"]),
        ({"stop": ["a", "b"]}, "stop", ["a", "b"]),
        ({"options": {"num_ctx": 8192}}, "num_ctx", 8192),
        ({"options": {"mirostat": 2}}, "mirostat", 2),
        ({"temperature": 1, "options": {"temperature": 0.2}}, "temperature", 0.2),
    ]
)
def test_sampling_goes_to_options(asked: dict[str, Any], option: str, value: object) -> None:
    """Each of OpenAI's sampling fields has its name among Ollama's options."""
    assert chat(**asked)["options"] == {option: value}


@pytest.mark.parametrize("key", ["temperature", "stop", "seed", "max_tokens", "options", "think", "keep_alive"])
def test_null_is_silence(key: str) -> None:
    """Some SDKs write null for what is not set."""
    assert chat(**{key: None}) == chat()


@every(
    [
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "minimal"}, {"think": "low"}),
        ({"reasoning_effort": "low"}, {"think": "low"}),
        ({"reasoning_effort": "medium"}, {"think": "medium"}),
        ({"reasoning_effort": "high"}, {"think": "high"}),
        ({"reasoning_effort": "xhigh"}, {"think": "max"}),
        ({"reasoning_effort": "max"}, {"think": "max"}),
        ({"reasoning_effort": ""}, {}),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, {"think": "high"}),
        ({"reasoning": {"exclude": True}}, {}),
        ({"think": True}, {"think": True}),
        ({"think": "low", "reasoning_effort": "high"}, {"think": "low"}),
        ({"keep_alive": "10m"}, {"keep_alive": "10m"}),
        ({"keep_alive": -1}, {"keep_alive": -1}),
        ({"truncate": True, "shift": False}, {"truncate": True, "shift": False}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"format": {"type": "object"}},
        ),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": False}, {}),
        ({"n": 1, "user": "u", "logit_bias": {}, "store": True, "service_tier": "auto"}, {}),
    ]
)
def test_what_stands_beside_the_options(asked: dict[str, Any], fields: dict[str, Any]) -> None:
    """think, format and the rest; OpenAI's own fields that change no answer are left out."""
    assert chat(**asked) == chat() | fields


def test_the_operators_options_are_defaults() -> None:
    """Some are Ollama's options, some stand beside them; the client's explicit values win where they harm nobody."""
    operator: dict[str, Any] = {"num_ctx": 8192, "temperature": 0.2, "keep_alive": "1h", "think": False, "top_k": None}
    plain = sent({"messages": HI}, **operator)
    assert plain["options"] == {"num_ctx": 8192, "temperature": 0.2}
    assert (plain["keep_alive"], plain["think"]) == ("1h", False)
    asked = sent({"messages": HI, "temperature": 1, "keep_alive": 0, "reasoning_effort": "high"}, **operator)
    assert asked["options"] == {"num_ctx": 8192, "temperature": 1}
    assert (asked["keep_alive"], asked["think"]) == ("1h", "high")


@pytest.mark.parametrize(
    ("name", "operator", "client"),
    [
        ("num_ctx", 8192, 4096),
        ("num_batch", 512, 64),
        ("num_gpu", 99, 0),
        ("main_gpu", 1, 0),
        ("use_mmap", True, False),
        ("num_thread", 8, 1),
    ],
)
def test_a_client_cannot_force_a_reload(name: str, operator: Any, client: Any) -> None:
    """Runner options are the operator's; those that nobody set are the client's only where the provider allows it."""
    asked = {"messages": HI, "options": {name: client, "top_k": 3}}
    for wire in (WIRE, OPEN):
        assert sent(asked, wire=wire, **{name: operator})["options"] == {name: operator, "top_k": 3}
    assert sent(asked)["options"] == {name: client, "top_k": 3}
    assert sent(asked, wire=WIRE)["options"] == {"top_k": 3}


@pytest.mark.parametrize("endpoint", list(ENDPOINTS.values()), ids=list(ENDPOINTS))
def test_what_was_ignored_is_noted(endpoint: Endpoint) -> None:
    """By name alone, once each, for the request's line in the log; what the operator set anyway is nothing to note."""
    options = {"num_ctx": 512, "num_gpu": 0, "low_vram": True, "num_batch": 64, "seed": 1}
    asked = {"messages": HI, "prompt": "a", "input": "a", "options": options, "keep_alive": 0, "shift": False}
    call = call_of(asked, endpoint)
    body = json.loads(WIRE.request(call, Entry(TARGET, options={"num_batch": 64})).body)
    assert body["options"] == {"num_batch": 64, "seed": 1}
    assert not {"keep_alive", "shift"} & body.keys()
    names = ("num_ctx", "num_gpu", "low_vram", "shift", "keep_alive")
    assert sorted(call.remarks) == sorted(f"ignored: {name}" for name in names)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "options.num_predict"])
def test_no_tokens_is_no_request(field: str) -> None:
    """Ollama leaves a zero out on its way to the runner, where it then means: without end."""
    value = {"options": {"num_predict": 0}} if "." in field else {field: 0}
    error = refused({"messages": HI, **value})
    assert (error.status, error.param) == (400, field)


@pytest.mark.parametrize("few", [-8, 0, 3.0])
def test_a_window_without_room_is_refused_where_it_would_be_sent(few: float) -> None:
    """Ollama would load the model anew for all with a window of 4 tokens. Where it is ignored, it does no harm."""
    asked = {"messages": HI, "options": {"num_ctx": few}}
    error = refused(asked, wire=OPEN)
    assert (error.status, error.param) == (400, "options.num_ctx")
    assert sent(asked, num_ctx=2048)["options"] == {"num_ctx": 2048}
    assert "options" not in sent(asked, wire=WIRE)


def test_shift_is_the_operators_where_it_is_set() -> None:
    """It reloads the model like a runner option, but stands beside the options."""
    assert sent({"messages": HI, "shift": False}, shift=True)["shift"] is True
    assert "shift" not in sent({"messages": HI, "shift": False}, wire=WIRE)
    assert sent({"messages": HI, "truncate": True}, truncate=False)["truncate"] is True


def test_embeddings_take_no_sampling() -> None:
    """The operator's options go along, since num_ctx must not differ; think and shift have no meaning there."""
    asked = {"input": ["a", "b"], "dimensions": 64, "encoding_format": "base64", "temperature": 1, "user": "u"}
    assert sent(asked, Endpoint.EMBEDDINGS, num_ctx=2048, keep_alive="1h", think=True, shift=True) == {
        "model": "qwen2.5:7b",
        "input": ["a", "b"],
        "dimensions": 64,
        "keep_alive": "1h",
        "truncate": False,
        "options": {"num_ctx": 2048},
    }


def test_a_legacy_completion() -> None:
    """prompt and suffix as they are; a list of one prompt is that prompt, as LangChain sends it."""
    asked = {"prompt": "def f(", "suffix": "return 1", "max_tokens": 9, "logprobs": 2, "stream": True}
    assert sent(asked, Endpoint.COMPLETIONS) == {
        "model": "qwen2.5:7b",
        "prompt": "def f(",
        "suffix": "return 1",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "truncate": False,
        "options": {"num_predict": 9},
    }
    assert sent({"prompt": ["one"]}, Endpoint.COMPLETIONS)["prompt"] == "one"


@pytest.mark.parametrize(
    ("message", "translated"),
    [
        ({"role": "user", "content": "hi", "name": "bob"}, {"role": "user", "content": "hi"}),
        ({"role": "developer", "content": "be kind"}, {"role": "system", "content": "be kind"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
            {"role": "assistant", "content": "4", "thinking": "2+2"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        (
            {"role": "tool", "name": "look", "content": "{}"},
            {"role": "tool", "content": "{}", "tool_name": "look"},
        ),
        (
            {"role": "tool", "tool_call_id": "gone", "content": "x"},
            {"role": "tool", "content": "x", "tool_call_id": "gone"},
        ),
    ],
)
def test_messages(message: dict[str, Any], translated: dict[str, Any]) -> None:
    """One message of each kind, as Ollama wants it: content is one string."""
    assert chat(messages=[message])["messages"] == [translated]


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:image/JPEG;base64,", "data:;base64,"])
@pytest.mark.parametrize("bare", [True, False])
def test_an_image_loses_its_prefix(head: str, bare: bool) -> None:
    """Text and images of one message stay one message."""
    image = head + PNG
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": image if bare else {"url": image, "detail": "low"}},
    ]
    assert chat(messages=[{"role": "user", "content": parts}])["messages"] == [
        {"role": "user", "content": "what is this?", "images": [PNG]}
    ]


def test_a_tool_call_and_its_result() -> None:
    """Arguments become an object, byte for byte; the result says whose it is."""
    arguments = '{"city": "Paris", "deg": 1.10, "n": 12345678901234567890123}'
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    asked = {
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
    }
    body = WIRE.request(call_of(asked), Entry(TARGET)).body
    assert f'"arguments":{arguments}'.encode() in body
    _, said, result = json.loads(body)["messages"]
    assert said["tool_calls"][0]["id"] == "call_1"
    assert said["tool_calls"][0]["function"]["name"] == "weather"
    assert result == {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "call_1"}


@pytest.mark.parametrize("arguments", ["", None, "{}", {}, "{", "[]", '{"a":', "NaN", "x" * 1000])
def test_a_tool_call_without_arguments(arguments: object) -> None:
    """Many models say nothing where they mean the empty object."""
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    body = chat(messages=[message])
    assert body["messages"][0]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]


def test_tools_go_as_they_are_unless_none_may_be_called() -> None:
    """``tool_choice: none`` is said by leaving them out; auto is what Ollama does anyway."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert chat(tools=tools, tool_choice="auto", parallel_tool_calls=True)["tools"] == tools
    assert "tools" not in chat(tools=tools, tool_choice="none")
    assert "tools" not in chat(tools=[])


def user(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: object) -> dict[str, Any]:
    return user({"type": "image_url", "image_url": {"url": url}})


def tool_call(call: object) -> dict[str, Any]:
    return {"messages": [*HI, {"role": "assistant", "tool_calls": [call]}]}


@pytest.mark.parametrize(
    ("endpoint", "asked", "param"),
    [
        ("chat", {"messages": HI, "n": 2}, "n"),
        ("chat", {"messages": HI, "tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools"),
        ("chat", {"messages": HI, "functions": [{"name": "f"}]}, "functions"),
        ("chat", {"messages": HI, "modalities": ["text", "audio"]}, "modalities"),
        ("chat", image("https://example.com/cat.png"), "messages"),
        ("chat", image("HTTP://example.com/cat.png"), "messages"),
        ("chat", image("data:image/gif;base64," + PNG), "messages"),
        ("chat", user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), "messages"),
        ("chat", user({"type": "file", "file": {"file_id": "f"}}), "messages"),
        ("generate", {"prompt": ["a", "b"]}, "prompt"),
        ("generate", {"prompt": "a", "echo": True}, "echo"),
        ("generate", {"prompt": "a", "best_of": 3}, "best_of"),
    ],
)
def test_what_ollama_cannot_do_is_refused(endpoint: str, asked: dict[str, Any], param: str) -> None:
    """400 unsupported_capability: an answer that ignores half the request would be worse."""
    error = refused(asked, ENDPOINTS[endpoint])
    assert isinstance(error, Unsupported)
    assert error.param == param
    assert "llama" in error.message or "tools" in error.message


@every(
    [
        ("chat", {}, "messages"),
        ("chat", {"messages": "hi"}, "messages"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": ["hi"]}, "messages[0]"),
        ("chat", {"messages": [*HI, {"content": "x"}]}, "messages[1].role"),
        ("chat", {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": 3, "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ("chat", user("text"), "messages[0].content[0]"),
        ("chat", user({"text": "x"}), "messages[0].content[0].type"),
        ("chat", user({"type": "text"}), "messages[0].content[0].text"),
        ("chat", user({"type": "text", "text": 1}), "messages[0].content[0].text"),
        ("chat", user({"type": "image_url"}), "messages[0].content[0].image_url"),
        ("chat", user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
        ("chat", image("cat.png"), "messages[0].content[0].image_url.url"),
        ("chat", image("data:image/png," + PNG), "messages[0].content[0].image_url.url"),
        ("chat", image("data:image/png;base64,"), "messages[0].content[0].image_url.url"),
        ("chat", image("data:image/png;base64,***"), "messages[0].content[0].image_url.url"),
        ("chat", image("data:image/png;base64,ü"), "messages[0].content[0].image_url.url"),
        ("chat", tool_call(1), "messages[1].tool_calls[0]"),
        ("chat", tool_call({}), "messages[1].tool_calls[0].function"),
        ("chat", tool_call({"function": {}}), "messages[1].tool_calls[0].function.name"),
        (
            "chat",
            tool_call({"function": {"name": "f", "arguments": 1}}),
            "messages[1].tool_calls[0].function.arguments",
        ),
        ("chat", {"messages": HI, "temperature": "1"}, "temperature"),
        ("chat", {"messages": HI, "temperature": True}, "temperature"),
        ("chat", {"messages": HI, "max_tokens": 1.5}, "max_tokens"),
        ("chat", {"messages": HI, "max_tokens": 10**30}, "max_tokens"),
        ("chat", {"messages": HI, "stop": 1}, "stop"),
        ("chat", {"messages": HI, "stop": ["a", 1]}, "stop[1]"),
        ("chat", {"messages": HI, "n": 0}, "n"),
        ("chat", {"messages": HI, "n": "1"}, "n"),
        ("chat", {"messages": HI, "options": []}, "options"),
        ("chat", {"messages": HI, "options": {"num_ctx": "4096"}}, "options.num_ctx"),
        ("chat", {"messages": HI, "options": {"use_mmap": 1}}, "options.use_mmap"),
        ("chat", {"messages": HI, "options": {"stop": {}}}, "options.stop"),
        ("chat", {"messages": HI, "keep_alive": {}}, "keep_alive"),
        ("chat", {"messages": HI, "think": "very"}, "think"),
        ("chat", {"messages": HI, "reasoning_effort": "very"}, "reasoning_effort"),
        ("chat", {"messages": HI, "reasoning_effort": 3}, "reasoning_effort"),
        ("chat", {"messages": HI, "reasoning": {"effort": "very"}}, "reasoning.effort"),
        ("chat", {"messages": HI, "logprobs": 1}, "logprobs"),
        ("chat", {"messages": HI, "tools": {}}, "tools"),
        ("chat", {"messages": HI, "tools": [1]}, "tools[0]"),
        ("chat", {"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("chat", {"messages": HI, "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ("chat", {"messages": HI, "tools": [], "tool_choice": "required"}, "tool_choice"),
        ("chat", {"messages": HI, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            "chat",
            {
                "messages": HI,
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
        ("chat", {"messages": HI, "tool_choice": "always"}, "tool_choice"),
        ("chat", {"messages": HI, "response_format": "json"}, "response_format"),
        ("chat", {"messages": HI, "response_format": {}}, "response_format.type"),
        ("chat", {"messages": HI, "response_format": {"type": "xml"}}, "response_format.type"),
        ("chat", {"messages": HI, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            "chat",
            {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        ("generate", {"prompt": [1, 2]}, "prompt"),
        ("generate", {"prompt": []}, "prompt"),
        ("generate", {"prompt": {}}, "prompt"),
        ("generate", {"prompt": "a", "suffix": 1}, "suffix"),
        ("generate", {"prompt": "a", "logprobs": True}, "logprobs"),
        ("embed", {}, "input"),
        ("embed", {"input": ""}, "input"),
        ("embed", {"input": []}, "input"),
        ("embed", {"input": 3}, "input"),
        ("embed", {"input": ["a", 3]}, "input[1]"),
        ("embed", {"input": "a", "dimensions": 0}, "dimensions"),
        ("embed", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("chat", [], None),
        ("chat", 3, None),
    ]
)
def test_a_mistake_is_refused_with_its_path(endpoint: str, asked: Any, param: str | None) -> None:
    """400 with the exact path, before Ollama turns it into a 500."""
    error = refused(asked, ENDPOINTS[endpoint])
    assert isinstance(error, InvalidRequest)
    assert error.param == param


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_are_refused_with_the_setting_to_change(ids: list[Any]) -> None:
    """LangChain sends them by default, and its user sees only this message."""
    error = refused({"input": ids}, Endpoint.EMBEDDINGS)
    assert isinstance(error, InvalidRequest)
    assert error.param == "input"
    assert "check_embedding_ctx_length=False" in error.message


@pytest.mark.parametrize("depth", [500, 900, 990, 100_000])
def test_deep_nesting_is_no_crash(depth: int) -> None:
    """Whether it is written again or refused, nothing but our own errors comes out."""
    head = RequestSummary("", False, False, frozenset(), {})
    deep = b"[" * depth + b"]" * depth
    body = b'{"messages":[{"role":"user","content":"a"}],"options":{"x":' + deep + b"}}"
    with contextlib.suppress(InvalidRequest):
        WIRE.request(Call(Endpoint.CHAT, head, body, "r"), Entry(TARGET))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
words = st.sampled_from(
    (
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tool_call_id",
        "json_schema",
        "schema",
        "effort",
        "user",
        "assistant",
        "tool",
        "json_object",
        "required",
        "data:;base64,AAAA",
        "{}",
        "num_ctx",
        "stop",
    )
)
wild = st.recursive(
    json_values | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=5),
    max_leaves=25,
)
keys = st.sampled_from(
    (
        "model",
        "messages",
        "stream",
        "stop",
        "temperature",
        "max_tokens",
        "tools",
        "tool_choice",
        "response_format",
        "reasoning",
        "reasoning_effort",
        "think",
        "keep_alive",
        "options",
        "n",
        "logprobs",
        "top_logprobs",
        "prompt",
        "suffix",
        "input",
        "dimensions",
        "encoding_format",
        "modalities",
    )
)
roles = st.sampled_from(["user", "assistant", "tool", "system"])
messages = st.lists(
    st.fixed_dictionaries({"role": roles}, optional={"content": wild, "tool_calls": wild, "tool_call_id": wild}),
    max_size=3,
)


@given(
    asked=st.dictionaries(keys, wild, max_size=6) | wild,
    history=messages | st.none(),
    endpoint=st.sampled_from(list(Endpoint)),
)
def test_any_json_is_translated_or_refused(asked: Any, history: Any, endpoint: Endpoint) -> None:
    """Nothing but our own errors comes out of a request, and what goes out is JSON."""
    if history is not None and isinstance(asked, dict):
        asked = {**asked, "messages": history}
    try:
        sent_options = sent(asked, endpoint, num_ctx=4096)["options"]
    except ProxyError as error:
        caught = error
    else:
        assert sent_options["num_ctx"] == 4096
        return
    assert caught.status == 400
    assert caught.message


# --- failures -------------------------------------------------------------------------------------


def fail(status: int, error: object) -> ProviderError:
    return WIRE.failure(status, {}, json.dumps({"error": error}).encode())


NESTED = json.dumps({"error": {"code": 400, "message": "request (5000 tokens) exceeds the available context size"}})


@every(
    [
        (400, "json: cannot unmarshal array into Go struct field", RequestRejected, 400),
        (400, "registry.ollama.ai/library/x does not support tools", Unsupported, 400),
        (400, '"nomic-embed-text" does not support chat', Unsupported, 400),
        (400, '"qwen2.5:7b" does not support thinking', Unsupported, 400),
        (500, "image input is not supported - hint: you may need to provide the mmproj", Unsupported, 400),
        (400, "the prompt is longer than the context length currently available to the model", ContextTooLong, 400),
        (400, "the input length exceeds the context length", ContextTooLong, 400),
        (400, NESTED, ContextTooLong, 400),
        (500, "the prompt is longer than the context length currently available to the model", ContextTooLong, 400),
        (500, "the input length exceeds the context length", ContextTooLong, 400),
        (500, NESTED, ContextTooLong, 400),
        (500, json.dumps({"error": {"message": "too many", "type": "exceed_context_size_error"}}), ContextTooLong, 400),
        (400, json.dumps({"error": NESTED}), ContextTooLong, 400),
        (404, "model 'x' not found", MissingModel, 404),
        (404, 'model "x" not found, try pulling it first', MissingModel, 404),
        (429, "you have reached your hourly usage limit", RateLimited, 429),
        (500, 'option "num_ctx" must be of type integer', RequestRejected, 400),
        (500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object', RequestRejected, 400),
        (500, "model runner has unexpectedly stopped, this may be due to resource limitations", ModelFailed, 502),
        (500, "", ModelFailed, 502),
        (502, "Post https://ollama.com: dial tcp: no such host", ModelFailed, 502),
        (503, "server busy, please try again.  maximum pending requests exceeded", ServerBusy, 503),
    ]
)
def test_what_ollama_says_before_the_first_token(status: int, text: str, kind: type[ProviderError], shown: int) -> None:
    """The documented errors, by status and text."""
    error = fail(status, text)
    assert type(error) is kind
    assert error.status == shown


def test_the_callers_mistakes_are_told_in_ollamas_own_words() -> None:
    """The caller can mend it only if it is told what; a long text is cut."""
    assert fail(400, "x does not support tools").message == "x does not support tools"
    assert fail(500, 'option "num_ctx" must be of type integer').message == 'option "num_ctx" must be of type integer'
    assert "5000 tokens" in fail(400, NESTED).message
    assert len(fail(400, "word " * 1000).message) <= 500


def test_a_model_that_does_not_run_shows_a_reason_and_no_more() -> None:
    """The text of a 500 may hold paths or what a model said, so only known troubles are named."""
    error = fail(500, "model requires more system memory (9.0 GiB) than is available (4.0 GiB)")
    assert (error.detail, error.blame) == ("not enough memory", Blame.TARGET)
    error = fail(500, "error parsing tool call: raw='{secret'")
    assert "secret" not in error.message + (error.detail or "")


def test_a_reverse_proxy_without_its_ollama_speaks_against_the_provider() -> None:
    """A 502 page is no word of Ollama's; with Ollama's JSON it is one cloud model out of reach."""
    assert type(WIRE.failure(502, {}, b"<html>Bad Gateway</html>")) is ServerFailed
    assert fail(502, "ollama.com: no such host").blame is Blame.TARGET


def test_an_empty_403_is_the_host_check() -> None:
    """Ollama says nothing then, so we say what to set."""
    error = WIRE.failure(403, {}, b"")
    assert isinstance(error, KeyRejected)
    assert "OLLAMA_HOST" in error.message
    assert "base_url" in error.message


def test_a_cloud_model_without_sign_in() -> None:
    """The operator signs in on Ollama's machine; its sign-in link is not for the caller."""
    body = json.dumps({"error": "unauthorized", "signin_url": "https://ollama.com/connect?key=abc"}).encode()
    error = WIRE.failure(401, {}, body)
    assert isinstance(error, KeyRejected)
    assert "ollama signin" in error.message
    assert "key=abc" not in error.message
    assert "disabled" in fail(403, "ollama cloud is disabled").message


def test_broken_nesting_is_text() -> None:
    """What looks like JSON in the string and is none, or says nothing, is shown as it came; nothing is tried anew."""
    assert fail(400, "{oops").message == "{oops"
    assert fail(400, '{"error": {}}').message == '{"error": {}}'
    assert WIRE.reshape(call_of({"messages": HI}), Entry(TARGET), 400, b"{}") is None


@given(status=st.integers(400, 599), body=st.binary(max_size=60) | wild.map(lambda v: json.dumps(v).encode()))
def test_any_failure_is_a_provider_error(status: int, body: bytes) -> None:
    """Whatever stands between us and Ollama may answer in its place."""
    error = WIRE.failure(status, {}, body)
    assert isinstance(error, ProviderError)
    assert error.message


# --- complete answers -----------------------------------------------------------------------------


def answered(body: bytes, endpoint: Endpoint = Endpoint.CHAT, **asked: Any) -> tuple[dict[str, Any], Usage | None]:
    answer = WIRE.answer(call_of(asked, endpoint), Entry(TARGET), body)
    return whole(call_of(asked, endpoint), TARGET, answer), answer.usage


@pytest.mark.parametrize(
    ("odd", "usage"),
    [
        ({"eval_count": None, "prompt_eval_count": 3}, Usage(3, 0)),
        ({"eval_count": 4.0, "prompt_eval_count": -1}, Usage(0, 4)),
        ({"eval_count": "7", "prompt_eval_count": [1]}, Usage()),
        ({"logprobs": [{"token": 3}], "done_reason": 5, "error": ""}, Usage()),
        ({"error": {}, "logprobs": "none"}, Usage()),
        ({"error": {"message": "", "code": 0}}, Usage()),
    ],
)
def test_what_an_answer_can_do_without_may_be_odd(odd: dict[str, Any], usage: Usage) -> None:
    """Counters, log probabilities, an error that says nothing: the answer stands, whole and streamed."""
    last = line(message={"role": "assistant", "content": "hi"}, done=True, **{"done_reason": "stop", **odd})
    body, counted = answered(last, messages=HI)
    assert (body["choices"][0]["message"]["content"], counted) == ("hi", usage)
    translator = stream()
    told, batch = poured([last], translator)
    assert (batch.done, translator.usage, told[0]["choices"][0]["delta"]["content"]) == (True, usage, "hi")


def test_half_of_a_surrogate_pair_is_no_broken_answer() -> None:
    """Legal JSON that our decoder refuses: U+FFFD for the client, in a word and in a tool's arguments."""
    raw = b'{"message":{"content":"a \\ud83d b"},"done":false}\n'
    raw += (
        b'{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"x":"\\udfff"}}}]},"done":true}\n'
    )
    told, batch = poured([raw])
    assert batch.done
    assert told[0]["choices"][0]["delta"]["content"] == "a \ufffd b"
    [call] = told[1]["choices"][0]["delta"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"x": "\ufffd"}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"city": "Rome", "n": [1.50]}, '{"city":"Rome","n":[1.5]}'),
        ('{"city": "Rome", "n": 1.50}', '{"city": "Rome", "n": 1.50}'),
        ('{"city": "R\u00f4\\"me\\ud83d"}', '{"city": "R\u00f4\\"me\\ud83d"}'),
        ("", "{}"),
        (" \n", "{}"),
        (None, "{}"),
        ("to Rome", "to Rome"),
        ([1], "[1]"),
    ],
)
def test_arguments_are_one_json_text_whatever_form_they_come_in(theirs: object, ours: str) -> None:
    """An object; or, of servers that imitate Ollama, OpenAI's text, which is not encoded once more. Ids may be null."""
    call = {"id": None, "function": {"name": "f", "arguments": theirs}}
    last = json.dumps({"message": {"content": "", "tool_calls": [call]}, "done": True}, separators=(",", ":")).encode()
    body, _ = answered(last, messages=HI)
    told, batch = poured([last])
    assert batch.done
    for said in (body["choices"][0]["message"], told[0]["choices"][0]["delta"]):
        [made] = said["tool_calls"]
        assert (made["function"]["name"], made["function"]["arguments"]) == ("f", ours)
        assert made["id"]


def test_thinking_is_not_asked_of_a_model_that_does_not_think() -> None:
    """An effort is often a client's global setting; what names Ollama's own ``think`` means it."""
    for asked, kept in (
        ({"reasoning_effort": "low"}, False),
        ({"reasoning": {"effort": "high"}}, False),
        ({"reasoning": {"enabled": True}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, False),
        ({"reasoning_effort": "low", "think": None}, False),
        ({"think": True}, True),
    ):
        call = attrs.evolve(call_of({"model": "m", "messages": HI, **asked}), denied=frozenset({"thinking"}))
        assert ("think" in json.loads(WIRE.request(call, Entry(TARGET)).body)) is kept
        call = attrs.evolve(call, denied=frozenset())
        assert "think" in json.loads(WIRE.request(call, Entry(TARGET)).body)
        again = WIRE.reshape(call, Entry(TARGET), 400, b'{"error":"m does not support thinking"}')
        assert (again is None) is kept
        assert again is None or "think" not in json.loads(again.body)


def test_a_whole_chat() -> None:
    """One object in, one ``chat.completion`` out, with unique id, the target as its model, and tokens counted."""
    body, usage = answered(done("Hello.", prompt_eval_count=26, eval_count=3, total_duration=5))
    assert (body["object"], body["model"]) == ("chat.completion", "ollama/qwen2.5:7b")
    assert body["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hello."},
        }
    ]
    assert body["usage"] == {"prompt_tokens": 26, "completion_tokens": 3, "total_tokens": 29}
    assert usage == Usage(26, 3)


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), ("length", "length"), ("load", "stop"), ("unload", "stop"), ("", "stop")]
)
def test_why_it_ended(reason: str, finish: str) -> None:
    """Ollama's reasons in OpenAI's words, in whole answers and in streams."""
    assert answered(done("x", reason))[0]["choices"][0]["finish_reason"] == finish
    told, _ = poured([done("x", reason)])
    assert told[-1]["choices"][0]["finish_reason"] == finish


def test_a_whole_chat_with_thinking_and_a_tool_call() -> None:
    """done_reason stays stop; the client must see tool_calls, an id, and arguments as text."""
    message = {"thinking": "hm", "tool_calls": [called("weather", {"city": "Paris"})]}
    body, usage = answered(done(message=message))
    choice = body["choices"][0]
    (tool,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["content"] is None
    assert tool["id"].startswith("call_")
    assert tool["function"]["name"] == "weather"
    assert json.loads(tool["function"]["arguments"]) == {"city": "Paris"}
    assert usage == Usage(0, 0)


def test_a_whole_completion() -> None:
    """``response`` becomes ``text``; log probabilities take the old form."""
    tokens = [{"token": "x", "logprob": -0.5, "top_logprobs": [{"token": "x", "logprob": -0.5}]}]
    reply = line(response="x", done=True, done_reason="stop", eval_count=1, logprobs=tokens)
    body, _ = answered(reply, Endpoint.COMPLETIONS, prompt="a")
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "x"
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs == {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -0.5}]}


def test_log_probabilities_have_every_member() -> None:
    """SDKs require ``bytes`` and ``top_logprobs``; Ollama leaves out what is empty."""
    body, _ = answered(done("x", logprobs=[{"token": "x", "logprob": -1.5, "bytes": [120]}]))
    content = body["choices"][0]["logprobs"]["content"]
    assert content == [{"token": "x", "logprob": -1.5, "bytes": [120], "top_logprobs": []}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"message":3,"done":true}',
        b'{"message":{"content":"x"},"done":false}',
        b'{"response":"x","done":true}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    """Pages, junk, and answers that stop in the middle are the provider's failure."""
    with pytest.raises(BadResponse):
        answered(body)


def test_an_error_under_status_200_is_a_failure() -> None:
    """It is classed by its text, as one before the first token would be."""
    with pytest.raises(ModelFailed):
        answered(line(error="an error was encountered while running the model"))
    with pytest.raises(ServerBusy):
        answered(line(error="server busy, please try again"))
    with pytest.raises(ModelFailed):
        answered(line(error={"unheard": "of"}))


def embedded(*vectors: list[float]) -> bytes:
    return line(embeddings=vectors, prompt_eval_count=4)


@pytest.mark.parametrize("encoding", [None, "float"])
def test_embeddings_are_floats(encoding: str | None) -> None:
    """One row an input, in order; the tokens are the prompt's."""
    body, usage = answered(
        embedded([0.5, -1.0], [1.5, 2.0]), Endpoint.EMBEDDINGS, input=["a", "b"], encoding_format=encoding
    )
    assert [(row["index"], row["embedding"]) for row in body["data"]] == [(0, [0.5, -1.0]), (1, [1.5, 2.0])]
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (body["model"], usage) == ("ollama/qwen2.5:7b", Usage(4))


def test_embeddings_are_base64_exactly_when_asked() -> None:
    """Every SDK asks for it and decodes little-endian float32."""
    body, _ = answered(embedded([0.5, -1.0]), Endpoint.EMBEDDINGS, input="a", encoding_format="base64")
    assert struct.unpack("<2f", base64.b64decode(body["data"][0]["embedding"])) == (0.5, -1.0)


@pytest.mark.parametrize(
    "body",
    [
        embedded(),
        embedded([1.0]),
        embedded([1.0], [2.0], [3.0]),
        embedded([1.0], []),
        line(embeddings=None),
        line(embeddings=[["x"], ["y"]]),
        embedded([1e300], [1.0]),
        b"<html>",
    ],
)
def test_vectors_must_match_the_inputs(body: bytes) -> None:
    """Two inputs, two vectors of float32; anything else would be filed under the wrong text."""
    with pytest.raises(BadResponse):
        answered(body, Endpoint.EMBEDDINGS, input=["a", "b"], encoding_format="base64")


# --- streams --------------------------------------------------------------------------------------

CHAT_STREAM = [
    has_content("", thinking="Let me see. "),
    has_content("Gr\u00fc\u00dfe, "),
    has_content("W\u00f6rld\u2028!"),
    has_content("", tool_calls=[called("f", {"a": 1}, id="call_1")]),
    done("", message={"tool_calls": [called("g", {}), called("h", {"b": [2]})]}, prompt_eval_count=9, eval_count=4),
]


def test_a_streamed_chat() -> None:
    """Thinking, text and calls in order, calls numbered through, one finish, usage where it was asked for."""
    translator = stream(usage=True)
    told, batch = poured([b"".join(CHAT_STREAM)], translator)
    assert deltas(told) == [
        {"role": "assistant", "content": "", "reasoning_content": "Let me see. "},
        {"content": "Grüße, "},
        {"content": "Wörld\u2028!"},
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ]
        },
        {
            "tool_calls": [
                {"index": 1, "id": "made-up", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                {"index": 2, "id": "made-up", "type": "function", "function": {"name": "h", "arguments": '{"b": [2]}'}},
            ]
        },
        {},
    ]
    assert [e["choices"][0]["finish_reason"] for e in told[:-1]] == [None] * 5 + ["tool_calls"]
    assert (told[-1]["choices"], told[-1]["usage"]["total_tokens"]) == ([], 13)
    assert (batch.done, batch.has_content, batch.error) == (True, True, None)
    assert translator.usage == Usage(9, 4)


def test_all_chunks_are_one_answer() -> None:
    """They share id and created, and name the target."""
    batch = stream().feed(b"".join(CHAT_STREAM))
    told = events(call_of({"messages": HI}), TARGET, [batch], end=False)
    heads = {(e["id"], e["created"], e["model"], e["object"]) for e in told}
    assert len(heads) == 1
    assert heads.pop()[2:] == ("ollama/qwen2.5:7b", "chat.completion.chunk")


def test_usage_is_not_told_to_a_client_that_did_not_ask() -> None:
    """Many clients index ``choices[0]`` blindly; we count all the same."""
    translator = stream()
    told, _ = poured(CHAT_STREAM, translator)
    assert all(event["choices"] for event in told)
    assert translator.usage == Usage(9, 4)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
def test_every_cut_gives_the_same_events(end: bytes) -> None:
    """Wherever the network cuts, inside a character or a line end."""
    whole = b"".join(CHAT_STREAM).replace(b"\n", end)
    expected = poured([whole])
    assert expected[1].done
    for at in range(len(whole) + 1):
        assert poured([whole[:at], whole[at:]])[0] == expected[0]
    assert poured([whole[i : i + 1] for i in range(len(whole))])[0] == expected[0]


@given(cuts=st.lists(st.integers(0, sum(map(len, CHAT_STREAM))), max_size=12))
def test_any_chunking_equals_the_whole(cuts: list[int]) -> None:
    """Many cuts at once, also empty chunks."""
    whole = b"".join(CHAT_STREAM)
    edges = [0, *sorted(cuts), len(whole)]
    told, batch = poured([whole[a:b] for a, b in itertools.pairwise(edges)])
    assert (told, batch.done) == (poured([whole])[0], True)


@given(
    chunks=st.lists(
        st.binary(max_size=20)
        | st.sampled_from([*CHAT_STREAM, b'{"message":', b'{"done":true}\n', b"\n"])
        | wild.map(lambda v: json.dumps(v).encode() + b"\n"),
        max_size=8,
    ),
    endpoint=st.sampled_from([Endpoint.CHAT, Endpoint.COMPLETIONS]),
)
def test_any_bytes_end_in_done_or_an_error(chunks: list[bytes], endpoint: Endpoint) -> None:
    """Nothing is raised, and no stream ends in doubt."""
    _, batch = poured(chunks, stream(endpoint=endpoint))
    assert batch.done is not (batch.error is not None)


def test_the_last_line_may_lack_its_end() -> None:
    """It is held until the stream ends, then it counts."""
    translator = stream()
    assert translator.feed(done("bye")[:-1]) == StreamBatch()
    batch = translator.close()
    assert (len(batch.deltas), batch.done, batch.error) == (2, True, None)


def test_an_end_without_done_is_a_cut_answer() -> None:
    """Ollama stops so when a model repeats itself: no error, no done, a clean end."""
    told, batch = poured([has_content("a")])
    assert deltas(told) == [{"role": "assistant", "content": "a"}]
    assert isinstance(batch.error, Disconnected)
    assert "stopped in mid answer" in batch.error.message
    assert not batch.done


def test_a_last_line_that_is_whole_but_not_done_is_passed_on_and_then_cut() -> None:
    """Nothing that was said gets lost."""
    batch = poured([has_content("a"), has_content("b")[:-1]])[1]
    assert len(batch.deltas) == 1
    assert isinstance(batch.error, Disconnected)


def test_a_cut_within_a_line() -> None:
    """The beginning of an object is no junk: the connection ended too early."""
    told, batch = poured([has_content("a") + has_content("b")[:30]])
    assert len(told) == 1
    assert isinstance(batch.error, Disconnected)


def test_an_empty_stream_is_cut_as_well() -> None:
    """Not even a done object came."""
    assert isinstance(stream().close().error, Disconnected)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("an error was encountered while running the model", ModelFailed),
        ("model runner has unexpectedly stopped", ModelFailed),
        ("server busy, please try again.  maximum pending requests exceeded", ServerBusy),
        (json.dumps({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}), ServerBusy),
        (NESTED, ContextTooLong),
    ],
)
def test_an_error_line_ends_the_stream(text: str, kind: type[ProviderError]) -> None:
    """Under status 200, after some content; what follows is not read."""
    translator = stream()
    batch = translator.feed(has_content("a") + line(error=text) + has_content("never"))
    assert len(batch.deltas) == 1
    assert type(batch.error) is kind
    assert not batch.done


@pytest.mark.parametrize(
    "junk", [b"<html>\n", b"data: {}\n", b"[1]\n", b'{"message":"x"}\n', b'"\xff"\n', b"{" * 5000 + b"\n", b"<html>"]
)
def test_a_line_that_makes_no_sense(junk: bytes) -> None:
    """A page, another dialect, broken bytes: an error after what made sense."""
    told, batch = poured([has_content("a") + junk])
    assert len(told) == 1
    assert isinstance(batch.error, BadResponse)


@pytest.mark.parametrize("ended", [True, False])
def test_a_line_has_a_bound(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """A server that never ends its line cannot fill the memory."""
    monkeypatch.setattr(ollama_module, "LINE_LIMIT", 70_000)
    batch = stream().feed(has_content("x" * 70_000) if ended else b'{"x":"' + b"x" * 70_000)
    assert isinstance(batch.error, BadResponse)
    translator = stream()
    assert all(translator.feed(b" " * 7000).error is None for _ in range(10))
    assert isinstance(translator.feed(b" ").error, BadResponse)


@pytest.mark.parametrize(
    ("data", "commits"),
    [
        (has_content(""), False),
        (b"\n", False),
        (has_content("a")[:-1], False),
        (has_content("a"), True),
        (has_content("", thinking="a"), True),
        (has_content("", tool_calls=[called("f", {})]), True),
        (done(), True),
    ],
)
def test_what_commits(data: bytes, commits: bool) -> None:
    """Content, thinking, a tool call or a finish; an object that carries nothing is not even passed on."""
    batch = stream().feed(data)
    assert (batch.has_content, bool(batch.deltas)) == (commits, commits)


def test_the_done_object_may_speak() -> None:
    """Its message comes first, then the finish."""
    told, _ = poured([done("all of it")])
    assert deltas(told) == [{"role": "assistant", "content": "all of it"}, {}]


def test_what_follows_done_is_not_read() -> None:
    """The answer is complete; junk after it does no harm."""
    told, batch = poured([done("x") + b"<html>\n"])
    assert (len(told), batch.done) == (2, True)


def test_a_streamed_completion() -> None:
    """``response`` becomes ``text``, chunk by chunk, and the last chunk has the reason."""
    lines = [line(response="a", done=False), line(response="", done=True, done_reason="length", eval_count=1)]
    told, batch = poured(lines, stream(usage=True, endpoint=Endpoint.COMPLETIONS))
    assert [c["choices"][0] for c in told[:2]] == [
        {"index": 0, "text": "a", "finish_reason": None},
        {"index": 0, "text": "", "finish_reason": "length"},
    ]
    assert told[2]["usage"]["completion_tokens"] == 1
    assert batch.done


# --- probes ---------------------------------------------------------------------------------------


def test_the_models_that_it_lists() -> None:
    """Names, times and capabilities as they are; a list that is missing says nothing."""
    body = json.dumps(
        {
            "models": [
                {
                    "name": "qwen2.5:7b",
                    "model": "qwen2.5:7b",
                    "modified_at": "2025-05-10T08:06:48.639712648-07:00",
                    "size": 4683087332,
                    "details": {"family": "qwen2"},
                    "capabilities": ["completion", "tools"],
                },
                {"name": "old", "modified_at": "0001-01-01T00:00:00Z"},
                {"name": "odd", "modified_at": "yesterday", "capabilities": []},
                {"size": 3},
            ]
        }
    ).encode()
    assert WIRE.listed(body) == ModelList(
        (
            ModelInfo("qwen2.5:7b", 1746889608, frozenset({"completion", "tools"}), size=4683087332),
            ModelInfo("old"),
            ModelInfo("odd"),
        ),
        ODD_ROWS,
    )


@pytest.mark.parametrize("body", [b'{"models":null}', b'{"models":[]}'])
def test_a_server_without_models(body: bytes) -> None:
    """A nil slice in Go is null."""
    assert WIRE.listed(body) == ModelList()


def test_where_it_is_probed() -> None:
    """A list of what is installed, which touches no model."""
    assert WIRE.probe_path == "api/tags"
