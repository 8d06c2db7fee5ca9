"""Long requests: read by one scan, without a copy, and told apart from broken ones as short ones are."""

from __future__ import annotations

import json
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.gateway import body_reader
from manallm_proxy.openai import bounds, json_object, long_values, sliced
from manallm_proxy.openai.bounds import check_structure, count_by_characters, count_by_members
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.openai.long_values import LEAST, check_utf8, shortened
from manallm_proxy.openai.request import read_summary, rewrite
from tests.cases import every
from tests.examples import examples

TEXTS = st.text(st.sampled_from('ab"\\\\[]{}:, é\\n0'), max_size=9) | st.just('"messages":0')
KEYS = st.sampled_from(["messages", "tools", "input", "model", "a", "messa\\ges", "é"])
VALUES = st.recursive(
    st.none() | st.integers(0, 99) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
RAISED = Limits(parts=100_000, elements=10**6)
"""Bounds as an operator may set them."""
JUNK = st.sampled_from([b"", b"", b"", b"", b" ", b",", b"}", b"0", b"\xff", b"\xef\xbb\xbf", b'"messages":[]'])


@contextmanager
def everything_is_long(split: bool = False) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_values, "_LONG", 1)
        patch.setattr(json_object, "LEAST", 0)
        patch.setattr(json_object, "shortened", partial(shortened, split=split))
        yield


def outcome(body: bytes) -> object:
    """The values and their places, or the refusal."""
    try:
        values, spans = split_object(body)
    except InvalidRequest as refusal:
        return str(refusal), refusal.param
    return [(key, bytes(value), spans[key]) for key, value in values.items()]


@st.composite
def bodies(draw: st.DrawFn, least: int = 0) -> bytes:
    """Objects of at least so many members, with something odd before them or within."""
    members, spaced = draw(st.lists(st.tuples(KEYS, VALUES), min_size=least, max_size=5)), draw(st.booleans())
    rows = [json.dumps(key) + (" : " if spaced else ":") + json.dumps(value) for key, value in members]
    text = ("{" + (" ,\n" if spaced else ",").join(rows) + "}").encode()
    cut = draw(st.integers(0, len(text)))
    return draw(JUNK) + text[:cut] + draw(JUNK) + text[cut:]


@given(bodies())
@hypothesis_settings(max_examples=examples(150))
def test_a_long_body_is_read_as_a_short_one(body: bytes) -> None:
    """The same values at the same places, or the same refusal: keys given twice, decoys in values, broken bodies."""
    expected = outcome(body)
    for split in (False, True):
        with everything_is_long(split):
            assert outcome(body) == expected


@contextmanager
def a_few_bytes_are_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"LARGE_BYTES": 0, "SMALL": 8, "_SLICE": 5, "TEXT": 24}.items():
            patch.setattr(sliced, name, size)
        patch.setattr(json_object, "MOST", 0)
        yield


@given(bodies(least=1))  # one that is empty is refused anyway
@hypothesis_settings(max_examples=examples(100))
def test_one_of_megabytes_is_read_piece_by_piece_as_in_one_go(body: bytes) -> None:
    """The same values at the same places; and what is refused there is refused here."""
    expected = outcome(body)
    with a_few_bytes_are_large():
        found = outcome(body)
    assert found == expected if isinstance(expected, list) else isinstance(found, tuple)


WORDS = b'"%b"' % (b"a few words " * 100_000)
MANY = 10**6
"""Levels that no decoder follows: Python 3.11 gives up after some 1,000, 3.14 after some 100,000."""


BROKEN: dict[str, tuple[bytes, str, str | None]] = {
    "a key twice": (b'{"model":1,"messages":[%b],"model":2}' % WORDS, "a key is given twice", "model"),
    "a long one twice": (b'{"messages":%b,"messages":%b}' % (WORDS, WORDS), "a key is given twice", "messages"),
    "no text": (b'{"messages":[%b\xff"]}' % WORDS[:-1], "the body is not valid UTF-8", None),
    "nested": (b'{"messages":%b%b%b}' % (b"[" * MANY, WORDS, b"]" * MANY), "the body is nested too deeply", None),
    "a comma too many": (b'{"messages":[%b],,"model":1}' % WORDS, "the body is not valid JSON", None),
    "a comma at the end": (b'{"messages":[%b],}' % WORDS, "the body is not valid JSON", None),
    "a comma between two": (b'{"messages":%b,,"input":%b}' % (WORDS, WORDS), "the body is not valid JSON", None),
    "no key": (b'{"messages":[%b],%b}' % (WORDS, WORDS), "the body is not valid JSON", None),
    "no value": (b'{"messages":[%b,]}' % WORDS, "the body is not valid JSON", None),
    "no end of a text": (b'{"messages":[%b]}' % WORDS[:-1], "the body is not valid JSON", None),
    "no end": (b'{"messages":[%b]' % WORDS, "the body is not valid JSON", None),
    "no object": (b"[%b]" % WORDS, "the body must be a JSON object", None),
}


