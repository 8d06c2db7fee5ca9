"""The dialect of OpenAI-compatible servers: recorded forms, bytes in and bytes out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, Endpoint, ModelList
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ContentBlocked,
    ContextTooLong,
    Disconnected,
    KeyRejected,
    MissingModel,
    PaymentRequired,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerBusy,
    ServerFailed,
)
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.providers.mending.learned import LEARNED_LIMIT
from manallm_proxy.providers.openai.deltas import whole_deltas
from manallm_proxy.providers.openai.reply import reply_object, usual_reply
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Request, Translator
from tests.cases import each_with_each, every
from tests.through_doors import reply_to
from tests.upstreams import completion

ENTRY = Entry(Target("p", "org/m"))
DONE = b"data: [DONE]\n\n"


STARTS: dict[Endpoint, tuple[str, type, Any]] = {
    Endpoint.CHAT: ("messages", list, []),
    Endpoint.COMPLETIONS: ("prompt", str, "x"),
    Endpoint.EMBEDDINGS: ("input", str, "x"),
}


def call(endpoint: Endpoint = Endpoint.CHAT, **body: Any) -> Call:
    key, kinds, start = STARTS[endpoint]
    raw = json.dumps({key: start, **body}).encode()
    return Call(endpoint, read_summary(raw, (key, kinds)), raw, "id-1")


STREAM = call(stream=True)


def frame(data: bytes | dict[str, Any], end: bytes = b"\n\n") -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + end


def chunk(content: str | None = "hi", *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "org/m", "choices": [choice], **more}


def translator(of: Call = STREAM, content_type: str = "text/event-stream; charset=utf-8") -> Translator:
    return OpenAIWire().translator(of, ENTRY, content_type)


def play(
    *parts: bytes, of: Call = STREAM, content_type: str = "text/event-stream"
) -> tuple[bytes, StreamBatch, Translator]:
    """All events as the client gets them, the last batch, and the translator; closed where it did not end before."""
    wire, reply = translator(of, content_type), reply_to(of)
    reply.start(ENTRY.target)
    out = b""
    for part in parts:
        batch = wire.feed(part)
        out += reply.events(batch)
        if batch.done or batch.error:
            break
    else:
        batch = wire.close()
        out += reply.events(batch)
    return out + (reply.end(wire.usage).removesuffix(DONE) if batch.done else b""), batch, wire


def test_a_request_keeps_its_bytes() -> None:
    """But for the model, and for the usage that only we ask for."""
    sent = Call(
        Endpoint.CHAT,
        read_summary(raw := b'{ "model" : "x",\n"messages":[ ],"odd":1.50}', ("messages", list)),
        raw,
        "1",
    )
    request = OpenAIWire().request(sent, ENTRY)
    assert (request.path, request.body) == ("chat/completions", b'{ "model" : "org/m",\n"messages":[ ],"odd":1.50}')
    assert json.loads(OpenAIWire().request(STREAM, ENTRY).body)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in json.loads(OpenAIWire(asks_usage=False).request(STREAM, ENTRY).body)
    assert "stream_options" not in json.loads(OpenAIWire().request(call(Endpoint.EMBEDDINGS, stream=True), ENTRY).body)


def test_a_refusal_of_stream_options_is_learnt_from_once() -> None:
    """Ours is left out from then on; the client's own is the client's."""
    wire = OpenAIWire()
    again = wire.reshape(STREAM, ENTRY, 422, b'{"message":"extra: stream_options"}')
    assert again is not None and "stream_options" not in json.loads(again.body)
    assert wire.remember_reshaped(ENTRY, again)
    assert not wire.remember_reshaped(ENTRY, again)
    assert wire.request(STREAM, ENTRY) == again
    asked = call(stream=True, stream_options={"include_usage": True})
    assert json.loads(wire.request(asked, ENTRY).body)["stream_options"] == {"include_usage": True}


def test_one_strict_model_costs_no_other_its_counts() -> None:
    """An aggregator has a hundred models, each behind a server of its own; what is known of them is bounded."""
    wire = OpenAIWire()
    others = [Entry(Target("p", f"m{number}")) for number in range(LEARNED_LIMIT + 1)]
    without = Request("chat/completions", b"{}", refused=["stream_options"])
    assert not wire.remember_reshaped(ENTRY, Request("chat/completions", b"{}", refused=["reasoning_effort"]))
    assert wire.remember_reshaped(ENTRY, without)
    assert "stream_options" in json.loads(wire.request(STREAM, others[0]).body)
    assert all(wire.remember_reshaped(other, without) for other in others)
    assert "stream_options" in json.loads(wire.request(STREAM, ENTRY).body)
    assert "stream_options" not in json.loads(wire.request(STREAM, others[-1]).body)
    assert len(wire._learned.by_model) == LEARNED_LIMIT


def test_only_what_was_answered_is_learnt() -> None:
    """A refusal for another reason, the words in its text, must not cost the token counts of all that follow."""
    wire = OpenAIWire()
    wire.reshape(STREAM, ENTRY, 400, b"your prompt speaks of stream_options")
    assert json.loads(wire.request(STREAM, ENTRY).body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("of", "status", "body"),
    [
        (call(stream=True, stream_options={"include_usage": True}), 422, b"stream_options"),
        (STREAM, 500, b"stream_options"),
        (STREAM, 422, b"temperature"),
        (call(), 422, b"stream_options"),
    ],
)
def test_no_other_refusal_is_answered_with_another_request(of: Call, status: int, body: bytes) -> None:
    """The client asked for it, another status, another field, no stream."""
    assert OpenAIWire().reshape(of, ENTRY, status, body) is None


RECORDED: dict[str, tuple[list[bytes], str]] = {
    "OpenRouter": (
        [b": OPENROUTER PROCESSING\n\n", frame(chunk("he", provider="X")), frame(chunk("llo", finish="stop"))],
        "hello",
    ),
    "CRLF": ([frame(chunk("hello"), b"\r\n\r\n"), frame(chunk(None, finish="stop"), b"\r\n\r\n")], "hello"),
    "Groq": ([frame(chunk("hello", x_groq={"id": "r"})), frame(chunk(None, finish="stop"))], "hello"),
    "Together": ([frame(chunk("hello", warnings=[])), frame(chunk("", finish="eos"))], "hello"),
    "DeepSeek": ([b": keep-alive\n\n" * 3, frame(chunk("hello")), frame(chunk(None, finish="stop"))], "hello"),
    "llama.cpp": ([frame(chunk("hello")), b":\n\n", frame(chunk(None, finish="stop", timings={}))], "hello"),
    "Mistral": (
        [
            frame(
                {**chunk(), "choices": [{"index": 0, "delta": {"content": [{"type": "text", "text": "x"}]}}]},
            ),
            frame(chunk("hello")),
            frame(chunk(None, finish="stop")),
        ],
        "hello",
    ),
    "names around": (
        [
            frame({"x": {"model": "org/m"}, **chunk("hello"), "metadata": {"model": "org/m"}}),
            frame(chunk(None, finish="stop", y=[{"model": "org/m"}])),
        ],
        "hello",
    ),
    "no spaces": (
        [b'data:{"model":"org/m","choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":"stop"}]}\n\n'],
        "hello",
    ),
    "zwölf": (
        [frame(json.dumps(chunk("zw\u00f6lf \u2028 \U0001f41f"), ensure_ascii=False).encode())],
        "zw\u00f6lf \u2028 \U0001f41f",
    ),
    "names in the text": (
        [frame(chunk('"model":"org/m" and "error": and "usage":{')), frame(chunk(None, finish="stop"))],
        '"model":"org/m" and "error": and "usage":{',
    ),
    "another id each": (
        [frame({**chunk("he"), "id": "1"}), frame({**chunk("llo"), "id": "2"}), frame(chunk(None, finish="stop"))],
        "hello",
    ),
}


def renamed(part: bytes) -> bytes:
    """The same bytes with the top-level model exchanged: it stands before ``choices`` and after ``x`` here."""
    head, choices, rest = part.partition(b'"choices"')
    at = head.rfind(b'"org/m"')
    return head if at < 0 else head[:at] + b'"p/org/m"' + head[at + 7 :] + choices + rest


@pytest.mark.parametrize("form", RECORDED)
def test_recorded_streams_are_relayed(form: str) -> None:
    """The model in every chunk, comments left out, all else as it came, cut at every offset."""
    parts, text = RECORDED[form]
    stream = b"".join(parts) + DONE
    whole, last, _ = play(stream)
    assert last.done
    assert whole == b"".join(renamed(part) for part in parts if not part.startswith(b":"))
    chunks = [
        json.loads(line.partition(b":")[2]) for line in whole.replace(b"\r", b"").split(b"\n") if line[:4] == b"data"
    ]
    assert {c["model"] for c in chunks} == {"p/org/m"}
    texts = [c["choices"][0]["delta"].get("content") or "" for c in chunks]
    assert "".join(text for text in texts if isinstance(text, str)) == text
    for cut in range(len(stream) + 1):
        assert play(stream[:cut], stream[cut:])[0] == whole
    assert play(*parts, DONE)[0] == whole


@pytest.mark.parametrize("form", RECORDED)
def test_the_same_under_another_content_type(form: str) -> None:
    """Recognized by its first bytes, cut at every offset."""
    stream = b"".join(RECORDED[form][0]) + DONE
    whole, _, _ = play(stream)
    for cut in range(len(stream) + 1):
        out, last, _ = play(stream[:cut], stream[cut:], content_type="text/plain")
        assert (out, last.done) == (whole, True)


def test_the_first_piece_that_says_something_is_marked_once() -> None:
    """Comments, a role, empty content and null do not commit; content, reasoning, tool calls and an end do."""
    wire = translator()
    silent = [
        b": x\n\n",
        frame(chunk("")),
        frame({**chunk(), "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}),
        frame(b"{}"),
    ]
    assert [wire.feed(part).has_content for part in silent] == [False] * 4
    assert [wire.feed(frame(chunk("a"))).has_content, wire.feed(frame(chunk("b"))).has_content] == [True, False]
    for delta in ({"reasoning_content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0}]}, {"refusal": "x"}):
        assert translator().feed(frame({"choices": [{"index": 0, "delta": delta}]})).has_content
    assert translator().feed(frame(chunk(None, finish="stop"))).has_content


USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


@pytest.mark.parametrize("asked", [True, False])
def test_the_usage_chunk_is_taken_out_where_nobody_asked(asked: bool) -> None:
    """Counted in both cases."""
    of = call(stream=True, stream_options={"include_usage": True}) if asked else STREAM
    last = {**chunk(), "choices": [], "usage": USAGE}
    out, _, wire = play(frame(chunk("a", finish="stop")), frame(last), DONE, of=of)
    assert (b'"usage"' in out) is asked
    assert wire.usage == Usage(3, 2)


def test_usage_beside_choices_stays() -> None:
    """OpenRouter's and Groq's last chunks are the provider's own words; that there is none yet only we had asked."""
    out, _, wire = play(frame(chunk("a", usage=None)), frame(chunk("", finish="stop", usage=USAGE)), DONE)
    assert out.count(b'"usage"') == 1
    assert wire.usage == Usage(3, 2)
    _, _, wire = play(frame(chunk("a", finish="stop", x_groq={"id": "r", "usage": USAGE})), DONE)
    assert wire.usage == Usage(3, 2)
    of_kimi = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}
    _, _, wire = play(frame(chunk("a")), frame({**chunk(), "choices": [of_kimi]}), DONE)
    assert wire.usage == Usage(3, 2)


