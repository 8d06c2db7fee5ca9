"""Gemini's wire against a local server that speaks Gemini's REST, through real sockets.

What Google's own library makes of the same conversations is in test_gemini_oracle.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from attrs import define, field

from manallm_proxy.contract.answers import StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, Stream
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    ContentBlocked,
    ContextTooLong,
    Disconnected,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    ModelFailed,
    PaymentRequired,
    ProviderError,
    RateLimited,
    ReadTimeout,
    RequestRejected,
    RetryableStatus,
    ServerBusy,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.contract.targets import Entry, Target, Timeouts
from manallm_proxy.http_client.api import Address
from manallm_proxy.openai import sse
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini import errors as gemini_errors
from manallm_proxy.providers.gemini import reply as gemini_reply
from manallm_proxy.providers.gemini.wire import KEY_HEADER, GeminiWire, versioned
from manallm_proxy.providers.http_provider import HttpProvider, HttpStream
from tests.cases import every
from tests.through_doors import events, whole

KEY = "AIzaNotARealKey-0123456789"
BOUND = 5.0
"""Seconds after which something that must happen has not."""
Json = dict[str, Any]
Script = Callable[[web.Request], Awaitable[web.StreamResponse]]


# --- the other side -------------------------------------------------------------------------------


@define
class Gemini:
    """A scripted Gemini: ``script`` answers, ``asked`` keeps what came, ``left`` tells that the caller hung up."""

    server: TestServer
    script: Script | None = None
    asked: list[tuple[str, Mapping[str, str], Json]] = field(factory=list)
    raw: bytes = b""
    arrived: asyncio.Event = field(factory=asyncio.Event)
    left: asyncio.Event = field(factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.raw = await request.read()
        self.asked.append((request.path_qs, request.headers, await request.json()))
        self.arrived.set()
        assert self.script is not None
        try:
            return await self.script(request)
        except asyncio.CancelledError:  # the test server cancels the handler of a caller that left
            self.left.set()
            raise

    def has_content(self, body: Json | str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """One whole body; a string is HTML."""

        async def script(_: web.Request) -> web.Response:
            if isinstance(body, str):
                return web.Response(text=body, content_type="text/html", status=status, headers=headers)
            return web.json_response(body, status=status, headers=headers)

        self.script = script

    def streams(self, *chunks: Json, end: str = "clean") -> None:
        """SSE as Gemini frames it. `end`: ``clean``, ``hold`` (open and silent) or ``drop`` (cut off)."""

        async def script(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for chunk in chunks:
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n")
            if end == "hold":
                await asyncio.Event().wait()
            if end == "drop":
                assert request.transport is not None
                request.transport.abort()
            return response

        self.script = script

    def hangs(self) -> None:
        async def script(_: web.Request) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        self.script = script

    def hangs_up(self) -> None:
        async def script(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.script = script

    @property
    def body(self) -> Json:
        """What was sent last."""
        return self.asked[-1][2]


@pytest.fixture
async def gemini() -> AsyncIterator[Gemini]:
    app = web.Application(client_max_size=1 << 26)
    server = TestServer(app)
    fake = Gemini(server)
    app.router.add_post("/{version}/models/{call:.+}", fake.handle)
    await server.start_server()
    yield fake
    await server.close()


@pytest.fixture
async def upstream(gemini: Gemini) -> AsyncIterator[HttpProvider]:
    made = opened(str(gemini.server.make_url("")))
    yield made
    await made.close()


def opened(base_url: str | None, key: str = KEY, **settings: Any) -> HttpProvider:
    return HttpProvider(
        Address("google", versioned(base_url), key, {"X-Ours": "yes"}, key_header=KEY_HEADER), GeminiWire(), **settings
    )


def entry(model: str = "gemini-2.5-flash", **times: float) -> Entry:
    return Entry(Target("google", model), Timeouts(**times))


def call_of(endpoint: Endpoint, key: str, fields: Json) -> Call:
    body = json.dumps(fields).encode()
    return Call(endpoint, read_summary(body, (key, (str, list, dict, int, bool))), body, "req-1")


def chat(messages: Any = None, **fields: Any) -> Call:
    messages = [{"role": "user", "content": "hi"}] if messages is None else messages
    return call_of(Endpoint.CHAT, "messages", {"model": "m", "messages": messages, **fields})


def legacy(prompt: Any, **fields: Any) -> Call:
    return call_of(Endpoint.COMPLETIONS, "prompt", {"prompt": prompt, **fields})


def embed(given: Any, **fields: Any) -> Call:
    return call_of(Endpoint.EMBEDDINGS, "input", {"input": given, **fields})


def reply(*parts: Json, finish: str | None = "STOP", index: int | None = None, **more: Any) -> Json:
    """A body or a chunk with one candidate."""
    candidate: Json = {"content": {"role": "model", "parts": list(parts)}} if parts else {}
    if finish:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {"candidates": [candidate], **more}


COUNTED = {"promptTokenCount": 7, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "cachedContentTokenCount": 4}
HI = reply({"text": "hi"}, usageMetadata=COUNTED)


async def answered(upstream: HttpProvider, call: Call, at: Entry | None = None) -> Any:
    where = at or entry()
    return whole(call, where.target, await upstream.complete(call, where))


async def drained(stream: Stream, call: Call, target: Target) -> tuple[list[Any], StreamBatch]:
    """All events, decoded, and the batch that was the last."""
    batches: list[StreamBatch] = []
    while True:
        batches.append(batch := await stream.next())
        if batch.done or batch.error:
            return events(call, target, batches, stream.usage, end=batch.done), batch


async def streamed(upstream: HttpProvider, call: Call, at: Entry | None = None) -> tuple[list[Any], StreamBatch]:
    where = at or entry()
    return await drained(await upstream.stream(call, where), call, where.target)


async def failed(upstream: HttpProvider, call: Call, at: Entry | None = None) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await upstream.complete(call, at or entry())
    return caught.value


# --- requests -------------------------------------------------------------------------------------


async def test_a_conversation(gemini: Gemini, upstream: HttpProvider) -> None:
    """Instructions stand apart, turns of one role are one content, results name the function that they answer."""
    gemini.has_content(HI)
    call_1 = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}
    call_2 = {"id": "c2", "type": "function", "function": {"name": "rain", "arguments": ""}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "time?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call_1, call_2]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"now": 12}'},
        {"role": "tool", "tool_call_id": "c2", "content": "none"},
    ]
    await upstream.complete(chat(messages), entry())
    assert [part["text"] for part in gemini.body["systemInstruction"]["parts"]] == ["Be brief.\n\nBe kind."]
    assert gemini.body["contents"] == [
        {"role": "user", "parts": [{"text": "hi"}, {"text": "time?"}]},
        {
            "role": "model",
            "parts": [
                {"functionCall": {"id": "c1", "name": "time", "args": {"zone": "UTC"}}},
                {"functionCall": {"id": "c2", "name": "rain", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "time", "response": {"now": 12}}},
                {"functionResponse": {"id": "c2", "name": "rain", "response": {"output": "none"}}},
            ],
        },
    ]


async def test_what_surrounds_a_request(gemini: Gemini, upstream: HttpProvider) -> None:
    """One POST with our key, the operator's headers and the caller's request id."""
    gemini.has_content(HI)
    await upstream.complete(chat(), entry("models/gemini-x"))
    ((path, headers, _),) = gemini.asked
    assert path == "/v1beta/models/gemini-x:generateContent"
    assert (headers["x-goog-api-key"], headers["X-Ours"], headers["X-Request-Id"]) == (KEY, "yes", "req-1")
    assert headers["Accept-Encoding"] == "identity"


async def test_a_base_url_may_name_the_version(gemini: Gemini) -> None:
    """``.../v1beta`` is the version, not a part of the path before it."""
    gemini.has_content(HI)
    made = opened(str(gemini.server.make_url("/v1beta/")))
    await made.complete(chat(), entry())
    await made.close()
    assert gemini.asked[0][0] == "/v1beta/models/gemini-2.5-flash:generateContent"


async def test_inline_media(gemini: Gemini, upstream: HttpProvider) -> None:
    """Images, audio and files travel as bytes with their type."""
    gemini.has_content(HI)
    data = base64.b64encode(b"\xff\xfe\xfd").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}},
    ]
    await upstream.complete(chat([{"role": "user", "content": parts}]), entry())
    sent = [part["inlineData"] for part in gemini.body["contents"][0]["parts"]]
    assert [blob["mimeType"] for blob in sent] == ["image/png", "audio/wav", "application/pdf"]
    assert {base64.urlsafe_b64decode(blob["data"]) for blob in sent} == {b"\xff\xfe\xfd"}


async def test_settings(gemini: Gemini, upstream: HttpProvider) -> None:
    """OpenAI's settings under Gemini's names; what Gemini does not know is left out."""
    gemini.has_content(HI)
    asked = chat(
        temperature=0,
        top_p=0.5,
        seed=3,
        stop="END",
        n=2,
        max_tokens=10,
        max_completion_tokens=20,
        presence_penalty=1,
        frequency_penalty=0.5,
        logprobs=True,
        top_logprobs=2,
        user="u",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    )
    await upstream.complete(asked, entry())
    assert gemini.body["generationConfig"] == {
        "temperature": 0,
        "topP": 0.5,
        "seed": 3,
        "stopSequences": ["END"],
        "candidateCount": 2,
        "maxOutputTokens": 20,
        "presencePenalty": 1,
        "frequencyPenalty": 0.5,
        "responseLogprobs": True,
        "logprobs": 2,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
    }
    assert set(gemini.body) == {"contents", "generationConfig"}
    await upstream.complete(chat(logprobs=True, response_format={"type": "json_object"}), entry())
    assert gemini.body["generationConfig"] == {"responseLogprobs": True, "responseMimeType": "application/json"}


@every(
    [
        ("INVALID_ARGUMENT", 400, RequestRejected),
        ("UNAUTHENTICATED", 401, KeyRejected),
        ("PERMISSION_DENIED", 403, KeyRejected),
        ("NOT_FOUND", 404, MissingModel),
        ("RESOURCE_EXHAUSTED", 429, RateLimited),
        ("CANCELLED", 499, RequestRejected),
        ("INTERNAL", 500, ModelFailed),
        ("UNIMPLEMENTED", 501, Unsupported),
        ("UNAVAILABLE", 503, ServerBusy),
        ("DEADLINE_EXCEEDED", 504, ServerFailed),
        ("SOMETHING_NEW", 502, ServerFailed),
    ]
)
def test_an_error_in_a_stream_may_have_a_name_alone(name: str, status: int, kind: type[ProviderError]) -> None:
    error = gemini_errors.in_band({"status": name, "message": "no"})
    assert (type(error), error.provider_status) == (kind, status)


NAMED = {"type": "function", "function": {"name": "b"}}
TOOLS = [
    {"type": "function", "function": {"name": "a", "description": "A", "parameters": {"type": "object", "$defs": {}}}},
    NAMED,
]


@pytest.mark.parametrize(
    ("choice", "config", "names"),
    [
        (None, None, ["a", "b"]),
        ("auto", {"mode": "AUTO"}, ["a", "b"]),
        ("none", {"mode": "NONE"}, ["a", "b"]),
        ("required", {"mode": "ANY"}, ["a", "b"]),
        (NAMED, {"mode": "ANY", "allowedFunctionNames": ["b"]}, ["b"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}, {"mode": "AUTO"}, ["b"]),
    ],
)
async def test_tools(
    gemini: Gemini, upstream: HttpProvider, choice: Any, config: Json | None, names: list[str]
) -> None:
    """Schemas pass as they are; a choice of tools becomes a mode, and leaves out the others."""
    gemini.has_content(HI)
    await upstream.complete(chat(tools=TOOLS, tool_choice=choice), entry())
    (tool,) = gemini.body["tools"]
    declared = tool["functionDeclarations"]
    assert [d["name"] for d in declared] == names
    if "a" in names:
        assert declared[0] == {
            "name": "a",
            "description": "A",
            "parametersJsonSchema": {"type": "object", "$defs": {}},
        }
    assert gemini.body.get("toolConfig", {}).get("functionCallingConfig") == config


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-2.5-flash", "none", {"includeThoughts": False, "thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"includeThoughts": False, "thinkingBudget": 128}),
        ("gemini-2.5-flash", "medium", {"includeThoughts": True, "thinkingBudget": 8192}),
        ("gemini-3-pro-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("gemini-3.8-flash", "minimal", {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
        ("gemini-flash-latest", "high", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemma-3-27b-it", "high", None),
        ("gemini-2.5-flash", None, None),
    ],
)
async def test_thinking(
    gemini: Gemini, upstream: HttpProvider, model: str, effort: str | None, thinking: Json | None
) -> None:
    """Effort is a level from Gemini 3 on and a budget before; models that do not think are told nothing."""
    gemini.has_content(HI)
    await upstream.complete(chat(reasoning_effort=effort), entry(model))
    assert gemini.body.get("generationConfig", {}).get("thinkingConfig") == thinking


async def test_a_thought_signature_comes_back(gemini: Gemini, upstream: HttpProvider) -> None:
    """The signature of a call goes out beside it, and back to Gemini from the client's history, byte for byte."""
    signature = bytes(range(256))
    call = {"functionCall": {"name": "f"}, "thoughtSignature": base64.b64encode(signature).decode()}
    gemini.has_content(reply(call))
    body = await answered(upstream, chat(), entry("gemini-3-flash"))
    said = body["choices"][0]["message"]
    assert said["tool_calls"][0]["extra_content"]["google"]["thought_signature"] == call["thoughtSignature"]
    result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "ok"}
    await upstream.complete(chat([{"role": "user", "content": "go"}, said, result]), entry("gemini-3-flash"))
    sent = gemini.body["contents"][1]["parts"][0]["thoughtSignature"]
    assert base64.urlsafe_b64decode(sent) == signature


