"""Gemini's events that arrive together say what they would say if each were read on its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta, Usage
from manallm_proxy.providers.gemini.plain_events import PlainEvents
from manallm_proxy.providers.gemini.reply import Reader
from manallm_proxy.providers.gemini.stream import GeminiTranslator


def event(text: str = "word", *, total: int = 7, usage: Any = None, finish: str = "", thought: bool = False) -> bytes:
    part: dict[str, Any] = {"text": text, **({"thought": True} if thought else {})}
    candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}}
    candidate |= {**({"finishReason": finish} if finish else {}), "index": 0}
    details = [{"modality": "TEXT", "tokenCount": 3}]
    counted = {"promptTokenCount": 3, "candidatesTokenCount": total, "promptTokensDetails": details}
    row = {"candidates": [candidate], "usageMetadata": counted if usage is None else usage, "modelVersion": "m"}
    return b"data: " + json.dumps(row).encode() + b"\r\n\r\n"


def told(parts: Iterable[bytes], *, tries_left: int | None = None) -> tuple[str, str, list[str], Usage | None, str]:
    """Words, thoughts, ends, usage and the error of a stream in `parts`. `tries_left` 0: without a pattern."""
    one = GeminiTranslator()
    if tries_left is not None:
        one.tries_left = tries_left
    words, thoughts, ends, error = "", "", [], ""
    for part in (*parts, None):
        batch = one.close() if part is None else one.feed(part)
        words += "".join(delta.content for delta in batch.deltas)
        thoughts += "".join(delta.reasoning for delta in batch.deltas)
        ends += [delta.finish for delta in batch.deltas if delta.finish]
        if batch.done or batch.error:
            error = repr(batch.error)
            break
    return words, thoughts, ends, one.usage, error


texts = st.text(max_size=6) | st.sampled_from(
    ['"', "\\", '"}], "role"', "\r\n\r\ndata: {", "é", "", "usageMetadata", "{"]
)
events = st.one_of(
    st.builds(event, texts, total=st.integers(0, 10**6)),
    st.builds(event, texts, total=st.integers(0, 10**6)),
    st.builds(event, texts, thought=st.just(True)),
    st.builds(event, texts, finish=st.just("STOP")),
    st.builds(event, texts, usage=st.sampled_from([{}, 7, [], None, {"candidatesTokenCount": "x"}])),
)
BROKEN = (
    (b"7", b"}"),
    (b"7", b"7}, {"),
    (b"[{", b"["),
    (b'"text"', b'"te\\u0078t"'),
    (b"word", b"\xff"),
    (b"TEXT", b"\xff"),
)


@given(st.lists(events, min_size=1, max_size=9), st.lists(st.integers(0, 2000), max_size=3), st.data())
def test_events_that_arrive_together(some: list[bytes], cuts: list[int], data: st.DataObject) -> None:
    """Plain or odd, whole or broken, cut anywhere."""
    old, new = data.draw(st.sampled_from([(b"", b""), *BROKEN]))
    broken = data.draw(st.integers(0, len(some)))
    some = [*some[:broken], event().replace(old, new, 1) if old else event(), *some[broken:], event("", finish="STOP")]
    whole = event("first") + b"".join(some)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(places)]
    wanted = told([event("first"), *some], tries_left=0)
    assert told(filter(None, parts)) == wanted


def pattern() -> PlainEvents:
    plain = PlainEvents()
    assert plain.read(event()) == ((), 0, {})
    plain.learn(event(), Delta("word"))
    return plain


def test_a_run_is_told_up_to_what_is_odd() -> None:
    """With the counters of its last event, wherever the odd one differs: within, at its end, in its counters."""
    plain, run = pattern(), event("one", total=1) + event('t"wo', total=2) + event("é", total=30)
    wanted = (("one", r"t\"wo", r"\u00e9"), len(run), 30)
    odd = event().replace(b"\r\n\r\n", b" \r\n\r\n"), event().replace(b"modelVersion", b"modelversion")
    for after in (b"", event()[:-3], event(finish="STOP"), event(thought=True), event("")[:40], *odd):
        texts_, used, counters = plain.read(run + after)
        got = tuple(text.decode() for text in texts_), used, counters["candidatesTokenCount"]
        assert got == wanted
    for broken in (b"7}", b"07", b'7, "a": [1', b'7}, {"a": 7', b"\xff"):
        odd_one = event().replace(b'"candidatesTokenCount": 7', b'"candidatesTokenCount": ' + broken)
        assert plain.read(odd_one)[:2] == ((), 0)
        assert plain.read(run + odd_one + event())[:2] == ((), 0)


def test_usage_that_is_whole_only_together() -> None:
    """Counters that one event begins and another ends are no counters."""
    first = event(usage={"candidatesTokenCount": [1]}).replace(b"[1]}", b"[{}")
    second = event(usage={"candidatesTokenCount": 1}).replace(b'{"candidatesTokenCount": 1}', b"{}]}")
    assert pattern().read(event() + first + second + event())[:2] == ((), 0)


def test_an_event_that_was_cut_is_told_with_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read as JSON for that; one that goes on for long is not joined again with each read."""
    one, long = GeminiTranslator(), event("x" * 9000)
    one.feed(event("a") + event("b"))
    with monkeypatch.context() as patched:
        patched.setattr(Reader, "deltas", lambda self, reply: pytest.fail(f"it was read: {reply}"))
        batches = [one.feed(event("c")[:50]), one.feed(event("c")[50:] + event("d") + long[:9])]
    assert "".join(delta.content for each in batches for delta in each.deltas) == "cd"
    one.feed(long[9:6000])
    assert one.take_held() == long[:6000]