ERRORS: dict[str, tuple[bytes, type[ProviderError]]] = {
    "OpenAI": (frame({"error": {"message": "m", "type": "server_error", "code": None}}), ServerFailed),
    "OpenRouter": (
        frame(
            {
                "error": {"code": 429, "message": "m"},
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            }
        ),
        RateLimited,
    ),
    "vLLM": (
        frame({"error": {"message": "maximum context length", "type": "BadRequestError", "code": 400}}) + DONE,
        ContextTooLong,
    ),
    "Groq": (frame({**chunk(None), "x_groq": {"id": "r", "error": "over capacity"}}), ServerFailed),
    "Venice": (frame({"error_type": "server_error", "error_message": "m"}), ServerFailed),
    "SGLang": (frame({"error": {"object": "error", "message": "m", "code": 400}}), ProviderError),
    "LM Studio": (b'event: error\ndata: {"error":{"message":"m"},"message":"m"}\n\n', ServerFailed),
    "no error key": (b'event: error\ndata: {"message":"m"}\n\n', ServerFailed),
    "event: error in words": (b"event: error\ndata: it broke\n\n", ServerFailed),
    "old llama.cpp": (b'error: {"code":500,"message":"m"}\n\n', ProviderError),
    "a text": (frame({"error": "m"}), ServerFailed),
}


