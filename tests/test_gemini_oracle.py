"""Google's own library beside our wire: what we send is what it would send, what we read is what it reads."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.wire import GeminiWire

if TYPE_CHECKING:
    from google import genai
    from google.genai import types

Json = dict[str, Any]
WIRE = GeminiWire()
OPAQUE = ("args", "response", "parametersJsonSchema", "responseJsonSchema")
PNG = b"\xff\xfe\xfd"
DATA = base64.b64encode(PNG).decode()


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    """Imported by the worker that runs these tests, and by no other: it takes half a second."""
    globals()["genai"] = import_module("google.genai")
    globals()["types"] = import_module("google.genai.types")


def plain(value: Any) -> Any:
    """The library writes some names with underscores and base64 in its other alphabet; Google reads both alike."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = ((re.sub("_(.)", lambda m: m[1].upper(), key), inner) for key, inner in value.items())
    rows = {name: inner if name in OPAQUE else plain(inner) for name, inner in named}
    for key in {"data", "thoughtSignature"} & rows.keys():
        rows[key] = rows[key].replace("-", "+").replace("_", "/")
    return rows


async def said_by_sdk(model: str, contents: list[types.Content], config: types.GenerateContentConfig) -> Json:
    """The body that the library sends, without its empty ``generationConfig``."""
    bodies: list[Json] = []

    async def handle(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}]})

    app = web.Application()
    app.router.add_post("/{path:.+}", handle)
    calling = types.AutomaticFunctionCallingConfig(disable=True)
    config = config.model_copy(update={"automatic_function_calling": calling, "automatic_continuation": False})
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url(""))
        options = types.HttpOptions(base_url=url, aiohttp_client=session, async_client_args={"ssl": True})
        client = genai.Client(api_key="key", vertexai=False, http_options=options)
        await client.aio.models.generate_content(model=model, contents=[*contents], config=config)
        await client.aio.aclose()
        client.close()
    if not bodies[0]["generationConfig"]:
        del bodies[0]["generationConfig"]
    return bodies[0]


def said_by_us(model: str, fields: Json) -> Json:
    body = json.dumps({"model": "m", **fields}).encode()
    call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "req-1")
    sent: Json = json.loads(WIRE.request(call, Entry(Target("google", model))).body)
    return sent


USER = [{"role": "user", "content": "hi"}]


def hi() -> list[types.Content]:
    return [types.Content(role="user", parts=[types.Part(text="hi")])]


SCHEMA = {"type": "object", "properties": {"snake_case": {"type": "string"}}, "$defs": {}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a_b": [1, null]}'},
    "extra_content": {"google": {"thought_signature": DATA}},
}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}]},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]


def history_there() -> list[types.Content]:
    return [
        types.Content(role="user", parts=[types.Part(inline_data=types.Blob(data=PNG, mime_type="image/png"))]),
        types.Content(
            role="model",
            parts=[
                types.Part(text="Let me see."),
                types.Part(
                    function_call=types.FunctionCall(id="c1", name="f", args={"a_b": [1, None]}), thought_signature=PNG
                ),
            ],
        ),
        types.Content(
            role="user",
            parts=[
                types.Part(function_response=types.FunctionResponse(id="c1", name="f", response={"output": "rain"})),
            ],
        ),
    ]


SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 40,
    "seed": 3,
    "stop": ["END"],
    "n": 2,
    "max_tokens": 20,
    "presence_penalty": 1,
    "frequency_penalty": 0.5,
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
}


def settings_there() -> types.GenerateContentConfig:
    return types.GenerateContentConfig(
        temperature=0.5,
        top_p=0.5,
        top_k=40,
        seed=3,
        stop_sequences=["END"],
        candidate_count=2,
        max_output_tokens=20,
        presence_penalty=1,
        frequency_penalty=0.5,
        response_logprobs=True,
        logprobs=2,
        response_mime_type="application/json",
        response_json_schema=SCHEMA,
    )


TOOL = {"type": "function", "function": {"name": "f", "description": "F", "parameters": SCHEMA}}