@every(BROKEN)
def test_what_is_wrong_with_megabytes_is_named(what: str) -> None:
    """As of a short one: whoever wrote it reads what to mend."""
    body, message, param = BROKEN[what]
    with pytest.raises(InvalidRequest) as refused:
        split_object(body)
    assert refused.value.message.startswith(message)
    assert refused.value.param == param


@given(st.lists(st.tuples(KEYS, VALUES), max_size=5, unique_by=lambda member: member[0]), st.integers(1, 12))
@hypothesis_settings(max_examples=examples(100))
def test_no_look_passes_what_counting_refuses(members: list[tuple[str, Any]], most: int) -> None:
    """Whichever bound is exceeded, however the lengths of members look."""
    body = json.dumps(dict(members)).encode()
    for key in ("keys", "messages", "parts", "elements", "depth"):
        limits = Limits(**{key: most})
        with pytest.MonkeyPatch.context() as patch, everything_is_long():
            _, sure = count_by_characters(body, limits)
            passes = sure or any(
                count_by_members(body, shortened(body, split), limits) is not None for split in (False, True)
            )
            patch.setattr(bounds, "MOST", 0)
            patch.setattr(bounds, "_COUNTABLE", 0)
            try:
                check_structure(body, limits)
            except InvalidRequest:
                assert not passes, (key, body)


@pytest.mark.parametrize("split", [False, True])
def test_a_long_value_counts_from_where_it_was_cut(split: bool) -> None:
    """The same value at the top and, before, within others: there it is nested more deeply."""
    value = [{"a": [[[[0]]]]}] * 3
    for within, passes in ((0, True), (1, False), (3, False)):
        decoy: Any = {"messages": value}
        for _ in range(within):
            decoy = [decoy]
        body = json.dumps({**({"x": decoy} if within else {}), "messages": value}).encode()
        with everything_is_long():
            short = shortened(body, split)
            assert short is not None
            limits = Limits(depth=7)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(bounds, "_COUNTABLE", 0)
                assert (count_by_members(body, short, limits) is not None) is passes


def chat(content: object, **more: object) -> bytes:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    return json.dumps({"model": "mana/x", "messages": messages, "temperature": 0.5, **more}).encode()


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
CODE = 'for a_number in numbers: print("the sum of all of them is now", {total: a_number})\n'
LONG: dict[str, Callable[[], bytes]] = {
    "prose": lambda: chat("What is the answer, then? " * 80_000),
    "a picture": lambda: chat(
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBO" * 500_000}}]
    ),
    "code": lambda: chat(CODE * 24_000, tools=[TOOL] * 100),
    "many messages": lambda: json.dumps(
        {"messages": [{"role": "user", "content": CODE * 24}] * 1000, "model": "mana/x"}
    ).encode(),
}


@pytest.mark.parametrize("name", LONG)
def test_two_megabytes_are_read_without_a_copy(name: str) -> None:
    """Checked, read and made ready for a provider: at no time more than a fifth of it beside it, and mostly nothing."""
    body = LONG[name]()
    assert len(body) > 1_900_000
    read_summary(chat("hi"), ("messages", list))
    tracemalloc.start()
    try:
        _, sure = count_by_characters(body, Limits())
        short = shortened(body)
        assert short is not None
        assert sure or count_by_members(body, short, Limits()) is not None
        looked = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        summary = read_summary(body, ("messages", list), short=short)
        sent = rewrite(summary, body, "bench")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = 1.2 if name == "code" else 0.25  # a message of nothing but code is looked into
    assert looked < len(body) * most
    assert read < len(body) / 5
    assert bytes(sent) == body.replace(b'"mana/x"', b'"bench"')
    assert summary.needs == {"vision"} if name == "a picture" else "vision" not in summary.needs