@each_with_each(ERRORS, [False, True])
def test_every_form_of_error_is_seen(form: str, late: bool) -> None:
    """First or in the middle; nothing of it is relayed."""
    data, kind = ERRORS[form]
    start = frame(chunk("a")) if late else b""
    out, last, _ = play(start + data)
    assert isinstance(last.error, kind)
    assert out == (start.replace(b'"org/m"', b'"p/org/m"'))


def test_an_end_in_error_is_one_where_nothing_was_said() -> None:
    """Behind words it is the client's to read: the answer has left."""
    end = frame(chunk(None, finish="error"))
    _, last, _ = play(frame(chunk("")), end, DONE)
    assert isinstance(last.error, BadResponse) and last.error.detail == "finish_reason error"
    out, last, _ = play(frame(chunk("a")), end, DONE)
    assert last.done and b'"error"' in out


def test_error_null_is_none() -> None:
    """Some servers send it in every chunk."""
    _, last, _ = play(frame(chunk("a", error=None)), frame(chunk(None, finish="stop", error=None)), DONE)
    assert last.done


@pytest.mark.parametrize(
    ("parts", "of", "ends"),
    [
        ([frame(chunk("a")), frame(chunk(None, finish="stop"))], STREAM, True),
        ([frame(chunk("a"))], STREAM, False),
        ([frame(chunk("a", finish="stop"))], call(stream=True, n=2), False),
        (
            [
                frame(chunk("a", finish="stop")),
                frame({**chunk(), "choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}),
            ],
            call(stream=True, n=2),
            True,
        ),
        ([frame(chunk("a")), frame(chunk(None, finish="stop"))[:-2]], STREAM, True),
        ([frame(chunk("a")), DONE[:-2]], STREAM, True),
        ([frame(chunk("a")), b'data: {"choices":[{"del'], STREAM, False),
        ([b": only comments\n\n"], STREAM, True),
        ([], STREAM, True),
    ],
)
def test_how_a_stream_without_done_ends(parts: list[bytes], of: Call, ends: bool) -> None:
    """Well with every finish reason or with nothing at all; else it was cut."""
    out, last, _ = play(*parts, of=of)
    assert last.done is ends
    assert isinstance(last.error, Disconnected) is not ends
    assert not out or out.endswith(b"\n\n")


def test_an_unreadable_first_event_is_no_answer() -> None:
    """Later ones are the client's to read."""
    assert isinstance(play(frame(b"{broken"))[1].error, BadResponse)
    out, last, _ = play(frame(chunk("a")), frame(b"{broken"), DONE)
    assert last.done and b"{broken" in out


def test_several_data_lines_become_one() -> None:
    """JSON breaks lines only where a space would do."""
    text = json.dumps(chunk("a", finish="stop"), indent=1).encode()
    out, last, _ = play(b"".join(b"data: " + line + b"\n" for line in text.split(b"\n")) + b"\n", DONE)
    assert last.done
    assert out.startswith(b"data: {") and out.count(b"\n") == 2
    assert json.loads(out[6:]) == {**chunk("a", finish="stop"), "model": "p/org/m"}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_name_that_says_nothing_is_not_relayed(end: bytes) -> None:
    """``message`` is the name of an event without one, and some SDKs read only events without any."""
    words = [chunk("a"), chunk("b"), chunk("c"), chunk(None, finish="stop")]
    plain, _, _ = play(*map(frame, words), DONE)
    named = [b"event: message" + end + frame(word, end=end * 2) for word in words]
    for packets in ([*named, DONE], [b"".join(named) + DONE]):
        out, last, _ = play(*packets)
        assert last.done
        assert out == plain


COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "org/m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello",
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}


def test_a_whole_answer_to_a_stream_becomes_chunks() -> None:
    """With its text, its tool calls and its end."""
    out, last, wire = play(json.dumps(COMPLETION).encode(), content_type="application/json")
    delta = json.loads(out.split(b"\n\n")[0][6:])["choices"][0]
    assert (delta["delta"]["content"], delta["finish_reason"]) == ("hello", "tool_calls")
    assert delta["delta"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert (last.done, last.has_content, wire.usage) == (True, True, Usage(3, 2))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error":{"message":"m","code":429}}', RateLimited),
        (b"<html>sign in</html>", BadResponse),
        (b'{"message":{}}\n{"message":{}}\n', BadResponse),
        (b'{"id":1}', BadResponse),
    ],
)
def test_other_answers_to_a_stream_are_none(body: bytes, kind: type[ProviderError]) -> None:
    """JSON errors are read, the rest is no answer."""
    assert isinstance(play(body, content_type="application/json")[1].error, kind)


def test_sse_under_another_name_is_sse() -> None:
    """Some servers say text/plain."""
    out, last, _ = play(frame(chunk("a", finish="stop")), DONE, content_type="text/plain")
    assert last.done and b'"p/org/m"' in out


def test_a_whole_answer_is_checked_and_named() -> None:
    """Its bytes stay, but for the model."""
    body = json.dumps({k: v for k, v in COMPLETION.items() if k != "model"}, indent=2).encode()
    answer = OpenAIWire().answer(call(), ENTRY, b"\n\n" + body)
    assert json.loads(answer.body or b"") == {**COMPLETION, "model": "p/org/m"}
    assert answer.usage == Usage(3, 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"choices":null}',
        b'{"id":1}',
        b'{"error":{"message":"x"}}',
        b'{"choices":[{"error":{"message":"x","code":502},"finish_reason":"error"}]}',
    ],
)
def test_what_is_no_whole_answer(body: bytes) -> None:
    """A 200 with HTML, nothing, an error inside: retryable, never handed on."""
    with pytest.raises(ProviderError) as told:
        OpenAIWire().answer(call(), ENTRY, body)
    assert told.value.retryable


@pytest.mark.parametrize("asked", ["base64", "float", None])
@pytest.mark.parametrize("given", ["AAAAPwAAgL4=", [0.5, -0.25]])
def test_base64_exactly_when_it_was_asked_for(asked: str | None, given: object) -> None:
    """Whatever the server sends."""
    of = call(Endpoint.EMBEDDINGS, **({"encoding_format": asked} if asked else {}))
    body = json.dumps({"object": "list", "model": "m", "data": [{"index": 0, "embedding": given}]}).encode()
    got = json.loads(OpenAIWire().answer(of, ENTRY, body).body or b"")
    assert got["data"][0]["embedding"] == ("AAAAPwAAgL4=" if asked == "base64" else [0.5, -0.25])
    assert got["model"] == "p/org/m"


