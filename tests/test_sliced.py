"""Large JSON in slices: what comes out is what msgspec makes of it in one go, and what it refuses is refused."""

from __future__ import annotations

import json
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manallm_proxy.openai import joined, json_object, sliced, sliced_writer
from manallm_proxy.openai.json_object import (
    DecodeErrors,
    contains,
    decode,
    decode_leniently,
    decode_text,
    encode,
    json_text,
    object_bytes,
    replace_lone_surrogates,
)
from tests.examples import examples

TEXTS = st.text(max_size=60) | st.sampled_from(
    ['"' * 30, "\\" * 31, "a" * 70, "é" * 40, "😀" * 20, "\n" * 33, "\ud83d"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(TEXTS, inner, max_size=8),
    max_leaves=60,
)


@pytest.fixture(autouse=True, scope="module")
def small_slices() -> Any:
    """A few bytes are large here, so that each shape is cut everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced, "SMALL", 8)
        patch.setattr(sliced, "LARGE_BYTES", 20)
        patch.setattr(sliced, "_SLICE", 5)
        patch.setattr(sliced, "TEXT", 24)
        patch.setattr(sliced_writer, "TEXT", 24)
        patch.setattr(sliced_writer, "_BUDGET", 4)
        patch.setattr(joined, "SMALL", 8)
        patch.setattr(joined, "PART", 7)
        yield


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=examples(40))
@example({"a": [{}, [], {"b": "x" * 90}], "": "\\\\" * 40}, True, None)
@example(["a" * n + r"\ud83d" * 9 for n in range(24)], True, None)
def test_the_same_as_in_one_go(value: Any, escaped: bool, indent: int | None) -> None:
    """Decoded, checked and encoded, whatever is escaped, wherever the slices end."""
    text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    try:
        wanted = decode_leniently(text)
    except DecodeErrors:
        return  # half of a pair as bytes, which is no text
    assert sliced.decode_large(text, decode_leniently) == wanted
    sliced.check_large(text, *sliced.trimmed(text, 0, len(text)), lambda part: decode_leniently(part) and None)
    assert decode(sliced_writer.encode_large(wanted, encode)) == wanted


@given(VALUES | st.dictionaries(TEXTS, VALUES, max_size=4), st.booleans(), st.sampled_from(["", " \n", "{", "\\ud83d"]))
@example({"a": "\ud83d" * 9}, True, "")
def test_json_in_a_text_is_the_same(value: Any, escaped: bool, more: str) -> None:
    """Read, checked and written, with U+FFFD in place of half a pair; what is no object is none."""
    text = more + json.dumps(value, ensure_ascii=escaped).replace("\ud83d", "?") + more
    try:
        wanted = decode_leniently(text.encode())
    except DecodeErrors:
        assert object_bytes(text) is None
        return
    assert decode_text(text) == wanted
    assert decode(json_text(wanted)) == wanted
    body = object_bytes(text)
    assert (body is not None) is isinstance(wanted, dict)
    if body is not None:
        assert decode(body) == wanted
        assert body == replace_lone_surrogates(text.encode())


@given(st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"ab")), st.sampled_from([b"a", b"ab", b"abab"]))
def test_a_part_is_found_wherever_a_call_ends(text: bytes, part: bytes) -> None:
    """As `in` finds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_object, "_SEARCHED", 3)
        assert contains(text, part) is (part in text)


@given(VALUES, st.data())
@settings(max_examples=examples(40))
def test_what_is_broken_is_refused(value: Any, data: st.DataObject) -> None:
    """A byte too many, one missing, another: what msgspec refuses is refused here, and nothing else."""
    text = bytearray(json.dumps(value).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    match data.draw(st.sampled_from(["insert", "delete", "replace"])):
        case "insert":
            text[at:at] = data.draw(st.sampled_from([b",", b":", b'"', b"]", b"{", b"\\", b"1", b" "]))
        case "delete":
            del text[at]
        case _:
            text[at] = data.draw(st.sampled_from(b',:"]}[{\\1x'))
    body = bytes(text)
    try:
        wanted: Any = decode(body)
    except DecodeErrors:
        with pytest.raises(DecodeErrors):
            sliced.decode_large(body, decode)
        with pytest.raises(DecodeErrors):
            sliced.check_large(body, *sliced.trimmed(body, 0, len(body)), decode)
    else:
        assert sliced.decode_large(body, decode) == wanted


@given(
    st.sampled_from([b"[1,2,3,4,5,6,7,8,9,10,]", b"[,1,2,3,4,5,6,7,8]", b'{"aaaaaaa":1,"b":2,}', b"[1,,2,3,4,5,6,7,8]"])
)
def test_commas_stand_between_values(body: bytes) -> None:
    """And nowhere else, also where a slice ends at one."""
    with pytest.raises(msgspec.DecodeError):
        sliced.decode_large(body, decode)
    with pytest.raises(msgspec.DecodeError):
        sliced.check_large(body, 0, len(body), decode)


def test_no_call_gets_much() -> None:
    """Whatever the shape: lists of numbers, objects, one text, nesting."""
    seen: list[int] = []

    def counted(text: bytes) -> Any:
        seen.append(len(text))
        return decode_leniently(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced, "SMALL", 1024)
        patch.setattr(sliced, "_SLICE", 512)
        patch.setattr(sliced, "TEXT", 4096)
        for value in (
            list(range(10_000)),
            [[0.25] * 768] * 7,
            {"messages": [{"role": "user", "content": "hi"}] * 500},
            {"a": {"b": {"c": ["x" * 30_000, "\\" * 30_000, "é" * 30_000]}}},
        ):
            assert sliced.decode_large(json.dumps(value).encode(), counted) == value
    assert max(seen) <= 4096 + 8
    assert len(seen) > 150


def test_no_call_writes_much() -> None:
    """Lists and objects of many small ones, numbers, vectors, one text, what is encoded already: all of it the same."""
    seen: list[int] = []

    def counted(value: Any) -> bytes:
        seen.append(len(text := encode(value)))
        return text

    small = {"role": "user", "content": "hi"}
    text = msgspec.Raw(encode(["y" * 50_000]))
    values: list[Any] = [[small] * 3000, {f"{n:05}": small for n in range(3000)}, list(range(9000)), "x" * 50_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced_writer, "TEXT", 1000)
        patch.setattr(sliced_writer, "_BUDGET", 64)
        for value in (*values, {"a": values, "b": array("d", [0.5] * 9000)}, {"raw": text, "list": [text] * 3}):
            told = sliced_writer.encode_large(value, counted)
            assert told == msgspec.json.encode(value, enc_hook=list)
    assert max(seen) <= 1100
    assert len(seen) > 500
