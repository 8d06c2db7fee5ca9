"""An event of megabytes is looked at in short calls, and becomes what a short one becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manallm_proxy.contract.answers import AnswerLimits, StreamBatch
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import joined, json_object, sliced, sse
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.native import splice
from manallm_proxy.providers.openai import event_stream, stream
from manallm_proxy.providers.openai.chunks import KEEP_ALIVES, is_keep_alive
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from tests.examples import examples

BODY = b'{"messages":[]}'
CALL = Call(Endpoint.CHAT, read_summary(BODY, ("messages", list)), BODY, "r")
WORDS = ["a", '"', "\\", "é", "}", ' "usage":null,', "error", "\n", "some text "]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
COUNTED = '"usage":{"prompt_tokens":1,"completion_tokens":2},'
USAGES = st.sampled_from(["", '"usage":null,', ' "usage" : null ,', COUNTED])
SPACED = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}] , "usage" : null , "x":1}\n\n'
KEEPS = st.sampled_from(["", "null", "{}", "  ", " {} ", "x", "[]"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """A chunk, of which something may be odd, or what says nothing."""
    if draw(st.integers(0, 5)) == 0:
        return f"data: {draw(KEEPS)}\n\n".encode()
    said = json.dumps(draw(TEXTS), ensure_ascii=draw(st.booleans()))
    finish = draw(st.sampled_from(["null", "null", '"stop"', '"error"']))
    usage, error = draw(USAGES), draw(st.sampled_from(["", "", "", '"error":null,', '"error":{"message":"no"},']))
    first, model = draw(st.permutations(['"model":"m",', f"{usage}{error}"]))
    choice = f'{{"index":0,"delta":{{"content":{said}}},"finish_reason":{finish}}}'
    more = draw(st.sampled_from(['"x":1', '"usage":null', '"usage":null ']))
    end = draw(st.sampled_from(["\n\n", "\r\n\r\n", "\n\n\n"]))
    return f'data: {{"id":"x",{first}"choices":[{choice}],{model}{more}}}{end}'.encode()


def told(kind: type[EventRelay | EventReader], parts: list[bytes], *, long: bool) -> Any:
    """What all of it becomes. `long`: as if each byte were a megabyte."""
    sizes: list[tuple[Any, str, int]] = [
        (stream, "LARGE_BYTES", 16),
        (stream, "EVENT_BYTES", 16),
        (event_stream, "EVENT_BYTES", 16),
        (sliced, "LARGE_BYTES", 16),
        (sse, "_LONG", 8),
        (joined, "PART", 8),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, size in sizes if long else ():
            patch.setattr(module, name, size)
        translator = kind(CALL, Target("p", "m"), AnswerLimits())
        batches: list[StreamBatch] = []
        for part in (*parts, b""):  # after an error nobody asks on
            batches.append(translator.feed(part) if part else translator.close())
            if batches[-1].error is not None:
                break
    errors = [(type(batch.error), batch.error.message) for batch in batches if batch.error is not None]
    frames = b"".join([batch.frames for batch in batches])
    return frames, [d for batch in batches for d in batch.deltas], errors[:1], translator.usage


@given(st.lists(events(), max_size=4), st.sampled_from([EventRelay, EventReader]))
@settings(max_examples=examples(40))
@example([SPACED], EventRelay)
@example([SPACED, b'data: {"model":"m","error":{"message":"no"}}\n\n\n', SPACED], EventRelay)
def test_the_same_as_a_short_one(parts: list[bytes], kind: Any) -> None:
    """Relayed or read, whatever is in it."""
    assert told(kind, parts, long=True) == told(kind, parts, long=False)


@given(st.binary(max_size=40).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b"")))
def test_only_what_is_short_says_nothing(data: bytes) -> None:
    for each in (data, b" " * 40, b" {} ", b"{} {}", *KEEP_ALIVES):
        assert is_keep_alive(each) is (each.strip() in KEEP_ALIVES)


@given(st.sampled_from([b"data: ", b"data:", b"event: x\ndata: ", b": ", b""]), st.binary(max_size=60))
def test_a_long_frame_is_parsed_as_a_short_one(front: bytes, data: bytes) -> None:
    """One line or several."""
    raw = front + data + b"\n\n"
    wanted = sse.parse(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "_LONG", 4)
        patch.setattr(joined, "PART", 4)
        assert sse.parse(raw) == wanted
        assert sse.event(data) == b"data: " + data + b"\n\n"


def test_a_part_is_decoded_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not copied for that where it is large."""
    value = {"a": ["text " * 10, {"b": [1, 2.5, None]}]}
    text = json.dumps(value).encode()
    body = b'{"x": ' + text + b"}"
    span = (6, 6 + len(text))
    assert json_object.decode_part(body, span) == value
    seen: list[int] = []
    decode = json_object._decode_leniently

    def counted(part: bytes) -> Any:
        seen.append(len(part))
        return decode(part)

    monkeypatch.setattr(json_object, "_decode_leniently", counted)
    for name, size in {"LARGE_BYTES": 16, "SMALL": 8, "_SLICE": 5, "TEXT": 12}.items():
        monkeypatch.setattr(sliced, name, size)
    assert json_object.decode_part(body, span) == value
    assert max(seen) < 20


@given(st.dictionaries(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=4), max_size=4))
def test_members_of_a_long_object_are_replaced_as_of_a_short_one(value: dict[str, Any]) -> None:
    """All others keep their bytes."""
    body = json.dumps({"a": "b", **value, "x": {"model": "m", "y": 1}}).encode()

    def told() -> Any:
        values = splice.members(body)
        return splice.begins(values["x"], b"{"), splice.with_values(values, {"a": b'"n"', "new": b"[]"})

    wanted = told()
    with pytest.MonkeyPatch.context() as patch:
        for module in (splice, sliced):
            patch.setattr(module, "LARGE_BYTES", 8)
        patch.setattr(joined, "PART", 8)
        assert told() == wanted
    assert json.loads(wanted[1]) == {**value, "a": "n", "x": {"model": "m", "y": 1}, "new": []}