def test_model_lists_of_the_crowd() -> None:
    """A list, a bare list, null; OpenRouter's capabilities."""
    wire = OpenAIWire()
    assert [m.id for m in wire.listed(b'{"data":[{"id":"a","created":5},{"no":1}]}').models] == ["a"]
    assert [m.id for m in wire.listed(b'[{"id":"a"}]').models] == ["a"]
    assert wire.listed(b'{"data":null}') == ModelList()
    sizes = b'{"data":[{"id":"a","meta":{"size":5}},{"id":"b","meta":{"size":"5"}},{"id":"c","meta":[5]},{"id":"d"}]}'
    assert [m.size for m in wire.listed(sizes).models] == [5, 0, 0, 0]
    [row] = wire.listed(
        b'{"data":[{"id":"a","supported_parameters":["tools"],"architecture":{"input_modalities":["text"]}}]}'
    ).models
    assert row.capabilities == frozenset({"completion", "embedding", "tools"})


@pytest.mark.parametrize(
    ("row", "capabilities"),
    [
        ({}, None),
        ({"architecture": {"input_modalities": ["text"]}}, {"completion", "embedding", "tools", "thinking"}),
        (
            {"architecture": {"input_modalities": ["text", "image"]}},
            {"completion", "embedding", "tools", "vision", "thinking"},
        ),
        (
            {"architecture": {"input_modalities": ["text", "audio"]}, "status": {"value": "loaded"}},
            {"completion", "embedding", "tools", "audio", "thinking"},
        ),
        ({"architecture": {"input_modalities": ["text"]}, "status": {"value": "unloaded"}}, None),
        ({"supported_parameters": ["reasoning"]}, {"completion", "embedding", "vision", "thinking"}),
        (
            {"supported_parameters": ["tools", "reasoning_effort"]},
            {"completion", "embedding", "vision", "thinking", "tools"},
        ),
        ({"supported_parameters": [3], "architecture": {"input_modalities": "text"}}, None),
        ({"supported_parameters": {}, "architecture": ["text"]}, None),
    ],
)
def test_what_a_list_does_not_speak_of_is_not_denied(row: dict[str, Any], capabilities: set[str] | None) -> None:
    """Parameters say whether there are tools and thinking, modalities whether there is sight; each only that."""
    [model] = OpenAIWire().listed(json.dumps([{"id": "a", **row}]).encode()).models
    assert model.capabilities == (None if capabilities is None else frozenset(capabilities))


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([frame(chunk("a")), DONE, b"data: ", b'"error"', b"\r\n\r\n"]),
        max_size=8,
    ),
    st.booleans(),
)
def test_no_bytes_break_the_relay(parts: list[bytes], named: bool) -> None:
    """Whatever a server sends: pieces, or an error piece."""
    play(*parts, content_type="text/event-stream" if named else "x/y")


_EVENTS = st.sampled_from(
    [
        *(frame(chunk(text)) for text in ("a", "an error", '\n\ndata: {"id"', "é")),
        frame(chunk("b"), end=b"\r\n\r\n"),
        frame({**chunk("c"), "model": "another"}),
        frame(json.dumps(chunk("d"), indent=1).replace("\n", "\ndata: ").encode()),
        frame({**chunk("e"), "usage": None}),
        frame({**chunk(), "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        frame(chunk("", finish="stop")),
        b"event: x\n" + frame(chunk("f")),
        b": ping\n\n",
        b"\n",
        b"data:\n\n",
        frame({"error": {"message": "no"}}),
        DONE,
    ]
)


@given(st.lists(_EVENTS, max_size=12), st.lists(st.integers(0, 2000), max_size=4))
def test_a_relayed_stream_is_the_same_wherever_it_is_cut(events: list[bytes], cuts: list[int]) -> None:
    """Several events at once take another way than those that come in pieces."""
    whole = frame(chunk("first")) * 2 + b"".join(events)
    at = sorted(min(cut, len(whole)) for cut in cuts)
    parts = [whole[start:end] for start, end in zip([0, *at], [*at, len(whole)], strict=True) if start < end]
    out, last, wire = play(*parts)
    slow, end, reference = play(*(bytes([byte]) for byte in whole))
    assert (out, last.done, type(last.error), wire.usage) == (slow, end.done, type(end.error), reference.usage)


_MEMBERS = st.tuples(
    st.sampled_from(["id", "object", "created", "model", "choices", "usage", "error", "x\\u0061", "é", 'm"odel']),
    st.sampled_from(
        ['"a"', "1", "null", "[]", '[{"model":"x"}]', '{"model":1}', r'"\"model\": "', r'"\ud800"', '"é{"']
    ),
    st.sampled_from([":", ": ", " :", ":\n"]),
)


@given(st.lists(_MEMBERS, max_size=7), st.sampled_from([",", ", ", ",\n "]), st.sampled_from(["", " ", "\ufeff"]))
def test_the_usual_answer_is_read_as_any_other(members: list[tuple[str, str, str]], comma: str, front: str) -> None:
    """The short way finds what the long one does, or says that it is not for it."""
    body = (front + "{" + comma.join(f'"{key}"{colon}{value}' for key, value, colon in members) + "}").encode()
    quick = usual_reply(body)
    keys = [key for key, _, _ in members]
    if quick is not None and len(keys) == len(set(keys)):  # the long way refuses a key that is given twice
        values, spans = reply_object(body, "model")
        assert spans["model"] == quick[1]
        for name, value in quick[0].items():
            assert bytes(value) == bytes(values.get(name, b"null"))


def test_which_answers_are_usual() -> None:
    """In either style of white space, with its model after plain values."""
    whole = completion()
    for separators in ((",", ":"), (", ", ": ")):
        assert usual_reply(json.dumps(whole, separators=separators).encode()) is not None
    assert usual_reply(json.dumps({**whole, "model": 5}).encode()) is None
    assert usual_reply(json.dumps({"choices": [], "model": "m"}).encode()) is None


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "choices", "data", "usage", "code", "message"]), v, max_size=4)
        ),
    ).map(lambda v: json.dumps(v).encode())
)
def test_no_body_breaks_the_reader(body: bytes) -> None:
    """An answer or a provider's failure, nothing else; refusals likewise."""
    for of in (call(), call(Endpoint.EMBEDDINGS)):
        with contextlib.suppress(ProviderError):
            OpenAIWire().answer(of, ENTRY, body)
    OpenAIWire().failure(500, {}, body)