@pytest.mark.parametrize(("model", "expected"), [("gemini-3-pro", [True, False]), ("gemini-2.5-pro", [False, False])])
async def test_a_lost_signature(gemini: Gemini, upstream: HttpProvider, model: str, expected: list[bool]) -> None:
    """Gemini 3 gets its sentinel on the first of parallel calls; older models get nothing."""
    gemini.has_content(HI)
    calls = [{"id": i, "function": {"name": i, "arguments": "{}"}} for i in "ab"]
    await upstream.complete(chat([{"role": "assistant", "tool_calls": calls}]), entry(model))
    parts = gemini.body["contents"][0]["parts"]
    assert ["thoughtSignature" in part for part in parts] == expected
    if expected[0]:
        assert parts[0]["thoughtSignature"] == "skip_thought_signature_validator"


def _user(*parts: Any) -> list[Json]:
    return [{"role": "user", "content": list(parts)}]


def _calling(**call: Any) -> list[Json]:
    return [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}, **call}]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": "text"}, "messages"),
        ({"messages": ["text"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": _user({"type": "video"})}, "messages[0].content[0].type"),
        ({"messages": _user({"type": "text"})}, "messages[0].content[0].text"),
        (
            {"messages": _user({"type": "image_url", "image_url": {"url": "data:,x"}})},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": _user({"type": "image_url", "image_url": "data:image/png;base64,?"})},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": _calling(function={"name": "f", "arguments": 1})},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": _calling(function={})}, "messages[0].tool_calls[0].function.name"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[0].tool_call_id"),
        (
            {"messages": _calling(extra_content={"google": {"thought_signature": "?"}})},
            "messages[0].tool_calls[0].extra_content.google.thought_signature",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "else"}}}, "tool_choice"),
        ({"messages": [{"role": "assistant", "content": 3}]}, "messages[0].content"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"reasoning_effort": "hard"}, "reasoning_effort"),
    ],
)
async def test_what_the_caller_got_wrong(gemini: Gemini, upstream: HttpProvider, fields: Json, param: str) -> None:
    """Refused before Gemini hears of it, with the path of the mistake."""
    error = await failed(upstream, chat(**{"messages": [{"role": "user", "content": "x"}], **fields}))
    assert (type(error), error.param) == (InvalidRequest, param)
    assert not gemini.asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": _user({"type": "image_url", "image_url": {"url": "https://x/y.png"}})}, "messages"),
        ({"messages": _user({"type": "file", "file": {"file_id": "f"}})}, "messages"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"messages": _calling(type="custom", custom={"name": "x", "input": "y"})}, "messages"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
