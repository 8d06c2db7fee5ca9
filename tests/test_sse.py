"""Frames out of bytes that are cut anywhere."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.openai import joined, sse

STREAMS = {
    "LF": b"data: one\n\n: comment\n\ndata: two\n\ndata: [DONE]\n\n",
    "CRLF": b"data: one\r\n\r\n: comment\r\n\r\ndata: two\r\n\r\ndata: [DONE]\r\n\r\n",
    "CR": b"data: one\r\r: comment\r\rdata: two\r\rdata: [DONE]\r\r",
    "mixed": b"data: one\n\n: comment\r\n\r\ndata: two\r\rdata: [DONE]\n\n",
    "BOM": b"\xef\xbb\xbfdata: one\n\n: comment\n\ndata: two\n\ndata: [DONE]\n\n",
    "no space": b"data:one\n\n:comment\n\ndata:two\n\ndata:[DONE]\n\n",
    "CR then CRLF": b"data: one\r\r\n: comment\r\r\ndata: two\r\r\ndata: [DONE]\r\r\n",
    "CRLF then LF": b"data: one\r\n\n: comment\n\r\ndata: two\n\rdata: [DONE]\r\n\r\n",
    "surplus": b"\n\n\ndata: one\n\n\n\n: comment\n\n\ndata: two\n\n\r\n\r\ndata: [DONE]\n\n\n",
    "no end": b"data: one\n\n: comment\n\ndata: two\n\ndata: [DONE]",
    "fields": b"event: x\nid: 7\ndata: one\n\n: comment\n\nretry: 3\ndata: two\n\ndata: [DONE]\n\n",
}


def frames_of(stream: bytes, *cuts: int) -> list[sse.Frame]:
    decoder = sse.Decoder()
    frames: list[sse.Frame] = []
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        frames += decoder.feed(stream[start:end])
    rest = decoder.close()
    return [*frames, sse.parse(rest)] if rest else frames


def lines_of(stream: bytes) -> list[bytes]:
    """All lines but the blank ones, wherever they end."""
    return [line for line in stream.replace(b"\r", b"\n").split(b"\n") if line]


@pytest.mark.parametrize("name", STREAMS)
def test_cut_at_every_offset(name: str) -> None:
    """The same data, and together the same bytes, wherever the network cuts."""
    stream = STREAMS[name]
    for cut in range(len(stream) + 1):
        frames = frames_of(stream, cut)
        assert [f.data for f in frames if f.data is not None] == [b"one", b"two", b"[DONE]"]
        assert lines_of(b"".join(f.raw for f in frames)) == lines_of(stream.removeprefix(b"\xef\xbb\xbf"))


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("surplus", "BOM")])
def test_the_bytes_stay(name: str) -> None:
    """All of them but the blank lines that say nothing."""
    stream = STREAMS[name]
    for cut in range(len(stream) + 1):
        assert b"".join(f.raw for f in frames_of(stream, cut)).strip(b"\r\n") == stream.strip(b"\r\n")


def test_no_frame_begins_with_a_line_end() -> None:
    """After an ``id`` openai-python reads each blank line as an empty event, and its JSON."""
    for end in ("\n", "\r\n", "\r"):
        stream = f"data: one{end}{end}{end}id: 7{end}data: two{end}{end}{end}{end}{end}data: [DONE]{end}{end}".encode()
        for cut in range(len(stream) + 1):
            frames = frames_of(stream, cut)
            assert [f.data for f in frames] == [b"one", b"two", b"[DONE]"]
            assert not any(f.raw.startswith((b"\r", b"\n")) for f in frames)


def test_cut_into_single_bytes() -> None:
    """UTF-8, CRLF and the BOM all come apart."""
    stream = "\ufeffdata: zwölf \U0001f41f\r\n\r\ndata: \u2028\u0085\r\n\r\n".encode()
    frames = frames_of(stream, *range(1, len(stream)))
    assert [(f.data or b"").decode() for f in frames] == ["zwölf \U0001f41f", "\u2028\u0085"]


def test_what_the_fields_say() -> None:
    """Event, several data lines, the names of the rest; U+2028 ends no line."""
    frame = sse.parse("event: error\nid: 1\ndata: a\u2028b\ndata:  c\n\n".encode())
    assert (frame.event, frame.data, frame.fields) == (b"error", "a\u2028b\n c".encode(), frozenset({b"id"}))
    assert sse.parse(b": only a comment\n\n").data is None
    assert sse.parse(b"data\n\n").data == b""


def test_what_is_written_is_read() -> None:
    """Our own frames."""
    frames = frames_of(sse.event(b'{"a":1}') + sse.comment(b"keep-alive") + sse.DONE)
    assert [f.data for f in frames] == [b'{"a":1}', None, b"[DONE]"]


def test_a_last_event_without_its_blank_line_is_kept() -> None:
    """llama.cpp's [DONE] was reported so."""
    decoder = sse.Decoder()
    assert [f.data for f in decoder.feed(b"data: one\n\ndata: [DONE]")] == [b"one"]
    assert decoder.close() == b"data: [DONE]"


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is bounded."""
    monkeypatch.setattr(sse, "FRAME_LIMIT", 1000)
    decoder = sse.Decoder()
    decoder.feed(b"x" * 1000)
    with pytest.raises(sse.FrameTooLong):
        decoder.feed(b"x")


@given(
    st.binary(max_size=200) | st.text("data: x\r\n\n", max_size=200).map(str.encode),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_cutting_is_like_none(stream: bytes, cuts: list[int]) -> None:
    """Whatever the bytes."""
    at = sorted(min(cut, len(stream)) for cut in cuts)
    assert [f.data for f in frames_of(stream, *at)] == [f.data for f in frames_of(stream)]


def test_a_long_event_costs_no_more_than_its_length() -> None:
    """In many small reads, as networks deliver it: did each look at all the rest, this test would not end."""
    decoder = sse.Decoder()
    decoder.feed(b"data: ")
    for _ in range(20_000):
        assert decoder.feed(b"x" * 500) == []
    [frame] = decoder.feed(b"\n\n")
    assert frame.data is not None and len(frame.data) == 10_000_000


def test_what_is_held_is_bounded_without_line_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many small reads nor one long line grow without end; a complete event after it is read in full."""
    monkeypatch.setattr(sse, "FRAME_LIMIT", 1000)
    for line in (b"x" * 10, b"data: x\n", b": x\r", b"x\r\n"):
        decoder = sse.Decoder()
        with pytest.raises(sse.FrameTooLong):
            deque(map(decoder.feed, [line] * 1000), 0)