def test_the_clients_own_options_stay() -> None:
    """What it asked for is not asked again; a request that is not streamed asks for nothing."""
    asked = call(stream=True, stream_options={"include_usage": True, "x": 1})
    assert OpenAIWire().request(asked, ENTRY).body == b'{"model":"org/m",' + asked.body[1:]
    denied = call(stream=True, stream_options={"include_usage": False, "x": 1})
    assert json.loads(OpenAIWire().request(denied, ENTRY).body)["stream_options"] == {"include_usage": True, "x": 1}
    assert "stream_options" not in json.loads(OpenAIWire().request(call(), ENTRY).body)


FAILURES: dict[str, tuple[int, dict[str, str], bytes, type[ProviderError], float | None]] = {
    "OpenRouter, unknown model": (
        400,
        {},
        b'{"error":{"code":400,"message":"m","availability":{"code":"model_not_found","retryable":false}}}',
        MissingModel,
        None,
    ),
    "OpenRouter, guardrail": (
        403,
        {},
        b'{"error":{"code":403,"message":"m","metadata":{"error_type":"content_policy_violation"}}}',
        ContentBlocked,
        None,
    ),
    "OpenRouter, moderation": (
        403,
        {},
        b'{"error":{"code":403,"message":"m requires moderation"}}',
        ContentBlocked,
        None,
    ),
    "OpenRouter, credits": (402, {}, b'{"error":{"code":402,"message":"Insufficient credits"}}', PaymentRequired, None),
    "OpenRouter, rate": (
        429,
        {"retry-after": "9"},
        b'{"error":{"code":429,"message":"m","availability":{"retry_after":7}}}',
        RateLimited,
        7.0,
    ),
    "OpenRouter, overloaded": (
        503,
        {},
        b'{"error":{"code":503,"message":"m","metadata":{"error_type":"provider_overloaded"}}}',
        ServerBusy,
        None,
    ),
    "Groq, rate": (
        429,
        {},
        b'{"error":{"message":"Please try again in 5.289s.","type":"tokens","code":"rate_limit_exceeded"}}',
        RateLimited,
        5.289,
    ),
    "Groq, too large": (413, {}, b'{"error":{"message":"Request Entity Too Large"}}', RequestRejected, None),
    "Groq, flex": (498, {}, b'{"error":{"message":"m","code":"capacity_exceeded"}}', RequestRejected, None),
    "DeepSeek, balance": (402, {}, b'{"error":{"message":"Insufficient Balance"}}', PaymentRequired, None),
    "Mistral": (
        422,
        {},
        b'{"object":"error","message":{"detail":[{"msg":"Extra inputs"}]},"type":"invalid_request_error"}',
        RequestRejected,
        None,
    ),
    "vLLM, old": (
        400,
        {},
        b'{"object":"error","message":"m","type":"BadRequestError","code":400}',
        RequestRejected,
        None,
    ),
    "vLLM, unknown": (404, {}, b'{"error":{"message":"m","type":"NotFoundError","code":404}}', MissingModel, None),
    "llama.cpp, loading": (
        503,
        {},
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        ServerBusy,
        3,
    ),
    "llama.cpp, context": (
        400,
        {},
        b'{"error":{"code":400,"message":"m","type":"exceed_context_size_error","n_ctx":4096}}',
        ContextTooLong,
        None,
    ),
    "OpenAI, quota": (
        429,
        {"retry-after": "1"},
        b'{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}',
        RateLimited,
        600.0,
    ),
    "OpenAI, key": (
        401,
        {},
        b'{"error":{"message":"Incorrect API key provided: sk-...","code":"invalid_api_key"}}',
        KeyRejected,
        None,
    ),
    "OpenAI, overloaded": (503, {}, b'{"error":{"message":"m","code":"server_is_overloaded"}}', ServerBusy, None),
    "Gemini, a list": (
        400,
        {},
        b'[{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT"}}]',
        RequestRejected,
        None,
    ),
    "a CDN": (502, {}, b"<html><h1>502 Bad Gateway</h1></html>", ServerFailed, None),
    "a CDN's 520": (520, {}, b"<html>", ServerFailed, None),
    "a challenge": (403, {}, b"<!DOCTYPE html><title>Just a moment...</title>", KeyRejected, None),
    "FastAPI": (404, {}, b'{"detail":"Not Found"}', MissingModel, None),
    "nothing": (400, {}, b"", RequestRejected, None),
}


@every(FAILURES)
def test_refusals_of_the_crowd(form: str) -> None:
    """Each with its own envelope, by what it means; no page is shown."""
    status, headers, body, kind, after = FAILURES[form]
    error = OpenAIWire().failure(status, headers, body)
    assert (type(error), error.retry_after) == (kind, pytest.approx(after) if after else None)
    assert error.message and "<" not in error.message
    assert error.provider_status == (404 if kind is MissingModel else status)
    assert kind is not MissingModel or error.status == 404


def test_a_refusal_keeps_the_providers_words() -> None:
    """Message, type, code and param of whoever said no."""
    error = OpenAIWire().failure(
        422, {}, b'{"error":{"message":"too hot","type":"validation","param":"temperature","code":"too_hot"}}'
    )
    assert (error.status, error.message, error.type, error.param, error.code) == (
        422,
        "too hot",
        "validation",
        "temperature",
        "too_hot",
    )


def test_a_chunk_without_a_model_gets_one() -> None:
    """Every chunk names who answered; what is no chunk stays as it is."""
    nameless = {k: v for k, v in chunk("a", finish="stop").items() if k != "model"}
    out, _, _ = play(frame(nameless), frame({"ping": 1}), DONE)
    first, second, _ = out.split(b"\n\n")
    assert json.loads(first[6:]) == {**nameless, "model": "p/org/m"}
    assert second == frame({"ping": 1})[:-2]


def test_a_model_that_is_a_number_spoils_no_other() -> None:
    """One that begins like another."""
    parts = [b'data: {"model":%d,"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n' % n for n in (1, 12, 1)]
    out, _, _ = play(*parts, DONE)
    assert [json.loads(part[6:])["model"] for part in out.split(b"\n\n")[:-1]] == ["p/org/m"] * 3


def test_what_comes_behind_the_end_is_not_read() -> None:
    """[DONE] is the end, in one read with it or not."""
    out, last, _ = play(frame(chunk("a")) + DONE + frame(chunk("b")))
    assert last.done and b'"b"' not in out
    assert play(frame(chunk("a")), b"data: [DONE]\r\n\r\n" + frame({"error": "x"}))[1].done


