"""What a provider's dialect refuses is named by its place in what the client sent, whatever its door made of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.openai.caller_paths import CallerPaths, HistoryPaths, Origins
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, each, status, upstream

TYPELESS = "data:;base64,aGk="
TIFF = "data:image/tiff;base64,aGk="
BMP = "Qk0wMDAw"


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def pictured(url: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url}


def source(url: str) -> dict[str, Any]:
    media, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


SAID = {"role": "assistant", "content": "one"}
ASKED = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1"}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
USED = {"role": "assistant", "content": [USE]}
TEXT = {"type": "input_text", "text": "x"}
LISTEN = {"type": "input_audio", "input_audio": {"format": "ogg", "data": "aGk="}}

REFUSED: dict[str, tuple[str, str, dict[str, Any], str | None, str]] = {
    # door, kind, request, param (None: the door has none), words
    "a part": (
        "/v1/responses",
        "google",
        {"instructions": "i", "input": [ASKED, SAID, user(TEXT, pictured(TYPELESS))]},
        "input[2].content[1]",
        "'input[2].content[1]' must be a base64 data URI",
    ),
    "a part after two items of one turn": (
        "/v1/responses",
        "google",
        {"input": [ASKED, SAID, SAID, user(LISTEN)]},
        "input[3].content[0]",
        "'input[3].content[0]' must be",
    ),
    "a part that no field names": (
        "/v1/responses",
        "ollama",
        {"instructions": "i", "input": [ASKED, user(pictured(TIFF))]},
        "input",
        "input[1].content[0] is 'image/tiff'",
    ),
    "a URL": (
        "/v1/responses",
        "ollama",
        {"input": [ASKED, user(TEXT, pictured("https://x/y.png"))]},
        "input",
        "'input[1].content[1]' as a base64 data URI",
    ),
    "the result of a tool": (
        "/v1/responses",
        "google",
        {"input": [ASKED, CALL, {**RESULT, "output": [TEXT, pictured(TYPELESS)]}]},
        "input[2]",
        "'input[2]' must be",
    ),
    "a result without a call": (
        "/v1/responses",
        "google",
        {"input": [ASKED, {**RESULT, "call_id": None, "name": "a", "output": [TEXT, pictured(TYPELESS)]}]},
        "input[1]",
        "'input[1]' must be",
    ),
    "a field": ("/v1/responses", "ollama", {"reasoning": {"effort": "huge"}}, "reasoning.effort", "'reasoning.effort'"),
    "the same of Google": ("/v1/responses", "google", {"reasoning": {"effort": "huge"}}, "reasoning.effort", "'low'"),
    "a block": (
        "/v1/messages",
        "ollama",
        {"system": "s", "messages": [ASKED, SAID, user({"type": "text", "text": "x"}, source(TIFF))]},
        "messages",
        "messages[2].content[1] is 'image/tiff'",
    ),
    "a picture in a tool's result": (
        "/v1/messages",
        "ollama",
        {
            "system": "s",
            "messages": [
                ASKED,
                USED,
                user({"type": "tool_result", "tool_use_id": "c1", "content": [source(TIFF)]}),
            ],
        },
        "messages",
        "messages[2].content[0] is 'image/tiff'",
    ),
    "a block with a URL": (
        "/v1/messages",
        "google",
        {"system": "s", "messages": [user({"type": "image", "source": {"type": "url", "url": "https://x/y"}})]},
        "messages",
        "'messages[0].content[0]' as a base64 data URI",
    ),
    "a picture": (
        "/api/chat",
        "ollama",
        {"messages": [ASKED, {**ASKED, "images": [BMP]}]},
        None,
        "messages[1].images[0] is 'image/bmp'",
    ),
    "a picture beside a prompt": (
        "/api/generate",
        "ollama",
        {"prompt": "x", "system": "s", "images": [BMP]},
        None,
        "images[0] is 'image/bmp'",
    ),
}


async def nobody(connection: Connection, seen: Seen) -> None:
    raise AssertionError("nobody is asked")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("what", REFUSED)
async def test_a_refusal_names_the_clients_own_place(what: str, stream: bool, tmp_path: Path) -> None:
    """And never a message of the chat that the door made."""
    path, kind, body, param, words = REFUSED[what]
    given = {"model": "mana/test", "stream": stream, **({"max_tokens": 9} if path == "/v1/messages" else {}), **body}
    given |= {"input": "hi"} if path == "/v1/responses" and "input" not in body else {}
    async with upstream(each(nobody)) as server:
        provider = {"kind": kind, "base_url": server.url} | ({"api_key": "AIzaNotARealKey"} if kind == "google" else {})
        async with proxy(settings({"p": provider}), tmp_path) as p:
            code, answer, _ = await p.post(path, given)
    error = answer["error"]
    message = error if param is None else error["message"]
    assert (code, words in message) == (400, True), message
    assert param is None or error["param"] == param
    if path != "/v1/messages":
        assert path == "/api/chat" or "messages" not in message


async def test_a_provider_that_names_a_place_itself(tmp_path: Path) -> None:
    """An OpenAI-compatible one speaks of the chat that it got."""
    body = {"error": {"message": "Invalid value at messages[1].content[0]", "param": "messages[1].content[0]"}}
    async with upstream(each(status("400 Bad", body))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        given = {"instructions": "i", "input": [user(TEXT, pictured("https://x/y.png"))]}
        _, answer, _ = await p.post("/v1/responses", given)
        told = (answer["error"]["param"], answer["error"]["message"])
        assert told == ("input[0].content[0]", "Invalid value at input[0].content[0]")
        _, answer, _ = await p.chat()
        assert answer["error"]["param"] == "messages[1].content[0]"


@pytest.mark.parametrize(
    ("told", "own"),
    [("messages[2].tool_calls[1].function.name", "messages[1].content[2]"), ("messages[1].content", "messages[0]")],
)
async def test_places_of_two_apis_with_one_name_for_messages(told: str, own: str, tmp_path: Path) -> None:
    """A chat's becomes the client's, once: what is said of it is not read as the chat's again."""
    body = {"error": {"message": f"Invalid '{told}': too odd, see {told}", "param": told}}
    uses: list[Any] = [{"type": "tool_use", "id": id_, "name": "a", "input": {}} for id_ in ("c1", "c2")]
    turn = {"role": "assistant", "content": [{"type": "text", "text": "So."}, *uses]}
    async with upstream(each(status("400 Bad", body))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        given = {"max_tokens": 9, "system": "s", "messages": [ASKED, turn, ASKED]}
        _, answer, _ = await p.post("/v1/messages", given)
        assert answer["error"]["param"] == own
        assert answer["error"]["message"] == f"Invalid '{own}': too odd, see {own}"


async def test_what_a_listing_denies(tmp_path: Path) -> None:
    """A picture for a model that sees none, before anybody is asked."""

    async def box(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply({"models": [{"name": "m", "model": "m", "capabilities": ["completion"]}]})

    async with upstream(box) as server:
        async with proxy(settings({"box": {"kind": "ollama", "base_url": server.url}}), tmp_path) as p:
            code, answer, _ = await p.post("/v1/responses", {"input": [user(pictured("data:image/png;base64,aGk="))]})
            assert (code, answer["error"]["code"]) == (400, "unsupported_capability")
            assert answer["error"]["param"] == "input"
            code, answer, _ = await p.chat(messages=[user({"type": "image_url", "image_url": {"url": TIFF}})])
            assert answer["error"]["param"] == "messages"


ORIGINS = Origins(["instructions", "input[0]", "input"], {1: ("input[0].content[0]",)}, {2: ("input[2]", "input[3]")})
PATHS = CallerPaths(
    "input",
    ORIGINS,
    {"max_tokens": "max_output_tokens", "tools": "tools"},
)


@pytest.mark.parametrize(
    ("told", "path"),
    [
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].content[0].image_url.url", "input[0].content[0]"),
        ("messages[1].content[7]", "input[0]"),
        ("messages[1].role", "input[0]"),
        ("messages[2].tool_calls[1].extra_content.google.thought_signature", "input[3]"),
        ("messages[2].tool_calls[5]", "input"),
        ("messages[2].content", "input"),
        ("messages[99]", "input"),
        ("max_tokens", "max_output_tokens"),
        ("tools[1].function.name", "tools"),
        ("temperature", "temperature"),
        ("messages.1.content", "messages.1.content"),
        ("what is this?", "what is this?"),
    ],
)
def test_as_far_in_as_it_is_known(told: str, path: str) -> None:
    """No index where none is known; what is no path of ours stays."""
    assert PATHS.path(told) == path
    error = InvalidRequest(f"'{told}' is wrong", param=told)
    PATHS.translate_error(error)
    assert (error.param, error.message) == (path, f"'{path}' is wrong")


def test_a_message_may_name_places_and_the_error_none() -> None:
    """Both are the client's then."""
    error = InvalidRequest("look at messages[1].content[0] and messages[0]")
    PATHS.translate_error(error)
    assert (error.param, error.message) == (None, "look at input[0].content[0] and instructions")


def test_a_number_of_thousands_of_digits_is_no_place() -> None:
    """A provider's words may hold one."""
    words = f"look at messages[{'1' * 5000}] and input[{'1' * 5000}]"
    for paths in (PATHS, HistoryPaths("input", 1, "previous_response_id")):
        error = InvalidRequest(words)
        paths.translate_error(error)
        assert error.message == words
