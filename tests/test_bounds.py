"""What a request or an answer may hold: counted right whatever its shape, and refused in words that help."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manallm_proxy.contract.answers import AnswerLimits
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.openai_chat import ChatDoor
from manallm_proxy.openai import bounds, character_counts, json_structure
from manallm_proxy.openai.bounds import count_by_characters, count_structure
from manallm_proxy.openai.json_structure import TooMuch
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.request_fields import MOST_TEXTS, decoded
from manallm_proxy.providers.answer_bounds import refuse_too_much
from manallm_proxy.providers.native.wire import NativeWire
from manallm_proxy.providers.openai import stream
from manallm_proxy.providers.openai.deltas import deltas_of
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests.examples import examples
from tests.proxy import everything, openai, proxy, settings
from tests.servers import ollama_server
from tests.upstreams import DONE, Connection, Seen, answers, completion, each, upstream

TEXTS = st.text(st.sampled_from('ab"\\\\[]{}:,é\\n'), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers(0, 99) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)


class Counted:
    """A JSON value, counted in the plain way. ``elements``: a comma of an empty list is none; keys and texts twice."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.keys = len(value)
        rows = [each for key in value for each in (value[key] if isinstance(value[key], list) else ())]
        self.messages = sum(isinstance(row, dict) for row in rows)
        self.parts = self.commas = self.keys_and_texts = self.depth = 0
        self._add(value, 1)
        self.elements = self.parts + self.commas + self.keys_and_texts

    def _add(self, value: Any, level: int) -> None:
        if isinstance(value, dict | list):
            self.parts += 1
            self.commas += max(0, len(value) - 1)
            self.depth = max(self.depth, level)
            self.keys_and_texts += 2 * len(value) if isinstance(value, dict) else 0
            for each in value.values() if isinstance(value, dict) else value:
                self._add(each, level + 1)
        self.keys_and_texts += isinstance(value, str)


BOUNDS = ("keys", "messages", "parts", "elements", "depth")


class Limits:
    """Each bound far away, but for one."""

    keys = messages = parts = elements = depth = 10**6

    def __init__(self, key: str, bound: int) -> None:
        setattr(self, key, bound)


@given(st.dictionaries(TEXTS, VALUES, max_size=6), st.sampled_from(BOUNDS), st.integers(3, 40), st.booleans())
@hypothesis_settings(max_examples=examples(60))
@example({"\\": ['"', {"a": [[]]}]}, "depth", 5, True)
def test_a_bound_holds_exactly(value: dict[str, Any], key: str, size: int, spaced: bool) -> None:
    """As many pass, one more does not, and the refusal names the key: whatever the shape, wherever a slice ends."""
    counted = getattr(Counted(value), key)
    body = json.dumps(value, separators=None if spaced else (",", ":")).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_structure, "_SLICE", size)
        patch.setattr(character_counts, "_SLICE", size)
        count_structure(body, Limits(key, counted), "limits")
        if counted > 0:
            with pytest.raises(TooMuch, match=rf"\(limits\.{key}\)"):
                count_structure(body, Limits(key, counted - 1), "limits")


def nested(chosen: random.Random) -> dict[str, Any]:
    """An object up to 40 levels deep, with few others beside each level, and text before or behind the deepest."""
    few = [[], "]", "[{", "}}", {"[": 1}, [[]], "a" * 20]
    value: Any = "\\"
    for _ in range(chosen.randrange(40)):
        before, behind = (chosen.choices(few, k=chosen.choice((0,) * 20 + (1, 2))) for _ in range(2))
        if chosen.random() < 0.5:
            value = [*before, value, *behind]
        else:
            value = {**dict(zip("ab", before, strict=False)), "x": value, **dict(zip("yz", behind, strict=False))}
    text = ["", "a" * 50, "a" * 400, "[" * 9, "]" * 9]
    return {"a": chosen.choice(text), "messages": value, "z": chosen.choice(text)}