async def test_what_gemini_cannot_be_told(gemini: Gemini, upstream: HttpProvider, fields: Json, param: str) -> None:
    """A capability that is missing is an error of its own; above all, no URL is fetched."""
    error = await failed(upstream, chat(**fields))
    assert (type(error), error.param) == (Unsupported, param)
    assert not gemini.asked


@pytest.mark.parametrize("model", ["../../upload", "a%2e%2e/b", "a#b", "a?key=b", "a b"])
async def test_a_model_that_leads_elsewhere(gemini: Gemini, upstream: HttpProvider, model: str) -> None:
    """A model's name is part of a path under our key: nothing that would bend that path is sent."""
    error = await failed(upstream, chat(), entry(model))
    assert (type(error), error.param) == (InvalidRequest, "model")
    assert not gemini.asked


@pytest.mark.parametrize("depth", [300, 100_000])
async def test_a_schema_nested_beyond_reason(gemini: Gemini, upstream: HttpProvider, depth: int) -> None:
    """A deep one passes as it is; what is too deep for anybody is the caller's mistake, not a bug."""
    schema = b'{"items":' * depth + b"{}" + b"}" * depth
    tool = b'{"type": "function", "function": {"name": "deep", "parameters": %b}}' % schema
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [%b]}' % tool
    call = Call(Endpoint.CHAT, chat().summary, body, "req-1")
    gemini.has_content(HI)
    if depth > 1000:
        assert isinstance(await failed(upstream, call), InvalidRequest)
        assert not gemini.asked
    else:
        await upstream.complete(call, entry())
        assert b"parametersJsonSchema" in gemini.raw and schema in gemini.raw


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
async def test_legacy_completions(gemini: Gemini, upstream: HttpProvider, prompt: Any) -> None:
    """A prompt is one user message, the answer a ``text``."""
    gemini.has_content(HI)
    body = await answered(upstream, legacy(prompt, max_tokens=5))
    assert gemini.body["contents"] == [{"role": "user", "parts": [{"text": "Once"}]}]
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "hi")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
    ],
)
async def test_other_legacy_completions(upstream: HttpProvider, fields: Json, param: str) -> None:
    """What has no counterpart is refused, not dropped."""
    error = await failed(upstream, legacy(**fields))
    assert (type(error), error.param) == (Unsupported, param)