@pytest.mark.parametrize(
    "body",
    [b'{"error":{"message":"slow down","code":429}}\n', b'\n{"error":"slow","code":429}', b"<html>\n\n<p>sign in\n\n"],
)
def test_a_body_that_only_calls_itself_an_event_stream_is_none(body: bytes) -> None:
    """SDKs would end silently: not an empty answer, but a failure, before and after the first words."""
    for start in (b"", frame(chunk("a"))):
        _, last, _ = play(start + body)
        assert last.error is not None and last.error.retryable and not last.done


@pytest.mark.parametrize("data", [b'"it broke"', b"[]", b"3", b"", b"null"])
def test_an_error_event_is_one_whatever_it_holds(data: bytes) -> None:
    """Also where it holds no object."""
    _, last, _ = play(frame(chunk("a")), b"event: error\n" + frame(data))
    assert isinstance(last.error, ServerFailed)


def test_names_of_errors_that_are_null_are_none() -> None:
    """In every chunk, by servers that fill in all their fields."""
    odd: dict[str, Any] = {"error": None, "error_type": None, "error_message": None, "x_groq": {"error": None}}
    _, last, _ = play(frame(chunk("a", **odd)), frame(chunk(None, finish="stop", **odd)), DONE)
    assert last.done


@pytest.mark.parametrize("index", [None, [], {}, "0", 1.5, True])
def test_an_odd_index_breaks_nothing(index: object) -> None:
    """It is a choice that ended all the same."""
    odd = {**chunk(), "choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    assert play(frame(odd))[1].done


@each_with_each(["0", "-1", "null", '"2"', "1.0", "true", "9" * 5000, "[]"], [True, False])
def test_an_odd_number_of_choices_breaks_nothing(n: str, cut: bool) -> None:
    """The client's ``n`` is the provider's to refuse; a cut stream is never taken for a whole one."""
    raw = b'{"messages":[],"stream":true,"n":' + n.encode() + b"}"
    of = Call(Endpoint.CHAT, read_summary(raw, ("messages", list)), raw, "id-1")
    _, last, _ = play(frame(chunk("a", finish=None if cut else "stop")), of=of)
    assert last.done is not cut


def test_words_and_an_error_in_one_read() -> None:
    """The words leave first; the piece says both."""
    batch = translator().feed(frame(chunk("a")) + frame({"error": {"message": "m", "code": 502}}))
    assert (batch.has_content, batch.frames) == (True, renamed(frame(chunk("a"))))
    assert isinstance(batch.error, ServerFailed)


def test_an_endless_event_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is bounded, in a stream and in a body."""
    monkeypatch.setattr("manallm_proxy.openai.sse.FRAME_LIMIT", 100)
    monkeypatch.setattr("manallm_proxy.providers.sniffer.BODY_LIMIT", 100)
    for content_type in ("text/event-stream", "application/json"):
        assert isinstance(play(b"x" * 200, content_type=content_type)[1].error, BadResponse)


LEGACY = call(Endpoint.COMPLETIONS, stream=True)


def test_legacy_completions_are_streams_too() -> None:
    """Text instead of a delta; an empty one says nothing."""
    wire = translator(LEGACY)
    start = {"object": "text_completion", "model": "org/m"}
    silent = wire.feed(frame({**start, "choices": [{"index": 0, "text": "", "finish_reason": None}]}))
    words = wire.feed(frame({**start, "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}))
    assert (silent.has_content, words.has_content, wire.close().done) == (False, True, True)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "hello"}, "hello"),
        ({"content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}, "hello"),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "hello"}, 3]}, "hello"),
        ({"content": "hello", "tool_calls": 5}, "hello"),
        ({"content": "hello", "tool_calls": [3, {"function": 4}]}, "hello"),
        ({"content": None}, ""),
        ({"content": 7}, ""),
        (None, ""),
    ],
)
def test_odd_whole_answers_to_a_stream(message: object, text: str) -> None:
    """Their text is found where there is any, and nothing of ours is written into it."""
    body = {**COMPLETION, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    out, last, _ = play(json.dumps(body).encode(), content_type="application/json")
    assert last.done
    delta = json.loads(out.split(b"\n\n")[0][6:])["choices"][0]["delta"]
    assert (delta["content"], "tool_calls" in delta) == (text, False)


def test_a_whole_answer_to_a_stream_brings_usage_to_who_asked() -> None:
    """In a last chunk without choices, as a stream would."""
    of = call(stream=True, stream_options={"include_usage": True})
    out, _, _ = play(json.dumps(COMPLETION).encode(), of=of, content_type="application/json")
    last = json.loads(out.split(b"\n\n")[-2][6:])
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 3)


def test_no_body_to_a_stream_is_an_empty_answer() -> None:
    """As an empty stream is: it commits."""
    for body in (b"", b"\n\n"):
        assert play(body, content_type="application/json")[1].done


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "m", "code": 429}, RateLimited),
        ({"message": "m", "code": "429"}, RateLimited),
        ({"message": "m", "code": "server_error"}, ServerFailed),
        ({"message": "m", "code": "context_length_exceeded"}, ContextTooLong),
        ("m", ServerFailed),
        (7, ServerFailed),
    ],
)
def test_an_error_inside_a_whole_answer_is_classed(error: object, kind: type[ProviderError]) -> None:
    """At its top or in its first choice, by its code."""
    with pytest.raises(kind):
        OpenAIWire().answer(call(), ENTRY, json.dumps({**COMPLETION, "error": error}).encode())
    with pytest.raises(kind):
        OpenAIWire().answer(call(), ENTRY, json.dumps({"choices": [{"error": error}]}).encode())
    assert OpenAIWire().answer(call(), ENTRY, json.dumps({**COMPLETION, "error": None}).encode()).usage == Usage(3, 2)


@pytest.mark.parametrize("number", [b"9" * 5000, b"1e999"])
@pytest.mark.parametrize("place", [b'{"choices":[],"usage":{"x":%s}}', b'{"error":%s}', b'{"choices":[{"error":%s}]}'])
def test_a_number_that_nobody_can_read_is_a_bad_answer(place: bytes, number: bytes) -> None:
    """Not a bug of ours."""
    with pytest.raises(BadResponse):
        OpenAIWire().answer(call(), ENTRY, place % number)
    assert isinstance(play(place % number, content_type="application/json")[1].error, BadResponse)


@each_with_each([[1e300], [-1e39], ["a"], [None], None, 7, {}, "AAAA", "not base64!"], ["base64", "float"])
def test_what_is_no_vector(vector: object, asked: str) -> None:
    """A bad answer where it has to be converted, or is none at all; else its numbers are the client's to read."""
    of = call(Endpoint.EMBEDDINGS, encoding_format=asked)
    body = json.dumps({"data": [{"index": 0, "embedding": vector}]}).encode()
    if (asked == "base64") is isinstance(vector, str) and isinstance(vector, str | list):
        assert json.loads(OpenAIWire().answer(of, ENTRY, body).body or b"")["data"] == json.loads(body)["data"]
    else:
        with pytest.raises(BadResponse):
            OpenAIWire().answer(of, ENTRY, body)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.text(max_size=3) | st.just("stop"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
CHUNKS = st.fixed_dictionaries(
    {},
    optional={
        "choices": ODD
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={"index": ODD, "delta": ODD, "finish_reason": ODD, "error": ODD, "text": ODD, "message": ODD},
            ),
            max_size=2,
        ),
        "usage": ODD,
        "x_groq": ODD | st.fixed_dictionaries({}, optional={"usage": ODD, "error": ODD}),
        "error": ODD,
        "error_type": ODD,
        "model": ODD,
    },
)