@given(st.randoms(use_true_random=False), st.sampled_from([0, 5, 100]), st.integers(1, 9))
@hypothesis_settings(max_examples=examples(100))
def test_numbers_of_brackets_pass_nothing_that_is_too_deep(chosen: random.Random, more: int, size: int) -> None:
    """Wherever the body is cut, and whatever its strings hold; what counts as few is no less than there is."""
    value = nested(chosen)
    counted = Counted(value)
    body = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "_NEAREST", 1)
        patch.setattr(character_counts, "_SLICE", size)
        patch.setattr(character_counts, "_FEW", chosen.choice((0, 3)))
        for depth in range(1, counted.depth + 3):
            limits = Limits("depth", depth)
            limits.parts, limits.keys = counted.parts + more, 1
            opened, sure = count_by_characters(body, limits, keys=False)
            if sure:
                assert counted.depth <= depth
                assert counted.parts <= opened <= limits.parts


def test_the_usual_request_of_an_agent_needs_no_walk() -> None:
    """A dozen tools and forty turns open more brackets than may be nested, and yet are known not to be."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in "abcdefghij"}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}] * 12
    for first in ("messages", "tools"):
        fields: dict[str, Any] = {first: [], "messages": [{"role": "user", "content": "x{ " * 2}] * 80, "tools": tools}
        body = json.dumps(fields).encode()
        assert sum(map(body.count, (b"{", b"["))) > AnswerLimits().depth
        assert count_by_characters(body, AnswerLimits())[1]


def test_what_does_not_close_is_refused_by_its_decoder() -> None:
    """Brackets that only open are no JSON, however deep they seem to go."""
    body = b'{"model":"x","x":"%b","messages":%b' % (b"x" * 20_000, b"[" * 10_000)
    assert count_by_characters(body, AnswerLimits())[1]
    with pytest.raises(InvalidRequest, match=r"nested too deeply|not valid JSON"):
        read_summary(body, ("messages", list))
    with pytest.raises(InvalidRequest, match=r"nested too deeply|not valid JSON"):
        decoded(body)


def test_keys_of_a_body_that_is_split_are_counted_before_they_are_placed() -> None:
    """As many pass; one more does not, in a body of which nobody has counted the colons."""
    for number, refused in ((1000, False), (1001, True)):
        body = json.dumps({"messages": [], **{f"k{n}": n for n in range(number - 1)}}).encode()
        assert count_by_characters(body, AnswerLimits(), keys=False)[1]
        assert count_by_characters(body, AnswerLimits())[1] is not refused
        if refused:
            with pytest.raises(InvalidRequest, match=r"more than 1000 keys at its top \(limits\.keys\)"):
                ChatDoor().read(body, Client("r"))
        else:
            ChatDoor().read(body, Client("r"))


def test_counting_ends_at_the_bound() -> None:
    """A hundred megabytes cost what the bound costs, since no slice after it is looked at."""
    seen: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        structure = json_structure.structure_of

        def counted(body: bytes) -> Iterator[tuple[bytes, int]]:
            for each, quotes in structure(body):
                seen.append(each)
                yield each, quotes

        patch.setattr(bounds, "structure_of", counted)
        with pytest.raises(BadResponse, match=r"its answer has more than 200000 objects and lists \(answers\.parts\)"):
            refuse_too_much(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}", AnswerLimits())
    assert sum(map(len, seen)) < 700_000


SMALL = {"keys": 12, "messages": 5, "parts": 40, "elements": 60, "depth": 8, "body": 4096}
TOO_MUCH: dict[str, Any] = {
    "keys": {f"k{n}": 1 for n in range(13)},
    "messages": {"x": [{}] * 6},
    "parts": {"x": [[]] * 41},
    "elements": {"x": [1] * 70},
    "depth": {"x": [[[[[[[[[]]]]]]]]]},
    "body": {"x": "y" * 4096},
}
DOORS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": []},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/messages": {"messages": [], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": []},
    "/v1/responses": {"input": "x"},
    "/v1/audio/speech": {"input": "x"},
    "/v1/images/generations": {"prompt": "x"},
    "/v1/rerank": {"query": "x"},
    "/v1/moderations": {"input": "x"},
    "/api/chat": {"messages": []},
    "/api/generate": {"prompt": "x"},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
    "/api/show": {},
}


async def test_every_door_says_which_bound(tmp_path: Path) -> None:
    """400 or 413 with the bound and its key, in the door's shape, before any provider is asked."""
    async with upstream(each(answers)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits=SMALL), tmp_path) as p:
            for path, asked in DOORS.items():
                for key, extra in TOO_MUCH.items():
                    status, body, _ = await p.post(path, {"model": "gpu/m", **asked, **extra})
                    error = body["error"]
                    message = error if path.startswith("/api/") else error["message"]
                    assert status == (413 if key == "body" else 400), (path, key, body)
                    assert f"limits.{key})" in message and str(SMALL[key]) in message, (path, key, message)
                    assert (body.get("type") == "error") is path.startswith("/v1/messages")
            assert gpu.posts == []