@pytest.mark.parametrize("prompt", ["", [""], []])
async def test_a_legacy_completion_of_nothing(gemini: Gemini, upstream: HttpProvider, prompt: Any) -> None:
    """The caller's mistake, of which Gemini would speak in other words."""
    error = await failed(upstream, legacy(prompt))
    assert (type(error), error.param) == (InvalidRequest, "prompt")
    assert not gemini.asked


# --- replies --------------------------------------------------------------------------------------


async def test_an_answer(gemini: Gemini, upstream: HttpProvider) -> None:
    """Text, thoughts, tool calls and usage find their places; tool calls without an id get one."""
    parts: list[Json] = [
        {"text": "Hm.", "thought": True},
        {"text": "It is "},
        {"text": "12."},
        {"functionCall": {"name": "f", "args": {"a": [1, None]}}},
        {"functionCall": {"name": "g", "id": "their-id"}},
    ]
    gemini.has_content(reply(*parts, usageMetadata=COUNTED))
    answer = await upstream.complete(chat(), entry())
    body = whole(chat(), entry().target, answer)
    (choice,) = body["choices"]
    message = choice["message"]
    assert (body["model"], choice["finish_reason"]) == ("google/gemini-2.5-flash", "tool_calls")
    assert (message["content"], message["reasoning_content"]) == ("It is 12.", "Hm.")
    first, second = message["tool_calls"]
    assert (first["function"]["name"], json.loads(first["function"]["arguments"])) == ("f", {"a": [1, None]})
    assert first["id"].startswith("call_")
    assert (second["id"], second["function"]) == ("their-id", {"name": "g", "arguments": "{}"})
    assert answer.usage == Usage(prompt=7, completion=5, reasoning=3, cached=4)
    assert body["usage"]["total_tokens"] == 12


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PUP_LIMITED_DISABLED", "content_filter"),
        ("NO_IMAGE", "stop"),
        ("IMAGE_OTHER", "stop"),
        ("FINISH_REASON_UNSPECIFIED", "stop"),
        ("OF_THE_FUTURE", "stop"),
        (None, "stop"),
    ],
)
async def test_finish_reasons(gemini: Gemini, upstream: HttpProvider, theirs: str | None, ours: str) -> None:
    """After some text each finish reason has a counterpart, the unknown ones too"""
    gemini.has_content(reply({"text": "so far"}, finish=theirs))
    body = await answered(upstream, chat())
    assert body["choices"][0]["finish_reason"] == ours


async def test_an_answer_to_be_continued(gemini: Gemini, upstream: HttpProvider) -> None:
    """One request for one of ours, and the answer was too long: the rest is not asked for."""
    body = reply({"text": "a"}, finish="CONTINUATION")
    body["candidates"][0]["continuationToken"] = "AAAA"
    gemini.has_content(body)
    assert (await answered(upstream, chat()))["choices"][0]["finish_reason"] == "length"
    assert len(gemini.asked) == 1


async def test_thinking_that_used_up_the_budget(gemini: Gemini, upstream: HttpProvider) -> None:
    """No content with MAX_TOKENS is an answer that was too long, not a broken one; nor is content without parts."""
    for candidate in ({}, {"content": {"role": "model"}}, {"content": {"role": "model", "parts": []}}):
        body = {"candidates": [{**candidate, "finishReason": "MAX_TOKENS"}]}
        gemini.has_content(body)
        (choice,) = (await answered(upstream, chat()))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        gemini.streams(body)
        _, last = await streamed(upstream, chat())
        assert last.done and last.error is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"candidates": []},
        {"candidates": [{}]},
        {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]},
        {"candidates": [{"finishReason": "OTHER", "content": {}}]},
        {"candidates": [{"content": {"parts": "none"}}]},
        {"candidates": 3},
    ],
)
async def test_no_answer(gemini: Gemini, upstream: HttpProvider, body: Json) -> None:
    """A 200 without an answer in it is the provider's failure: the next target may do better."""
    gemini.has_content(body)
    assert isinstance(await failed(upstream, chat()), BadResponse)