@given(st.lists(CHUNKS, max_size=4), st.booleans())
def test_no_chunk_breaks_the_relay(chunks: list[dict[str, Any]], whole: bool) -> None:
    """Every field of every type: pieces, or an error piece; what was relayed is JSON and names the target."""
    if whole:
        for each in chunks:
            play(json.dumps(each).encode(), content_type="application/json")
        return
    out, last, _ = play(*(frame(each) for each in chunks), DONE)
    assert last.done or last.error is not None
    for line in out.split(b"\n\n")[:-1]:
        sent = json.loads(line[6:])
        assert sent.get("model", "p/org/m") == "p/org/m"


@given(st.lists(CHUNKS | st.just({"model": "m", "choices": [{"delta": {"content": "x"}}]}), max_size=6))
def test_events_one_by_one_or_all_at_once(chunks: list[dict[str, Any]]) -> None:
    """The quick way that a lone event takes gives the bytes, the end and the usage of the long one."""
    frames = [frame({"model": "m", "choices": [{"delta": {"content": "x"}}]}), *map(frame, chunks), DONE]
    assert _outcome(*frames) == _outcome(b"".join(frames))


def _outcome(*packets: bytes) -> tuple[bytes, str, object]:
    out, last, translator = play(*packets)
    return out, str(last.error), translator.usage


QUIET = [
    b"data:\n\n",
    b"data: \n\n",
    b"data: null\n\n",
    b'data: "ping"\n\n',
    b"data: 7\n\n",
    b"data: []\n\n",
    b"data: {}\n\n",
    b"event: ping\n\n",
    b"event: ping\ndata: {}\n\n",
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b": comment\n\n",
    b":\n\n",
    b"retry: 3000\n\n",
    b"id: 7\n\n",
]


@pytest.mark.parametrize("quiet", QUIET)
def test_a_frame_that_says_nothing_is_no_failure(quiet: bytes) -> None:
    """Before the first word, between words and after the last: dropped, since SDKs would fail on it."""
    words = [frame(chunk("a")), frame(chunk("b")), frame(chunk(None, finish="stop"))]
    plain, _, _ = play(*words, DONE)
    out, last, _ = play(quiet, words[0], quiet, words[1], quiet, words[2], quiet, DONE)
    assert (out, last.done, last.error) == (plain, True, None)
    assert not translator().feed(quiet).has_content


