"""The dialect of the crowd: recorded forms of wire.md C, bytes in and bytes out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.chain import Entry, Target
from manallm_proxy.errors import BadResponse, ContextTooLong, Disconnected, ProviderError, RateLimited, ServerFailed
from manallm_proxy.schema import Head, Usage
from manallm_proxy.upstream import Call, Endpoint, Piece
from manallm_proxy.wires import Translator
from manallm_proxy.wires.openai import OpenAIWire

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
    return Call(endpoint, Head.read(raw, (key, kinds)), raw, "id-1")


STREAM = call(stream=True)


def frame(data: bytes | dict[str, Any], end: bytes = b"\n\n") -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + end


def chunk(content: str | None = "hi", *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "org/m", "choices": [choice], **more}


def translator(of: Call = STREAM, content_type: str = "text/event-stream; charset=utf-8") -> Translator:
    return OpenAIWire().translator(of, ENTRY, content_type)


def play(*parts: bytes, of: Call = STREAM, content_type: str = "text/event-stream") -> tuple[bytes, Piece, Translator]:
    """All frames that came out, the last piece, and the translator; closed where it did not end before."""
    wire = translator(of, content_type)
    out = b""
    for part in parts:
        piece = wire.feed(part)
        out += piece.frames
        if piece.done or piece.error:
            return out, piece, wire
    piece = wire.close()
    return out + piece.frames, piece, wire


def test_a_request_keeps_its_bytes() -> None:
    """But for the model, and for the usage that only we ask for."""
    sent = Call(
        Endpoint.CHAT, Head.read(raw := b'{ "model" : "x",\n"messages":[ ],"odd":1.50}', ("messages", list)), raw, "1"
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
    assert wire.asks_usage is False
    asked = call(stream=True, stream_options={"include_usage": True})
    assert wire.reshape(asked, ENTRY, 422, b"stream_options") is None
    assert wire.reshape(STREAM, ENTRY, 500, b"stream_options") is None


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
    "names in the text": (
        [frame(chunk('"model":"org/m" and "error": and "usage":{')), frame(chunk(None, finish="stop"))],
        '"model":"org/m" and "error": and "usage":{',
    ),
    "another id each": (
        [frame({**chunk("he"), "id": "1"}), frame({**chunk("llo"), "id": "2"}), frame(chunk(None, finish="stop"))],
        "hello",
    ),
}


@pytest.mark.parametrize("form", RECORDED)
def test_recorded_streams_are_relayed(form: str) -> None:
    """The model in every chunk, all else as it came, cut at every offset."""
    parts, text = RECORDED[form]
    stream = b"".join(parts) + DONE
    whole, last, _ = play(stream)
    assert last.done
    assert whole.replace(b'"model": "p/org/m"', b'"model": "org/m"', -1) in (b"".join(parts), stream)
    chunks = [json.loads(line[6:]) for line in whole.replace(b"\r", b"").splitlines() if line.startswith(b"data: {")]
    assert {c["model"] for c in chunks} == {"p/org/m"}
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == text
    for cut in range(0, len(stream), 3):
        assert play(stream[:cut], stream[cut:])[0] == whole


def test_the_first_piece_that_says_something_is_marked_once() -> None:
    """Comments, a role, empty content and null do not commit; content, reasoning, tool calls and an end do."""
    wire = translator()
    silent = [
        b": x\n\n",
        frame(chunk("")),
        frame({**chunk(), "choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}),
        frame(b"{}"),
    ]
    assert [wire.feed(part).says for part in silent] == [False] * 4
    assert [wire.feed(frame(chunk("a"))).says, wire.feed(frame(chunk("b"))).says] == [True, False]
    for delta in ({"reasoning_content": "x"}, {"reasoning": "x"}, {"tool_calls": [{"index": 0}]}, {"refusal": "x"}):
        assert translator().feed(frame({"choices": [{"index": 0, "delta": delta}]})).says
    assert translator().feed(frame(chunk(None, finish="stop"))).says


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
    """OpenRouter's and Groq's last chunks are the provider's own words."""
    out, _, wire = play(frame(chunk("a", usage=None)), frame(chunk("", finish="stop", usage=USAGE)), DONE)
    assert out.count(b'"usage"') == 2
    assert wire.usage == Usage(3, 2)
    _, _, wire = play(frame(chunk("a", finish="stop", x_groq={"id": "r", "usage": USAGE})), DONE)
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


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("form", ERRORS)
def test_every_form_of_error_is_seen(form: str, late: bool) -> None:
    """First or in the middle; nothing of it is relayed."""
    data, kind = ERRORS[form]
    start = frame(chunk("a")) if late else b""
    out, last, _ = play(start + data)
    assert isinstance(last.error, kind)
    assert out == (start.replace(b'"org/m"', b'"p/org/m"'))


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
    assert isinstance(play(frame(b"3"))[1].error, BadResponse)
    out, last, _ = play(frame(chunk("a")), frame(b"{broken"), DONE)
    assert last.done and b"{broken" in out


def test_several_data_lines_become_one() -> None:
    """JSON breaks lines only where a space would do."""
    text = json.dumps(chunk("a", finish="stop"), indent=1).encode()
    out, last, _ = play(b"".join(b"data: " + line + b"\n" for line in text.split(b"\n")) + b"\n", DONE)
    assert last.done
    assert json.loads(out[6:])["model"] == "p/org/m"


def test_an_id_forbids_comments() -> None:
    """The Python SDK would dispatch an empty event (wire.md A.4)."""
    wire = translator()
    wire.feed(frame(chunk("a")))
    assert wire.commentable
    wire.feed(b"id: 7\n" + frame(chunk("b")))
    assert not wire.commentable


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
    assert (last.done, last.says, wire.usage) == (True, True, Usage(3, 2))


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
    assert json.loads(answer.body) == {**COMPLETION, "model": "p/org/m"}
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
    got = json.loads(OpenAIWire().answer(of, ENTRY, body).body)
    assert got["data"][0]["embedding"] == ("AAAAPwAAgL4=" if asked == "base64" else [0.5, -0.25])
    assert got["model"] == "p/org/m"


def test_model_lists_of_the_crowd() -> None:
    """A list, a bare list, null; OpenRouter's capabilities; nonsense is no list."""
    wire = OpenAIWire()
    assert [m.id for m in wire.listed(b'{"data":[{"id":"a","created":5},{"no":1}]}')] == ["a"]
    assert [m.id for m in wire.listed(b'[{"id":"a"}]')] == ["a"]
    assert wire.listed(b'{"data":null}') == ()
    [row] = wire.listed(
        b'{"data":[{"id":"a","supported_parameters":["tools"],"architecture":{"input_modalities":["text"]}}]}'
    )
    assert row.capabilities == frozenset({"completion", "embedding", "tools"})
    with pytest.raises(BadResponse):
        wire.listed(b"<html>")


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