async def test_a_blocked_prompt(gemini: Gemini, upstream: HttpProvider) -> None:
    """It is handed to the caller, whole or streamed, and no other provider is asked."""
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    gemini.has_content(blocked)
    error = await failed(upstream, chat())
    assert isinstance(error, ContentBlocked) and "PROHIBITED_CONTENT" in error.message
    gemini.streams(blocked)
    _, last = await streamed(upstream, chat())
    assert isinstance(last.error, ContentBlocked)


async def test_several_choices(gemini: Gemini, upstream: HttpProvider) -> None:
    """Candidates keep their index, and each its own finish reason."""
    two = reply({"text": "a"}, index=0)["candidates"] + reply({"text": "b"}, finish="MAX_TOKENS", index=1)["candidates"]
    gemini.has_content({"candidates": two})
    rows = (await answered(upstream, chat(n=2)))["choices"]
    said = [(row["index"], row["message"]["content"], row["finish_reason"]) for row in rows]
    assert said == [(0, "a", "stop"), (1, "b", "length")]


async def test_logprobs(gemini: Gemini, upstream: HttpProvider) -> None:
    """OpenAI's rows: the chosen token, its bytes, and the others that it was chosen over."""
    chosen = {"token": "é", "logProbability": -0.5}
    body = reply({"text": "é"})
    body["candidates"][0]["logprobsResult"] = {
        "chosenCandidates": [chosen],
        "topCandidates": [{"candidates": [chosen]}],
    }
    gemini.has_content(body)
    (choice,) = (await answered(upstream, chat(logprobs=True)))["choices"]
    token = {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]}
    assert choice["logprobs"]["content"] == [{**token, "top_logprobs": [token]}]


# --- streams --------------------------------------------------------------------------------------


