"""Frames out of bytes that are cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy import sse

STREAMS = {
    "LF": b"data: one\n\n: comment\n\ndata: two\n\ndata: [DONE]\n\n",
    "CRLF": b"data: one\r\n\r\n: comment\r\n\r\ndata: two\r\n\r\ndata: [DONE]\r\n\r\n",
    "CR": b"data: one\r\r: comment\r\rdata: two\r\rdata: [DONE]\r\r",
    "mixed": b"data: one\n\n: comment\r\n\r\ndata: two\r\rdata: [DONE]\n\n",
    "BOM": b"\xef\xbb\xbfdata: one\n\n: comment\n\ndata: two\n\ndata: [DONE]\n\n",
    "no space": b"data:one\n\n:comment\n\ndata:two\n\ndata:[DONE]\n\n",
    "fields": b"event: x\nid: 7\ndata: one\n\n: comment\n\nretry: 3\ndata: two\n\ndata: [DONE]\n\n",
}


def frames_of(stream: bytes, *cuts: int) -> list[sse.Frame]:
    decoder = sse.Decoder()
    frames: list[sse.Frame] = []
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        frames += decoder.feed(stream[start:end])
    rest = decoder.close()
    return [*frames, sse.parse(rest)] if rest else frames


@pytest.mark.parametrize("name", STREAMS)
def test_cut_at_every_offset(name: str) -> None:
    """The same data, and together the same bytes, wherever the network cuts."""
    stream = STREAMS[name]
    for cut in range(len(stream) + 1):
        frames = frames_of(stream, cut)
        assert [f.data for f in frames if f.data is not None] == [b"one", b"two", b"[DONE]"]
        joined = b"".join(f.raw for f in frames)
        assert joined.rstrip(b"\r\n") == stream.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")


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