ANSWERS = {"text": 300_000, "keys": 30, "parts": 1000, "elements": 20_000, "depth": 12}
ODD: dict[str, Any] = {
    "text": {"user": "x" * 300_000},
    "keys": {f"k{n}": "x" * 9000 for n in range(32)},
    "parts": {"x": [[]] * 10_000},
    "elements": {"x": [1] * 25_000},
    "depth": {"x": [[[[[[[[[[[[[]]]]]]]]]]]]], "y": [1] * 9000},
}


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("key", ODD)
async def test_an_answer_over_a_bound_is_its_providers_failure(tmp_path: Path, key: str, kind: str) -> None:
    """The next target serves; attempts and log name the key that raises the bound."""

    async def much(connection: Connection, seen: Seen) -> None:
        message = {"role": "assistant", "content": "Hello"}
        ours = completion() if kind == "openai" else {"message": message, "done": True}
        await connection.reply({**ours, **ODD[key]})

    async with upstream(each(much)) as odd, upstream(each(answers)) as well:
        first = openai(odd.url) if kind == "openai" else {"kind": "ollama", "base_url": odd.url}
        config = settings({"odd": first, "well": openai(well.url)}, answers=ANSWERS)
        async with proxy(config, tmp_path) as p:
            status, body, headers = await p.chat()
            assert (status, headers["x-mana-llm-resolved"]) == (200, "well/m")
            status, body, _ = await p.chat(model="odd/m")
        assert status == 503
        assert f"answers.{key}" in body["error"]["message"]
        assert f"(answers.{key})" in body["error"]["attempts"][0]["detail"]
        assert f"(answers.{key})" in p.log.getvalue()


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_a_native_answer_is_a_text_too(tmp_path: Path, path: str) -> None:
    """Of a provider that speaks the client's own dialect."""

    async def much(connection: Connection, seen: Seen) -> None:
        await connection.reply({"content": [], "output": [], "status": "completed", "x": "y" * 300_000})

    async with upstream(each(much)) as odd:
        first = openai(odd.url, speaks=["chat", path.rpartition("/")[2]])
        async with proxy(settings({"odd": first}, answers=ANSWERS), tmp_path) as p:
            body = {"model": "odd/m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
            status, told, _ = await p.post(path, {"model": "odd/m", "input": "hi"} if "resp" in path else body)
        assert (status, "answers.text" in json.dumps(told)) == (503, True)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_one_event_has_the_bounds_of_an_answer(tmp_path: Path, kind: str) -> None:
    """A line of a stream before the commit: the next target serves."""
    row: Any = {"choices": [], "x": [[]] * 40_000} if kind == "openai" else {"x": [[]] * 40_000}

    async def much(connection: Connection, seen: Seen) -> None:
        await connection.head(content_type="text/event-stream" if kind == "openai" else "application/x-ndjson")
        line = json.dumps(row).encode()
        await connection.chunk(b"data: " + line + b"\n\n" if kind == "openai" else line + b"\n")
        await connection.end()

    async with upstream(each(much)) as odd, upstream(each(answers)) as well:
        first = openai(odd.url) if kind == "openai" else {"kind": "ollama", "base_url": odd.url}
        async with proxy(settings({"odd": first, "well": openai(well.url)}, answers=ANSWERS), tmp_path) as p:
            status, body, headers = await p.stream()
        assert (status, headers["x-mana-llm-resolved"]) == (200, "well/m")
        assert b"[DONE]" in body
        assert "(answers.parts)" in p.log.getvalue()


def calling(number: int, kind: str) -> tuple[dict[str, Any], bytes]:
    """A whole answer of so many tool calls, and a stream in which each has an event of its own."""
    names = [{"name": "f", "arguments": "{}"}] * number
    rows = [{"index": n, "id": f"c{n}", "type": "function", "function": name} for n, name in enumerate(names)]
    if kind == "ollama":
        calls = [{"function": {"name": "f", "arguments": {}}}] * number
        lines = [{"message": {"role": "assistant", "content": "", "tool_calls": [call]}} for call in calls]
        last = {"message": {"role": "assistant", "content": ""}, "done": True}
        told = {**last, "message": {"role": "assistant", "content": "", "tool_calls": calls}}
        return told, b"".join(json.dumps(line).encode() + b"\n" for line in (*lines, last))
    if kind == "google":
        parts = [{"functionCall": {"name": "f", "args": {}}}] * number
        ended = [{"content": {"parts": parts}, "finishReason": "STOP"}]
        each_ = [{"candidates": [{"content": {"parts": [part]}}]} for part in parts]
        frames = (*each_, {"candidates": [{"finishReason": "STOP"}]})
        return {"candidates": ended}, b"".join(b"data: %b\n\n" % json.dumps(frame).encode() for frame in frames)
    whole = completion()
    whole["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": rows}
    whole["choices"][0]["finish_reason"] = "tool_calls"
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [row]}}]} for row in rows]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    return whole, b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in (*events, end)) + DONE