async def test_a_stream(gemini: Gemini, upstream: HttpProvider) -> None:
    """Role, reasoning, content, tool calls under one number each, finish, usage, done."""
    gemini.streams(
        reply({"text": "Hm.", "thought": True}, finish=None, usageMetadata={"promptTokenCount": 7}),
        reply({"text": "It"}, finish=None),
        reply({"functionCall": {"name": "f"}}, finish=None),
        reply({"functionCall": {"name": "g"}}, {"text": "", "thoughtSignature": "AAAA"}, usageMetadata=COUNTED),
    )
    told, last = await streamed(upstream, chat(stream=True, stream_options={"include_usage": True}))
    deltas = [event["choices"][0]["delta"] for event in told[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    assert deltas[1] == {"content": "It"}
    assert [call["index"] for delta in deltas for call in delta.get("tool_calls", ())] == [0, 1]
    assert [event["choices"][0]["finish_reason"] for event in told[:-1]] == [None, None, None, "tool_calls"]
    assert (told[-1]["choices"], told[-1]["usage"]["completion_tokens"]) == ([], 5)
    assert last.done and gemini.asked[0][0] == "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert {event["model"] for event in told} == {"google/gemini-2.5-flash"}


async def test_usage_that_nobody_asked_for(gemini: Gemini, upstream: HttpProvider) -> None:
    """It is counted all the same, and stays out of the stream."""
    gemini.streams(HI)
    stream = await upstream.stream(chat(stream=True), entry())
    told, last = await drained(stream, chat(stream=True), entry().target)
    assert (len(told), last.done, last.deltas) == (1, True, ())
    assert stream.usage == Usage(prompt=7, completion=5, reasoning=3, cached=4)


async def test_chunks_that_say_nothing() -> None:
    """Usage alone and empty texts do not commit; the first word does."""
    translator = GeminiWire().translator(chat(), entry(), "text/event-stream")
    chunks = ({"usageMetadata": COUNTED}, reply({"text": ""}, finish=None), reply({"text": "a"}, finish=None))
    pieces = [translator.feed(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n") for chunk in chunks]
    assert [batch.has_content for batch in pieces] == [False, False, True]
    assert not pieces[0].deltas and not pieces[1].deltas


async def test_a_stream_that_stops_in_mid_answer(gemini: Gemini, upstream: HttpProvider) -> None:
    """A clean end without a finish reason is a cut answer; without any chunk it is an empty one."""
    gemini.streams(reply({"text": "a"}, finish=None))
    told, last = await streamed(upstream, chat())
    assert len(told) == 1 and isinstance(last.error, Disconnected)
    gemini.streams()
    assert await streamed(upstream, chat()) == ([], StreamBatch(done=True))


GIVEN_UP = [
    "MALFORMED_FUNCTION_CALL",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
    "MALFORMED_RESPONSE",
    "OTHER",
]


@pytest.mark.parametrize("reason", GIVEN_UP)
async def test_an_answer_that_was_given_up(gemini: Gemini, upstream: HttpProvider, reason: str) -> None:
    """Words, and then a call that came to nothing, are no whole answer: an agent would take them for its end.

    As long as nothing has left, the target has failed; after that the stream breaks, with all that was said.
    """
    for parts in ([], [{"text": "Let me look."}], [{"functionCall": {"name": "f"}}], [{"text": "Hm", "thought": True}]):
        gemini.has_content(reply(*parts, finish=reason))
        error = await failed(upstream, chat())
        assert isinstance(error, BadResponse) and error.detail == reason.lower()
        gemini.streams(reply(*parts, finish=reason))
        told, last = await streamed(upstream, chat())
        assert not told and isinstance(last.error, BadResponse) and not last.has_content
    gemini.streams(reply({"text": "Let me"}, finish=None), reply({"text": " look."}, finish=reason))
    told, last = await streamed(upstream, chat())
    assert [event["choices"][0]["delta"]["content"] for event in told] == ["Let me", " look."]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None, None]
    assert isinstance(last.error, BadResponse) and reason in last.error.message and not last.done


async def test_one_choice_of_two_that_was_given_up(gemini: Gemini, upstream: HttpProvider) -> None:
    """The answer is as whole as the worst of its choices."""
    ends = [reply({"text": "a"}, index=0), reply({"text": "b"}, finish="OTHER", index=1)]
    gemini.has_content({"candidates": [row for each in ends for row in each["candidates"]]})
    assert isinstance(await failed(upstream, chat(n=2)), BadResponse)
    gemini.streams(*ends)
    told, last = await streamed(upstream, chat(n=2))
    assert [event["choices"][0]["finish_reason"] for event in told] == ["stop", None]
    assert isinstance(last.error, BadResponse)


async def test_an_error_inside_a_stream(gemini: Gemini, upstream: HttpProvider) -> None:
    """It has the meaning of its code, as the first event and after others."""
    overloaded = {"error": {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}}
    gemini.streams(reply({"text": "a"}, finish=None), overloaded)
    told, last = await streamed(upstream, chat())
    assert len(told) == 1
    assert isinstance(last.error, ServerBusy) and last.error.provider_status == 503
    gemini.streams(overloaded)
    told, last = await streamed(upstream, chat())
    assert not told and isinstance(last.error, ServerBusy)


async def test_a_stream_that_is_refused(gemini: Gemini, upstream: HttpProvider) -> None:
    """Before there is a stream."""
    gemini.has_content({"error": {"code": 429, "message": "slow down"}}, 429, {"Retry-After": "7"})
    with pytest.raises(RateLimited) as caught:
        await upstream.stream(chat(), entry())
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("data", [b'data: {"candidates": 3}\r\n\r\n', b"data: nonsense\r\n\r\n"])
async def test_a_stream_of_something_else(gemini: Gemini, upstream: HttpProvider, data: bytes) -> None:
    """What cannot be read is no bug of ours."""

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, content_type="text/event-stream")

    gemini.script = script
    _, last = await streamed(upstream, chat())
    assert isinstance(last.error, BadResponse)


async def test_a_stream_of_one_endless_event(
    gemini: Gemini, upstream: HttpProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held of an event is bounded."""
    monkeypatch.setattr(sse, "FRAME_LIMIT", 1000)

    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"data: " + b"x" * 1000, content_type="text/event-stream")

    gemini.script = script
    _, last = await streamed(upstream, chat())
    assert isinstance(last.error, BadResponse) and last.error.detail == "endless event"


async def test_a_stream_that_is_dropped(gemini: Gemini, upstream: HttpProvider) -> None:
    """The connection breaks after a chunk: disconnected."""
    gemini.streams(reply({"text": "a"}, finish=None), end="drop")
    with pytest.raises(Disconnected):
        await streamed(upstream, chat())


async def test_a_stream_that_falls_silent(gemini: Gemini, upstream: HttpProvider) -> None:
    """After the commit a silence is bounded by ``idle``, and its connection is closed."""
    gemini.streams(reply({"text": "a"}, finish=None), end="hold")
    stream = await upstream.stream(chat(), entry())
    assert (await stream.next()).has_content
    stream.commit(0.05)
    with pytest.raises(ReadTimeout):
        await stream.next()
    await stream.aclose()
    await asyncio.wait_for(gemini.left.wait(), BOUND)


# --- a caller that leaves -------------------------------------------------------------------------


async def _sees_it_close(gemini: Gemini) -> None:
    """Within a second, says the contract; the server is the witness."""
    await asyncio.wait_for(gemini.left.wait(), 1.0)


async def test_closed_between_chunks(gemini: Gemini, upstream: HttpProvider) -> None:
    """Nobody reads, and more chunks are buffered: the connection goes all the same."""
    gemini.streams(*[reply({"text": "a"}, finish=None)] * 5, end="hold")
    stream = await upstream.stream(chat(), entry())
    await stream.next()
    await stream.aclose()
    await _sees_it_close(gemini)


async def test_closed_while_a_chunk_is_awaited(gemini: Gemini, upstream: HttpProvider) -> None:
    """A close from another task ends the wait, too."""
    gemini.streams(reply({"text": "a"}, finish=None), end="hold")
    stream = await upstream.stream(chat(), entry())
    await stream.next()
    waiting = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    await stream.aclose()
    await _sees_it_close(gemini)
    with pytest.raises(Disconnected):
        await asyncio.wait_for(waiting, BOUND)


async def test_cancelled_while_a_chunk_is_awaited(gemini: Gemini, upstream: HttpProvider) -> None:
    """A cancelled pull leaves a stream that can be closed."""
    gemini.streams(reply({"text": "a"}, finish=None), end="hold")
    stream = await upstream.stream(chat(), entry())
    await stream.next()
    waiting = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.aclose()
    await _sees_it_close(gemini)


@pytest.mark.parametrize("begins", [HttpProvider.complete, HttpProvider.stream])
async def test_cancelled_before_the_headers(gemini: Gemini, upstream: HttpProvider, begins: Any) -> None:
    """Whole or streamed: who leaves early frees the connection."""
    gemini.hangs()
    waiting = asyncio.create_task(begins(upstream, chat(stream=begins is HttpProvider.stream), entry()))
    await asyncio.wait_for(gemini.arrived.wait(), BOUND)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await _sees_it_close(gemini)


async def test_a_complete_stream_gives_its_connection_back(gemini: Gemini, upstream: HttpProvider) -> None:
    """Two streams, one connection: closing a stream that ended well closes nothing."""
    peers = set()

    async def script(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text=f"data: {json.dumps(HI)}\r\n\r\n", content_type="text/event-stream")

    gemini.script = script
    for _ in range(2):
        stream = await upstream.stream(chat(), entry())
        await drained(stream, chat(), entry().target)
        await stream.aclose()
    assert len(peers) == 1


# --- errors ---------------------------------------------------------------------------------------


def refusal(code: int, status: str, message: str = "it says no", *details: Json) -> Json:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
PER_DAY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
PER_MINUTE = {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]}
LATER = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (refusal(400, "INVALID_ARGUMENT", "API key not valid.", BAD_KEY), KeyRejected),
        (refusal(400, "INVALID_ARGUMENT", "API key expired. Please renew the API key."), KeyRejected),
        (refusal(401, "UNAUTHENTICATED"), KeyRejected),
        (refusal(403, "PERMISSION_DENIED"), KeyRejected),
        (refusal(400, "INVALID_ARGUMENT"), RequestRejected),
        (refusal(400, "INVALID_ARGUMENT", TOO_LONG), ContextTooLong),
        (refusal(400, "FAILED_PRECONDITION", "Please enable billing on your project"), PaymentRequired),
        (refusal(404, "NOT_FOUND", "models/x is not found"), MissingModel),
        (refusal(429, "RESOURCE_EXHAUSTED"), RateLimited),
        (refusal(500, "INTERNAL"), ModelFailed),
        (refusal(503, "UNAVAILABLE"), ServerBusy),
        (refusal(504, "DEADLINE_EXCEEDED"), ServerFailed),
        (refusal(502, "BAD_GATEWAY"), ServerFailed),
    ],
)
async def test_refusals(gemini: Gemini, upstream: HttpProvider, body: Json, kind: type[ProviderError]) -> None:
    """Each of Gemini's refusals is one of ours, with the status that it had."""
    status = body["error"]["code"]
    gemini.has_content(body, status)
    error = await failed(upstream, chat())
    assert type(error) is kind and isinstance(error, ProviderError)
    assert error.provider_status == status
    assert len(gemini.asked) == 1
    if isinstance(error, RequestRejected):
        assert error.message == body["error"]["message"] and error.status == status


@pytest.mark.parametrize(
    ("details", "seconds"), [([PER_DAY, LATER], 600.0), ([PER_MINUTE, LATER], 34.07), ([LATER], 34.07), ([], None)]
)
async def test_when_to_come_back(
    gemini: Gemini, upstream: HttpProvider, details: list[Json], seconds: float | None
) -> None:
    """Gemini says it in the details of a 429; a quota for the day is not worth asking soon."""
    gemini.has_content(refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded", *details), 429)
    assert (await failed(upstream, chat())).retry_after == seconds


async def test_a_message_that_quotes_the_key(gemini: Gemini) -> None:
    """It leaves without it, and no longer than 500 characters."""
    made = opened(str(gemini.server.make_url("")), "plain-secret")
    gemini.has_content(refusal(400, "INVALID_ARGUMENT", "plain-secret is bad " * 100), 400)
    error = await failed(made, chat())
    await made.close()
    assert "plain-secret" not in f"{error} {error!r} {error.message}"
    assert len(error.message) <= 500


@pytest.mark.parametrize(("status", "kind"), [(500, ModelFailed), (403, KeyRejected), (302, BadResponse)])
async def test_refusals_without_geminis_words(
    gemini: Gemini, upstream: HttpProvider, status: int, kind: type[ProviderError]
) -> None:
    """HTML of a middle box goes by its status, and none of it is shown."""
    gemini.has_content(
        "<html>secret page</html>", status, {"Location": "https://elsewhere.invalid/"} if status == 302 else None
    )
    error = await failed(upstream, chat())
    assert type(error) is kind and "secret" not in error.message
    assert len(gemini.asked) == 1


@pytest.mark.parametrize("body", [b"{oops", b"[]", b"[1]", b"[{}, {}]", b'{"error": []}', b"null"])
async def test_a_refusal_whose_json_says_nothing(gemini: Gemini, upstream: HttpProvider, body: bytes) -> None:
    """The status counts."""

    async def script(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json", status=503)

    gemini.script = script
    assert type(await failed(upstream, chat())) is ServerFailed


async def test_a_configured_status_is_retryable(gemini: Gemini) -> None:
    """``extra_retryable_statuses`` hold for this kind of provider, too."""
    made = opened(str(gemini.server.make_url("")), extra_retryable_statuses=frozenset({408}))
    gemini.has_content(refusal(408, "TIMEOUT"), 408)
    error = await failed(made, chat())
    await made.close()
    assert isinstance(error, RetryableStatus) and error.error_type == "http_408"


async def test_a_page_instead_of_an_answer(gemini: Gemini, upstream: HttpProvider) -> None:
    """200 and HTML is a broken provider."""
    gemini.has_content("<html></html>")
    assert type(await failed(upstream, chat())) is BadResponse


async def test_a_bug_stays_one(gemini: Gemini, upstream: HttpProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither the network's, nor the caller's, nor the provider's fault comes through as it is."""

    def broken(*_: Any) -> None:
        raise TypeError("a bug")

    gemini.has_content(HI)
    gemini.streams(HI)
    monkeypatch.setattr(gemini_reply.Reader, "deltas", broken)
    with pytest.raises(TypeError, match="a bug"):
        await streamed(upstream, chat())


# --- the network ----------------------------------------------------------------------------------


async def test_nobody_listens(unused_tcp_port: int) -> None:
    """Refused: a connection error, whole or streamed."""
    made = opened(f"http://127.0.0.1:{unused_tcp_port}")
    error = await failed(made, chat())
    assert isinstance(error, ConnectFailed) and error.detail == "refused"
    with pytest.raises(ConnectFailed):
        await streamed(made, chat())
    await made.close()


@pytest.mark.parametrize(("answers", "kind"), [(True, ConnectFailed), (False, ConnectTimeout)])
async def test_names(monkeypatch: pytest.MonkeyPatch, answers: bool, kind: type[ProviderError]) -> None:
    """A name that is unknown, and one that is not looked up within ``connect``."""
    over = threading.Event()

    def look_up(*_: Any, **__: Any) -> Any:
        if not answers:
            over.wait(BOUND)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    made = opened("http://gemini.invalid")
    error = await failed(made, chat(), entry(connect=BOUND if answers else 0.05))
    over.set()
    await made.close()
    assert type(error) is kind


async def test_a_provider_that_hangs_up(gemini: Gemini, upstream: HttpProvider) -> None:
    """Closed before a byte of an answer: disconnected, and not asked again."""
    gemini.hangs_up()
    assert isinstance(await failed(upstream, chat()), Disconnected)
    with pytest.raises(Disconnected):
        await streamed(upstream, chat())
    assert len(gemini.asked) == 2


async def test_a_provider_that_does_not_answer(gemini: Gemini, upstream: HttpProvider) -> None:
    """Bounded by ``first_byte``, and given up on the wire."""
    gemini.hangs()
    assert isinstance(await failed(upstream, chat(), entry(first_byte=0.1)), FirstByteTimeout)
    await _sees_it_close(gemini)


async def test_a_pooled_connection_that_was_dead() -> None:
    """It costs another connection, not the attempt."""
    seen = 0
    body = json.dumps(HI).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request a connection, and hangs up on the next without a word."""
        nonlocal seen
        with contextlib.suppress(asyncio.IncompleteReadError), contextlib.closing(writer):
            for answers in (True, False):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
                seen += 1
                if answers:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for _ in range(2):
        await made.complete(chat(), entry())
    assert seen == 3
    await made.close()
    server.close()


# --- embeddings -----------------------------------------------------------------------------------


def embedded(*vectors: list[float]) -> Json:
    return {"embeddings": [{"values": vector} for vector in vectors]}


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2-preview", "text-embedding-004"])
async def test_embeddings(gemini: Gemini, upstream: HttpProvider, model: str) -> None:
    """A vector for each input, on every model."""
    gemini.has_content(embedded([1.0, 2.0], [3.0, 4.0]))
    body = await answered(upstream, embed(["a", "b"]), entry(model))
    assert [row["embedding"] for row in body["data"]] == [[1.0, 2.0], [3.0, 4.0]]
    texts = [request["content"]["parts"][0]["text"] for request in gemini.body["requests"]]
    assert texts == ["a", "b"] and gemini.asked[0][0] == f"/v1beta/models/{model}:batchEmbedContents"


async def test_shorter_embeddings(gemini: Gemini, upstream: HttpProvider) -> None:
    """Cut vectors of gemini-embedding-001 are brought to unit length; base64 exactly when it is asked for."""
    gemini.has_content(embedded([3.0, 4.0]))
    asked = embed("a", dimensions=2, encoding_format="base64")
    body = await answered(upstream, asked, entry("gemini-embedding-001"))
    assert gemini.body["requests"][0]["outputDimensionality"] == 2
    vector = struct.unpack("<2f", base64.b64decode(body["data"][0]["embedding"]))
    assert vector == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize("body", [{}, embedded([1.0]), embedded([1.0], []), embedded([1.0], [2.0], [3.0])])
async def test_a_wrong_number_of_vectors(gemini: Gemini, upstream: HttpProvider, body: Json) -> None:
    """Never matched to the wrong input."""
    gemini.has_content(body)
    assert isinstance(await failed(upstream, embed(["a", "b"]), entry("gemini-embedding-001")), BadResponse)


@pytest.mark.parametrize("given", [[1, 2], [[1, 2]], "", [], [True], {"text": "a"}])
async def test_what_cannot_be_embedded(gemini: Gemini, upstream: HttpProvider, given: Any) -> None:
    """Token ids above all: the message names the setting that sends them."""
    error = await failed(upstream, embed(given))
    assert isinstance(error, InvalidRequest) and error.param == ("input[0]" if given == [True] else "input")
    if given == [1, 2]:
        assert "check_embedding_ctx_length" in error.message
    assert not gemini.asked


# --- the seam -------------------------------------------------------------------------------------


async def test_it_is_not_probed(gemini: Gemini, upstream: HttpProvider) -> None:
    """Google is never asked whether it lives."""
    await upstream.probe(3)
    assert not gemini.asked


async def test_it_is_a_stream(gemini: Gemini, upstream: HttpProvider) -> None:
    """Nothing is counted before anything has come."""
    gemini.streams(HI)
    stream = await upstream.stream(chat(), entry())
    assert isinstance(stream, HttpStream) and stream.usage is None
    await stream.aclose()


@pytest.mark.parametrize("rest", [b"d", b"dat", b"data", b"data:", b"data: "])
def test_an_event_that_is_cut_before_its_data_is_no_empty_answer(rest: bytes) -> None:
    """An empty stream commits, and a cut one does not."""
    for given, error in ((rest, True), (b": wait\r\n\r\n" + rest, True), (b": wait\r\n\r\n", False)):
        translator = GeminiWire().translator(chat(), entry(), "text/event-stream")
        assert not translator.feed(given).done
        assert (translator.close().error is not None) is error