def test_a_return_at_the_end_of_a_read_waits_for_its_line_feed() -> None:
    """Else CRLF would count as two ends; any other byte settles it."""
    decoder = sse.Decoder()
    assert decoder.feed(b"data: one\r\n\r") == []
    assert [f.data for f in decoder.feed(b"\n")] == [b"one"]
    assert decoder.feed(b"data: two\r\r") == []
    assert [f.data for f in decoder.feed(b"data: thr")] == [b"two"]
    assert [f.data for f in decoder.feed(b"ee\n\n")] == [b"three"]


@given(
    st.lists(
        st.sampled_from(["data: a", "data:", "data", ": c", "event: e", "id: 1", "x", "", "\ufeff", "data: ü\u2028"])
    ),
    st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=1),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_any_lines_with_any_ends_cut_anywhere(lines: list[str], ends: list[str], cuts: list[int]) -> None:
    """The same frames as in one read, and no line lost or made up."""
    stream = "".join(line + ends[n % len(ends)] for n, line in enumerate(lines)).encode()
    at = sorted(min(cut, len(stream)) for cut in cuts)
    frames, whole = frames_of(stream, *at), frames_of(stream)
    assert [(f.data, f.event, f.fields) for f in frames] == [(f.data, f.event, f.fields) for f in whole]
    assert lines_of(b"".join(f.raw for f in frames)) == lines_of(stream.removeprefix(b"\xef\xbb\xbf"))