@pytest.mark.parametrize("quiet", QUIET)
def test_nor_is_it_one_for_a_door_that_translates(quiet: bytes) -> None:
    """Whole, and cut within the frame."""
    words = [frame(chunk("a")), frame(chunk("b")), frame(chunk(None, finish="stop"))]
    plain, _ = read_deltas(*words, DONE)
    for cut in (0, len(quiet) // 2):
        first, rest = quiet[:cut], quiet[cut:]
        got, last = read_deltas(first, rest, words[0], first, rest, words[1], first, rest, words[2], first, rest, DONE)
        assert (got, last.done, last.error) == (plain, True, None)


@pytest.mark.parametrize(
    "nothing",
    [{}, "", False, None, {"message": "", "type": "", "code": None}, {"code": 0, "metadata": {}, "details": []}],
)
def test_an_error_that_says_nothing_is_none(nothing: object) -> None:
    """Some servers send the key with every good answer, streamed or whole."""
    out, last, _ = play(frame({**chunk("a"), "error": nothing}), frame(chunk(None, finish="stop")), DONE)
    assert last.done and b'"a"' in out
    body = json.dumps({**COMPLETION, "error": nothing}).encode()
    assert json.loads(OpenAIWire().answer(call(), ENTRY, body).body or b"")["choices"] == COMPLETION["choices"]


@pytest.mark.parametrize(
    "choices", [[], [{}], [{"index": 0, "message": {"role": "assistant"}, "finish_reason": "error"}]]
)
def test_a_whole_answer_without_an_answer_is_a_failure(choices: list[Any]) -> None:
    """No choices, or an end in error with nothing said; a choice that is merely odd is the client's to read."""
    body = json.dumps({**COMPLETION, "choices": choices}).encode()
    if choices == [{}]:
        assert OpenAIWire().answer(call(), ENTRY, body).body
        return
    with pytest.raises(BadResponse):
        OpenAIWire().answer(call(), ENTRY, body)


@pytest.mark.parametrize(
    ("asked", "given", "fails"),
    [
        ("a", 0, True),
        ("a", 1, False),
        (["a", "b"], 1, True),
        (["a", "b"], 2, False),
        ([1, 2], 1, False),
        ([[1], [2]], 1, True),
    ],
)
def test_fewer_vectors_than_inputs_are_a_failure(asked: object, given: int, fails: bool) -> None:
    """A list of token ids is one input, a list of lists several."""
    raw = json.dumps({"input": asked, "model": "x"}).encode()
    of = Call(Endpoint.EMBEDDINGS, read_summary(raw, ("input", (str, list))), raw, "id-1")
    body = json.dumps({"data": [{"index": n, "embedding": [0.5]} for n in range(given)]}).encode()
    if fails:
        with pytest.raises(BadResponse):
            OpenAIWire().answer(of, ENTRY, body)
    else:
        assert OpenAIWire().answer(of, ENTRY, body).dimensions == 1


def test_half_of_a_surrogate_pair_keeps_its_bytes() -> None:
    """In any chunk: the model is replaced there too, and the end is seen."""
    half = frame(chunk("X")).replace(b"X", b"\\ud83d")
    end = frame({**chunk(None, finish="stop"), "note": "X"}).replace(b"X", b"\\udfff")
    out, last, _ = play(half, half, end)
    assert (out.count(b"\\ud83d"), out.count(b"p/org/m"), last.done) == (2, 3, True)


@pytest.mark.parametrize("extra", [{"choices": None}, {}])
def test_the_usage_chunk_is_taken_out_in_any_form(extra: dict[str, Any]) -> None:
    """Without choices, or with null in their place."""
    last = {"id": "1", "model": "org/m", "usage": USAGE, **extra}
    out, _, wire = play(frame(chunk("a", finish="stop")), frame(last), DONE)
    assert b'"usage"' not in out
    assert wire.usage == Usage(3, 2)


def test_a_later_part_of_the_usage_wipes_nothing() -> None:
    """Details alone, after the full counters."""
    more = {**chunk(), "choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}}
    _, _, wire = play(frame(chunk("a", finish="stop", usage=USAGE)), frame(more), DONE)
    assert wire.usage == Usage(3, 2, cached=2)


def test_zero_counters_with_every_chunk_are_taken_out() -> None:
    """Ollama's ``/v1/completions``; the last chunk's counters stay."""
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    out, _, wire = play(frame(chunk("a", usage=zero)), frame(chunk(None, finish="stop", usage=USAGE)), DONE)
    assert out.count(b'"usage"') == 1
    assert wire.usage == Usage(3, 2)


@pytest.mark.parametrize(
    ("asked", "ends"),
    [
        ({"prompt": ["a", "b"]}, False),
        ({"prompt": ["a"]}, True),
        ({"prompt": [1, 2]}, True),
        ({"prompt": "a", "n": 2}, False),
    ],
)
def test_a_stream_is_complete_when_every_prompt_has_ended(asked: dict[str, Any], ends: bool) -> None:
    """One finish reason; without [DONE], only the prompts tell how many there must be."""
    raw = json.dumps({"stream": True, **asked}).encode()
    of = Call(Endpoint.COMPLETIONS, read_summary(raw, ("prompt", (str, list))), raw, "id-1")
    end = {
        "object": "text_completion",
        "model": "org/m",
        "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}],
    }
    assert play(frame(end), of=of)[1].done is ends


@pytest.mark.parametrize("rest", [b"d", b"dat", b"data", b"data:", b"data: "])
def test_an_event_that_is_cut_before_its_data_is_no_empty_answer(rest: bytes) -> None:
    """An empty stream commits; a cut one is a failure, also after comments. A finished answer stays one."""
    for front in (b"", b": wait\n\n"):
        assert isinstance(play(front + rest)[1].error, Disconnected)
        assert isinstance(read_deltas(front + rest)[1].error, Disconnected)
    assert play(b": wait\n\n")[1].done
    assert play(frame(chunk("a", finish="stop")) + b"dat")[1].done


def read_deltas(*parts: bytes) -> tuple[list[Delta], StreamBatch]:
    """What a door that speaks another format gets of the same stream."""
    wire = OpenAIWire().translator(evolve(STREAM, relays=False), ENTRY, "text/event-stream")
    deltas: list[Delta] = []
    for part in parts:
        batch = wire.feed(part)
        deltas += batch.deltas
        if batch.done or batch.error:
            return deltas, batch
    batch = wire.close()
    return [*deltas, *batch.deltas], batch


def test_arguments_that_are_an_object_already() -> None:
    """No call loses its arguments by a server's slip."""
    call = {"id": "c1", "function": {"name": "f", "arguments": {"a": [1, "\u00e9"]}}}
    row = frame({**chunk(), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    got, _ = read_deltas(row, frame(chunk(None, finish="tool_calls")), DONE)
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    for delta in (got[0], *whole_deltas([choice])):
        assert [part.arguments for part in delta.tool_calls] == ['{"a":[1,"\u00e9"]}']


@pytest.mark.parametrize(
    "row",
    [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": "https://x/y.png"},
        {"url": "https://x/y.png"},
        "https://x/y.png",
    ],
)
def test_a_picture_in_every_form(row: object) -> None:
    """OpenRouter's, and what others make of it; one that cannot be read spoils no other."""
    images = [None, {"image_url": {}}, 3, row]
    got, last = read_deltas(
        frame({**chunk(), "choices": [{"index": 0, "delta": {"images": images}}]}),
        frame(chunk(None, finish="stop")),
        DONE,
    )
    choice = {"index": 0, "message": {"role": "assistant", "images": images}, "finish_reason": "stop"}
    assert last.done
    for delta in (got[0], *whole_deltas([choice])):
        assert delta.images == ("https://x/y.png",)


def test_a_stream_is_read_into_deltas() -> None:
    """Words, thoughts, parts of a tool call, and the end; cut at every offset it is the same."""
    call_part = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a":1}'}}
    deltas = [
        {"role": "assistant"},
        {"reasoning": "hm"},
        {"content": "hi"},
        {"tool_calls": [call_part]},
        {"tool_calls": [more]},
    ]
    rows = [frame({**chunk(), "choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    whole = b"".join([*rows, frame(chunk(None, finish="tool_calls")), DONE])
    got, last = read_deltas(whole)
    assert last.done
    assert [d.reasoning for d in got if d.reasoning] == ["hm"]
    assert "".join(d.content for d in got) == "hi"
    parts = [call for d in got for call in d.tool_calls]
    assert [(part.id, part.name, part.arguments, part.index) for part in parts] == [
        ("c1", "f", "", 0),
        ("", "", '{"a":1}', 0),
    ]
    assert got[-1].finish == "tool_calls"
    for at in range(0, len(whole), 7):
        assert read_deltas(whole[:at], whole[at:])[0] == got


@pytest.mark.parametrize("model", ["m", "another"])
def test_an_event_of_megabytes_is_renamed_as_a_short_one(model: str) -> None:
    """The first of them, and one that begins like it or not."""
    wire, long = translator(), "x" * (LARGE_BYTES + 9)
    for name, text in (("m", long), (model, long), (model, "hi")):
        sent = json.loads(frame({"choices": [{"index": 0, "delta": {"content": text}}], "model": name})[6:])
        told = wire.feed(b"data: " + json.dumps(sent).encode() + b"\n\n").frames
        assert json.loads(told.removeprefix(b"data: ")) == {**sent, "model": str(ENTRY.target)}