@pytest.mark.parametrize("size", [4000, 2_000_000])
def test_a_picture_is_looked_for_only_where_it_matters(size: int) -> None:
    """A target that takes pictures is asked without a look at the whole body; one that does not is not asked."""
    seen: list[int] = []

    def holds(text: Any, pattern: re.Pattern[bytes]) -> bool:
        seen.append(1)
        return json_object.holds(text, pattern)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manallm_proxy.openai.request.holds", holds)
        url = {"url": "data:image/png;base64," + "iVBO" * (size // 4)}
        summary = read_summary(chat([{"type": "image_url", "image_url": url}]), ("messages", list))
        assert summary.needs_beside(frozenset({"completion", "vision"})) == frozenset()
        assert seen == []
        assert summary.needs_beside(frozenset({"completion"})) == {"vision"}
        assert summary.needs_beside(frozenset({"completion"})) == {"vision"}
        assert seen == [1]


async def test_many_members_are_looked_at_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a microsecond; so does each bracket, where it takes a walk through the body to tell. Few do not."""
    threads: list[bool] = []

    def noting(function: Any) -> Any:
        def noted(*args: Any) -> Any:
            threads.append(threading.get_ident() != here)
            return function(*args)

        return noted

    here = threading.get_ident()
    monkeypatch.setattr(bounds, "_are_shallow", noting(bounds._are_shallow))
    monkeypatch.setattr(bounds, "_opened_in_members", noting(bounds._opened_in_members))
    monkeypatch.setattr(body_reader, "check_structure", noting(bounds.check_structure))
    message, nested = b'{"role":"user","content":"%b"}', b'{"x":[%b[[]]]}' % (b"[[]]," * 20_000)
    for body, wanted in (
        (b'{"messages":[%b]}' % b",".join([message % (b"x" * 100)] * 900), {False}),
        (b'{"messages":[%b]}' % b",".join([message % (b"x" * 100)] * 9000), {True}),
        (b'{"messages":[%b]}' % b",".join([message % (b"x" * 600)] * 1100), {False, True}),
        (b'{"messages":[%b]}' % b",".join([message % b"x"] * 1100), {False, True}),
        (nested, {False, True}),
    ):
        threads.clear()
        assert await body_reader._looked(body, shortened(body) if len(body) > LEAST else None, RAISED) >= body.count(
            b"{"
        )
        assert set(threads) == wanted


@pytest.mark.parametrize("key", ["model", "stream", "stream_options"])
def test_what_routing_reads_is_short(key: str) -> None:
    """It is read in one call, which takes a millisecond per megabyte; nobody sends as much."""
    value = {"a": "x" * 70_000} if key == "stream_options" else "x" * 70_000
    with pytest.raises(InvalidRequest, match=r"is longer than 65536 bytes|must be true or false") as refused:
        read_summary(json.dumps({"messages": [], key: value}).encode(), ("messages", list))
    assert refused.value.param == key


def with_properties(number: int) -> bytes:
    properties = {f"p{n}": {"type": "string"} for n in range(number)}
    return json.dumps({"messages": [], "tools": [{"type": "function", "parameters": properties}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":[%b{}]}]}' % (b'{"type":"text","text":"hi there"},' * 50_000),
        b'{"messages":[%b{}]}' % (b'{"role":"user","content":[%b{}]},' % (b'{"text":"hi there"},' * 300) * 300),
        b'{"prompt":[%b0]}' % (b"12345," * 119_000),
        with_properties(90_000),
        with_properties(5_000),
    ],
    ids=["parts", "messages of parts", "token ids", "many properties", "some properties"],
)
async def test_no_call_splits_much(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Neither a list of tens of thousands, nor an object of thousands: that takes milliseconds, in any thread. On the
    loop not even many short lists."""
    split: list[tuple[bool, int]] = []

    class Noting:
        def __init__(self, decoder: msgspec.json.Decoder[Any], weight: int) -> None:
            self._decoder, self._weight = decoder, weight

        def decode(self, text: bytes) -> Any:
            found = self._decoder.decode(text)
            split.append((threading.get_ident() == here, len(found) * self._weight))
            return found

    here = threading.get_ident()
    monkeypatch.setattr(bounds, "_LIST", Noting(bounds._LIST, 1))
    monkeypatch.setattr(bounds, "_OBJECT", Noting(bounds._OBJECT, 5))
    short = shortened(body) if len(body) > LEAST else None
    assert await body_reader._looked(body, short, RAISED) >= body.count(b"{") + body.count(b"[")
    assert max((number for _, number in split), default=0) <= 40_001
    assert sum(number for on_loop, number in split if on_loop) <= 45_000


def test_what_is_very_long_is_checked_in_slices() -> None:
    """Not in one call, which takes ten milliseconds for an answer of vectors; what is no text is still found."""

    class Whole(bytes):
        def isascii(self) -> bool:
            assert len(self) <= long_values.MOST
            return super().isascii()

    text = b"[0.25]," * (long_values.MOST // 7 + 1)
    check_utf8(Whole(text[:1000]))
    check_utf8(Whole(text))
    check_utf8(Whole(text + "\u20ac".encode()))
    for broken in (b"\xff", "\u20ac".encode()[:2]):
        with pytest.raises(UnicodeDecodeError):
            check_utf8(Whole(text + broken))