def by_the_standard(stream: bytes) -> list[bytes]:
    """The data of each event, line by line as WHATWG HTML 9.2.6 puts it; the last event needs no blank line here."""
    events: list[list[bytes]] = [[]]
    for line in stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        if not line:
            events.append([])
        elif name == b"data":
            events[-1].append(value.removeprefix(b" "))
    return [b"\n".join(lines) for lines in events if lines]


@pytest.mark.parametrize("name", STREAMS)
def test_cut_at_every_two_offsets(name: str) -> None:
    """A blank line of up to four bytes comes apart anywhere, and so does the BOM."""
    stream = STREAMS[name]
    wanted = by_the_standard(stream)
    for cuts in itertools.combinations(range(len(stream) + 1), 2):
        assert [f.data for f in frames_of(stream, *cuts) if f.data is not None] == wanted


@given(
    st.lists(st.sampled_from([b"data: a", b"data:b", b":c", b"", b"", b"\n", b"\r"]), max_size=30),
    st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=1),
    st.lists(st.integers(0, 200), max_size=10),
)
def test_any_stream_is_read_as_the_standard_says(lines: list[bytes], ends: list[bytes], cuts: list[int]) -> None:
    """Mixed line ends, runs of blank lines, any cuts."""
    stream = b"".join(line + ends[n % len(ends)] for n, line in enumerate(lines))
    at = sorted(min(cut, len(stream)) for cut in cuts)
    assert [f.data for f in frames_of(stream, *at) if f.data is not None] == by_the_standard(stream)


ENDS = {"LF": b"\n", "CR": b"\r", "CRLF": b"\r\n", "none": b"", "mixed": b"\r\nx\rx\nx"}


@pytest.mark.parametrize("size", [100, 1024, 5000])
@pytest.mark.parametrize("name", ENDS)
def test_the_work_of_a_long_event_grows_with_its_length_only(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 KiB of lines and no blank one: each byte is searched and copied a few times, however it is cut.

    Counted are the bytes that are searched for a blank line, and what each read allocates beyond what it keeps.
    """
    searched = copied = 0
    split = sse._split

    def counting(window: bytes) -> tuple[list[bytes], bytes]:
        nonlocal searched
        searched += len(window)
        return split(window)

    monkeypatch.setattr(sse, "_split", counting)
    monkeypatch.setattr(joined, "_APART", 4096)  # of which nothing is touched, but all is counted here
    line = b"data: " + b"x" * (size - 6 - len(ENDS[name])) + ENDS[name]
    parts = [line] * (2**18 // size)
    blank = b"\n" if line.endswith(b"\n") else b"\n\n"
    decoder = sse.Decoder()
    tracemalloc.start()
    try:
        for part in [*parts, blank]:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            frames = decoder.feed(part)
            copied += tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    event = b"".join([*parts, blank])
    whole = len(event)
    assert [frame.raw for frame in frames] == [event]
    assert whole <= searched <= whole + 4 * len(parts)
    assert copied <= 8 * whole + 2048 * len(parts)


lines = st.sampled_from(
    [
        b"event: a",
        b"event:a",
        b"event:  a",
        b"event: ",
        b"data: {}",
        b"data:{}",
        b"data: ",
        b"data: event: b",
        b"id: 1",
        b": c",
    ]
)


@given(st.lists(lines, max_size=3), st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]), st.booleans())
def test_usual_frames_are_parsed_as_all_others(rows: list[bytes], end: bytes, ends: bool) -> None:
    """Whether its lines are recognised by their place or one by one."""
    raw = end.join([*rows, b"", b""]) if ends else end.join(rows)
    assert sse.parse(raw) == sse._parse_lines(raw)
