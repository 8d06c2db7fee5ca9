"""What Gemini's wire makes of odd conversations and odd replies: no sockets, only its words."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from manallm_proxy.contract.answers import Delta, StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, KeyRejected, RateLimited, ServerBusy
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini import request
from manallm_proxy.providers.gemini.wire import GeminiWire, versioned
from tests.through_doors import whole

Json = dict[str, Any]
WIRE = GeminiWire()
ENTRY = Entry(Target("google", "gemini-2.5-flash"))
PNG = {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}


def call_of(body: bytes) -> Call:
    return Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "req-1")


def chat(*messages: Json, **fields: Any) -> Call:
    said = list(messages) or [{"role": "user", "content": "hi"}]
    return call_of(json.dumps({"model": "m", "messages": said, **fields}).encode())


def sent(call: Call) -> Json:
    body: Json = json.loads(WIRE.request(call, ENTRY).body)
    return body


def reply(*parts: Json, finish: str | None = "STOP", **more: Any) -> Json:
    candidate = {"content": {"role": "model", "parts": list(parts)}, **({"finishReason": finish} if finish else {})}
    return {"candidates": [candidate], **more}


def test_many_tools_are_not_compared_with_each_other() -> None:
    """Each name is looked up: 15,000 tools took a hundred million comparisons."""
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    tools = [{"function": {"name": Name(f"f{n}")}} for n in range(500)]
    fields = request._tools({"tools": tools, "tool_choice": "required"}, lambda name: name)
    assert fields["tools"][0]["functionDeclarations"] == [{"name": f"f{n}"} for n in range(500)]
    assert compared < 5000


def answered(body: Json | bytes) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return whole(chat(), ENTRY.target, WIRE.answer(chat(), ENTRY, raw))


def event(chunk: Any) -> bytes:
    return b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\r\n\r\n"


def streamed(*reads: bytes, content_type: str = "text/event-stream") -> tuple[list[Delta], StreamBatch, Usage | None]:
    """All deltas, the last batch, the usage."""
    translator = WIRE.translator(chat(), ENTRY, content_type)
    deltas: list[Delta] = []
    for read in reads:
        batch = translator.feed(read)
        deltas += batch.deltas
        if batch.done or batch.error:
            return deltas, batch, translator.usage
    batch = translator.close()
    return [*deltas, *batch.deltas], batch, translator.usage


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, "https://generativelanguage.googleapis.com/v1beta"),
        ("http://x", "http://x/v1beta"),
        ("http://x/v1/", "http://x/v1"),
        ("http://x/a/v1beta", "http://x/a/v1beta"),
        ("http://v1", "http://v1/v1beta"),
    ],
)
def test_the_version_of_the_api(base_url: str | None, expected: str) -> None:
    """The one that the URL names, else the one with all models."""
    assert versioned(base_url) == expected


def test_empty_texts_are_left_out() -> None:
    """Gemini answers 400 to them, and to a turn without parts; the turns around such a one become one."""
    empty = {"type": "text", "text": ""}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    messages: list[Json] = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": [empty]},
        {"role": "user", "content": [empty, image]},
        {"role": "user", "content": ""},
    ]
    assert sent(chat(*messages)) == {"contents": [{"role": "user", "parts": [{"text": "a"}, PNG]}]}
    with pytest.raises(InvalidRequest):
        sent(chat({"role": "user", "content": ""}))


@pytest.mark.parametrize(
    ("arguments", "args"),
    [
        ("[1]", {}),
        ("{oops", {}),
        ("", {}),
        (None, {}),
        ('"text"', {}),
        (' {"a": [1, null]}', {"a": [1, None]}),
        ({"a": 1}, {"a": 1}),
        ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
    ],
)
def test_arguments_in_the_history(arguments: Any, args: Json) -> None:
    """What a model once wrote and is no object ends no conversation."""
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    (content,) = sent(chat({"role": "assistant", "tool_calls": [call]}))["contents"]
    assert content["parts"] == [{"functionCall": {"name": "f", "args": args, "id": "c"}}]


def test_half_surrogate_pairs_in_a_request() -> None:
    """Legal JSON, and no text that anybody could send on."""
    body = b'{"messages": [{"role": "user", "content": "a\\ud83d"}]}'
    assert sent(call_of(body))["contents"][0]["parts"] == [{"text": "a\ufffd"}]
    asked = b'{"input": ["a\\ud83d", "b"]}'
    embed = Call(Endpoint.EMBEDDINGS, read_summary(asked, ("input", list)), asked, "req-1")
    assert len(json.loads(WIRE.request(embed, ENTRY).body)["requests"]) == 2
    assert len(WIRE.answer(embed, ENTRY, b'{"embeddings": [{"values": [1]}, {"values": [2]}]}').vectors) == 2


def test_ten_thousand_messages() -> None:
    """The event loop stands still meanwhile, for every other request."""
    roles = ("user", "assistant")
    call = chat(*[{"role": roles[n % 2], "content": f"hi {n}"} for n in range(10_000)])
    took = []
    for _ in range(5):
        begun = time.process_time()
        WIRE.request(call, ENTRY)
        took.append(time.process_time() - begun)
    assert min(took) < 0.1


# --- answers --------------------------------------------------------------------------------------


def test_half_surrogate_pairs_in_an_answer() -> None:
    """In text, arguments and errors, whole and streamed: U+FFFD."""
    body = b'{"candidates": [{"content": {"parts": [{"text": "a\\ud83d"}]}, "finishReason": "STOP"}]}'
    assert answered(body)["choices"][0]["message"]["content"] == "a\ufffd"
    deltas, last, _ = streamed(event(body))
    assert last.done and deltas[0].content == "a\ufffd"
    call = b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": "\\ud83d"}}}]}}]}'
    said = answered(call)["choices"][0]["message"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"a": "\ufffd"}
    refusal = b'{"error": {"code": 400, "message": "bad \\udc00 word", "status": "INVALID_ARGUMENT"}}'
    assert WIRE.failure(400, {}, refusal).message == "bad \ufffd word"


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        (None, None),
        ("many", None),
        ({}, Usage()),
        ({"promptTokenCount": None, "candidatesTokenCount": 4.0}, Usage(completion=4)),
        ({"promptTokenCount": "7", "candidatesTokenCount": -1, "thoughtsTokenCount": True}, Usage()),
        ({"promptTokenCount": 7, "toolUsePromptTokenCount": 2, "of_the_future": {"a": 1}}, Usage(prompt=9)),
        (
            {"promptTokenCount": 7, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "cachedContentTokenCount": 4},
            Usage(7, 5, 3, 4),
        ),
    ],
)
def test_counters(counted: Any, usage: Usage | None) -> None:
    """An odd one spoils no answer."""
    body = reply({"text": "hi"}, usageMetadata=counted)
    answer = WIRE.answer(chat(), ENTRY, json.dumps(body).encode())
    deltas, last, streams = streamed(event(body))
    assert (answer.usage, streams, last.done, deltas[0].content) == (usage, usage, True, "hi")


def test_a_picture() -> None:
    """An answer that is a picture, without its sketches; text beside it stays."""
    sketch = {**PNG, "thought": True}
    message = answered(reply(sketch, PNG))["choices"][0]["message"]
    assert [image["image_url"]["url"] for image in message["images"]] == ["data:image/png;base64,iVBORw=="]
    deltas, last, _ = streamed(event(reply({"text": "here"}, PNG, finish=None)), event(reply(finish="STOP")))
    assert last.done and (deltas[0].content, len(deltas[0].images)) == ("here", 1)


@pytest.mark.parametrize(
    "body",
    [
        reply(),
        reply({"text": ""}),
        reply({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
        {"candidates": [{"finishReason": "STOP"}]},
        [],
        [reply({"text": "a"}), reply({"text": "b"})],
    ],
)
def test_an_answer_that_holds_nothing(body: Any) -> None:
    """Nothing that could be handed on: the next target may do better."""
    with pytest.raises(BadResponse):
        answered(json.dumps(body).encode())


@pytest.mark.parametrize("form", ["whole", "event", "bare", "list"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, RateLimited),
        ({"status": "RESOURCE_EXHAUSTED"}, RateLimited),
        ({"code": 503, "status": "UNAVAILABLE"}, ServerBusy),
        ({"code": 403, "message": "no"}, KeyRejected),
    ],
)
def test_an_error_under_status_200(error: Json, kind: type[Exception], form: str) -> None:
    """It is classed by its code, wherever it stands."""
    body: Any = {"error": error}
    raw = json.dumps([body] if form == "list" else body).encode()
    if form == "event":
        _, last, _ = streamed(event(reply({"text": "a"}, finish=None)), event(raw))
    else:
        _, last, _ = streamed(raw, content_type="application/json")
        with pytest.raises(kind):
            answered(raw)
    assert type(last.error) is kind
    if form == "bare":
        _, last, _ = streamed(event(reply({"text": "a"}, finish=None)), raw + b"\n\n")
        assert type(last.error) is kind


# --- streams --------------------------------------------------------------------------------------


def test_keep_alives() -> None:
    """Comments and empty events say nothing, before an answer and within."""
    quiet = b": wait\n\ndata:\n\ndata: {}\r\n\r\ndata: null\n\nevent: ping\n\n"
    deltas, last, _ = streamed(quiet, event(reply({"text": "a"}, finish=None)), quiet, event(reply({"text": "b"})))
    assert last.done and [delta.content for delta in deltas] == ["a", "b"]
    assert streamed(quiet)[1] == StreamBatch(done=True)


def test_openais_end_mark() -> None:
    """After a finish reason it is the end; before it the answer was cut."""
    done = b"data: [DONE]\n\n"
    assert streamed(event(reply({"text": "a"})) + done + event(reply({"text": "b"})))[1].done
    assert isinstance(streamed(event(reply({"text": "a"}, finish=None)), done)[1].error, Disconnected)
    assert streamed(done)[1] == StreamBatch(done=True)


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 40, -3, -1])
def test_cut_anywhere(cut: int) -> None:
    """Reads end where they like, and the last event may lack its blank line."""
    data = event(reply({"text": "é"}))
    deltas, last, _ = streamed(data[:cut], data[cut:].rstrip())
    assert last.done and deltas[0].content == "é"


def test_half_an_event() -> None:
    """What the end of the body cut off is no answer, and not an empty one."""
    deltas, last, _ = streamed(event(reply({"text": "a"}, finish=None)) + b'data: {"candidates": [{"con')
    assert [delta.content for delta in deltas] == ["a"] and isinstance(last.error, Disconnected)
    assert isinstance(streamed(b'data: {"candidates": [{"con')[1].error, Disconnected)


def test_a_whole_answer_to_a_streamed_request() -> None:
    """It is an answer all the same; a page is none."""
    raw = json.dumps(reply({"text": "a"}, usageMetadata={"promptTokenCount": 1})).encode()
    deltas, last, usage = streamed(raw[:9], raw[9:], content_type="application/json")
    assert last.done and deltas[0].content == "a" and usage == Usage(prompt=1)
    assert isinstance(streamed(b"<html></html>", content_type="text/html")[1].error, BadResponse)
    assert streamed()[1] == StreamBatch(done=True)


def test_a_picture_alone_is_no_empty_text() -> None:
    """Content "" beside it would be read as an empty answer; with words both are there."""
    message = answered(reply(PNG))["choices"][0]["message"]
    assert (message["content"], len(message["images"])) == (None, 1)
    assert answered(reply({"text": "see"}, PNG))["choices"][0]["message"]["content"] == "see"