def tools_there() -> types.GenerateContentConfig:
    tool = types.Tool(
        function_declarations=[types.FunctionDeclaration(name="f", description="F", parameters_json_schema=SCHEMA)]
    )
    calling = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["f"])
    return types.GenerateContentConfig(tools=[tool], tool_config=types.ToolConfig(function_calling_config=calling))


@pytest.mark.parametrize(
    ("model", "fields", "contents", "config"),
    [
        ("gemini-2.5-flash", {"messages": USER}, hi, lambda: types.GenerateContentConfig()),
        (
            "gemini-2.5-flash",
            {"messages": HISTORY},
            history_there,
            lambda: types.GenerateContentConfig(system_instruction="Be brief."),
        ),
        ("gemini-2.5-flash", {"messages": USER, **SETTINGS}, hi, settings_there),
        (
            "gemini-2.5-flash",
            {"messages": USER, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            hi,
            tools_there,
        ),
        (
            "gemini-2.5-flash",
            {"messages": USER, "reasoning_effort": "low"},
            hi,
            lambda: types.GenerateContentConfig(
                thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=1024)
            ),
        ),
        (
            "gemini-3-pro",
            {"messages": USER, "reasoning_effort": "high"},
            hi,
            lambda: types.GenerateContentConfig(
                thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.HIGH)
            ),
        ),
    ],
    ids=["plain", "history", "settings", "tools", "budget", "level"],
)
async def test_requests(
    model: str,
    fields: Json,
    contents: Callable[[], list[types.Content]],
    config: Callable[[], types.GenerateContentConfig],
) -> None:
    """The same conversation, the same body."""
    assert said_by_us(model, fields) == plain(await said_by_sdk(model, contents(), config()))


COUNTED = {"promptTokenCount": 7, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "cachedContentTokenCount": 4}
PARTS: list[list[Json]] = [
    [{"text": "hi"}],
    [{"text": "Hm.", "thought": True}, {"text": "It is "}, {"text": "12."}],
    [{"functionCall": {"name": "f", "id": "i", "args": {"a": [1, None]}}, "thoughtSignature": DATA}],
    [{"text": "a", "thoughtSignature": DATA}, {"functionCall": {"name": "g"}}],
    [{"inlineData": {"mimeType": "image/png", "data": DATA}}],
]


@pytest.mark.parametrize("parts", PARTS, ids=["text", "thoughts", "call", "both", "picture"])
@pytest.mark.parametrize("reason", ["STOP", "MAX_TOKENS", "SAFETY"])
def test_replies(parts: list[Json], reason: str) -> None:
    """What our reader hands on is what the library's objects hold."""
    body = {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, "index": 0}],
        "usageMetadata": COUNTED,
    }
    theirs = types.GenerateContentResponse.model_validate(body)
    assert theirs.candidates and theirs.candidates[0].content and theirs.usage_metadata
    there = theirs.candidates[0].content.parts or []
    call = Call(Endpoint.CHAT, read_summary(b'{"messages":[]}', ("messages", list)), b"{}", "req-1")
    answer = WIRE.answer(call, Entry(Target("google", "m")), json.dumps(body).encode())
    (ours,) = answer.choices
    assert ours.content == "".join(part.text or "" for part in there if not part.thought)
    assert ours.reasoning == "".join(part.text or "" for part in there if part.thought)
    called = [(part.function_call, part.thought_signature) for part in there if part.function_call]
    assert [(c.name, json.loads(c.arguments)) for c in ours.tool_calls] == [(c.name, c.args or {}) for c, _ in called]
    for said, (function, signature) in zip(ours.tool_calls, called, strict=True):
        assert function.id in (None, said.id)
        held = said.extra.get("extra_content", {}).get("google", {}).get("thought_signature")
        assert (base64.b64decode(held) if held else None) == signature
    pictures = [part.inline_data for part in there if part.inline_data]
    assert [base64.b64decode(uri.partition(",")[2]) for uri in ours.images] == [blob.data for blob in pictures]
    counted, usage = theirs.usage_metadata, answer.usage
    assert usage is not None
    assert (usage.prompt, usage.cached) == (counted.prompt_token_count, counted.cached_content_token_count)
    assert (usage.completion, usage.reasoning) == (2 + 3, counted.thoughts_token_count)