@pytest.mark.parametrize("kind", ["openai", "ollama", "google"])
async def test_tool_calls_that_are_translated_are_bounded(tmp_path: Path, kind: str) -> None:
    """Whole and streamed, in one event or in many, through each door that writes them anew; as many as allowed pass."""
    number = [0]

    async def much(connection: Connection, seen: Seen) -> None:
        whole, stream = calling(number[0], kind)
        if b'"stream":true' in seen.body or b"stream" in seen.path.encode():
            await connection.head(content_type="application/x-ndjson" if kind == "ollama" else "text/event-stream")
            await connection.chunk(stream)
            await connection.end()
        else:
            await connection.reply(whole)

    async with upstream(each(much)) as odd:
        url = {"base_url": odd.url}
        first = {"openai": openai(odd.url), "ollama": {"kind": "ollama", **url}}
        first["google"] = {"kind": "google", "api_key": "a-key-of-google", **url}
        config = settings({"odd": first[kind]}, answers={"calls": 5}, health={"failure_threshold": 10**6})
        async with proxy(config, tmp_path) as p:
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            doors: dict[str, dict[str, Any]] = {
                "/v1/messages": {**chat, "max_tokens": 9},
                "/v1/responses": {"input": "hi"},
                "/api/chat": chat,
                **({"/v1/chat/completions": chat} if kind != "openai" else {}),
            }
            for path, asked in doors.items():
                for stream in (False, True):
                    for number[0] in (5, 6):
                        body = {"model": "odd/m", "stream": stream, **asked}
                        async with p.client.post(p.url + path, json=body) as response:
                            text = (await everything(response)).decode()
                        case = (path, stream, number[0], text)
                        assert ("answers.calls" in text) is (number[0] == 6), case
                        assert response.status == 200 or number[0] == 6, case


LIMITS = AnswerLimits(parts=1000, body=70_000, text=90_000)
MANY = b"[" + b"[]," * 22_000 + b"[]]"


def streamed(endpoint: Endpoint, content_type: str, *parts: bytes) -> str | None:
    """What is wrong with the answer to a stream over `endpoint` of a server that speaks all dialects."""
    body = b'{"model":"x","messages":[],"input":"x","prompt":"x","stream":true}'
    call = Call(endpoint, read_summary(body, ("model", str)), body, "r")
    wire = NativeWire(OpenAIWire(), {Endpoint.RESPONSES: "responses", Endpoint.MESSAGES: "messages"})
    translator = wire.translator(call, Entry(Target("p", "x")), content_type, LIMITS)
    for batch in (*map(translator.feed, parts), translator.close()):
        if batch.error is not None:
            return batch.error.detail
    return None


def test_every_way_to_answer_a_stream_has_the_bounds() -> None:
    """An event of each dialect, and whole answers that came instead: of JSON, of bytes."""
    event = b'event: %b\ndata: {"type":"%b","x":%b}\n\n'
    too_many, whole = "too much (answers.parts)", b'{"x":%b}' % MANY
    for endpoint, name in ((Endpoint.RESPONSES, b"response.created"), (Endpoint.MESSAGES, b"message_start")):
        assert streamed(endpoint, "text/event-stream", event % (name, name, MANY)) == too_many
    assert streamed(Endpoint.CHAT, "text/event-stream", b"data: %b\n\n" % whole) == too_many
    assert streamed(Endpoint.CHAT, "application/json", whole) == too_many
    assert streamed(Endpoint.CHAT, "application/json", whole + b" " * 30_000) == "too long (answers.text)"
    assert streamed(Endpoint.RESPONSES, "application/json", whole + b" " * 30_000) == "too long (answers.text)"
    assert streamed(Endpoint.IMAGES, "application/json", whole) == too_many
    assert streamed(Endpoint.IMAGES, "application/json", whole, b" " * 5_000) == "too long (answers.body)"
    assert streamed(Endpoint.SPEECH, "audio/mpeg", whole, b" " * 5_000) is None


async def test_more_texts_than_anyone_sends(tmp_path: Path) -> None:
    """Each would become several objects; a provider that takes the request as it is may have them."""
    many = ["x"] * (MOST_TEXTS + 1)
    hi = [{"role": "user", "content": "hi"}]
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("/v1/embeddings", "input", {"input": many}),
        ("/api/embed", "input", {"input": many}),
        ("/v1/chat/completions", "stop", {"messages": hi, "stop": many}),
        ("/v1/messages", "stop_sequences", {"messages": hi, "max_tokens": 1, "stop_sequences": many}),
        ("/api/chat", "options.stop", {"messages": hi, "options": {"stop": many}}),
    ]
    async with upstream(each(ollama_server)) as box, upstream(each(answers)) as gpu:
        providers = {"l": {"kind": "ollama", "base_url": box.url}, "o": openai(gpu.url)}
        async with proxy(settings(providers), tmp_path) as p:
            for path, key, fields in asked:
                status, body, _ = await p.post(path, {"model": "l/m", **fields})
                assert status == 400, path
                assert f"'{key}' has 20001 texts; one request may have 20000" in json.dumps(body), path
            status, _, _ = await p.post("/v1/chat/completions", {"model": "o/m", "messages": hi, "stop": many})
            assert status == 200
        assert box.posts == []


def test_too_many_calls_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one event, which is not short."""
    made: list[int] = []

    def counted(rows: Any) -> Any:
        made.append(len(rows))
        return deltas_of(rows)

    monkeypatch.setattr(stream, "deltas_of", counted)
    monkeypatch.setattr(stream, "_ROWS_BYTES", 10)
    named = {"function": {"name": "f", "arguments": ""}}
    body = b'{"messages":[]}'
    call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r")
    for number, error in ((5, ""), (6, "answers.calls")):
        rows = [{"index": n, **named} for n in range(number)]
        event = {"choices": [{"index": 0, "delta": {"tool_calls": rows}}, {"index": 1, "delta": None}]}
        reader = stream.EventReader(call, Target("p", "m"), AnswerLimits(calls=5))
        batch = reader.feed(b"data: %b\n\n" % json.dumps(event).encode())
        assert error in str(batch.error or ""), number
        assert made == ([2] if not error else [])
        made.clear()
