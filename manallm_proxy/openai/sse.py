"""Server-sent events: splitting a stream into frames, parsing and writing them.

WHATWG HTML, sections 9.2.5 and 9.2.6: lines end in LF, CR or CRLF; a blank line ends an event; ``data`` lines are
joined by LF; a line that begins with a colon is a comment. Frames keep their bytes, so that a relay changes nothing
by accident.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.openai.joined import joined_bytes

DONE: Final = b"data: [DONE]\n\n"
CR: Final = ord("\r")
LF: Final = ord("\n")
"""As numbers, which Python finds in bytes in a seventh of the time: for bytes, it first raises a TypeError."""
_BOM: Final = b"\xef\xbb\xbf"
_BLANK_LINE: Final = re.compile(rb"\n(?:\n|\r\n?)|\r(?:\n(?:\n|\r\n?)|\r\n?)")
"""A line end, and the blank line after it."""
_OVERLAP: Final = 3
"""Max bytes of a match of `_BLANK_LINE` that may have arrived before its last byte: ``\\r\\n\\r``."""
_LINE: Final = re.compile(rb"\r\n|\n|\r")
_LONG: Final = 2**20
"""Frames of more bytes than this are copied in short calls."""
FRAME_LIMIT: Final = 16 * 1024 * 1024
"""Max bytes of one event; a provider that sends more without a blank line does not speak SSE."""


class FrameTooLong(ValueError):
    """An event exceeds FRAME_LIMIT and has not ended."""


@define  # not frozen: as `answers.Usage`
class Frame:
    """One event: ``raw`` includes its blank line; ``data`` is the joined lines, None if there are none (a comment)."""

    raw: bytes = field(repr=False)
    data: bytes | None = field(repr=False)
    event: bytes = b""
    fields: frozenset[bytes] = frozenset()
    """Names of all fields but ``data`` and ``event``."""


def parse(raw: bytes) -> Frame:
    """Parses one frame."""
    if len(raw) > _LONG and (end := _end_of_line(raw)):
        return Frame(raw, joined_bytes((memoryview(raw)[6:end],)))
    if raw.startswith(b"data: ") and LF not in (body := raw[6:].rstrip(b"\r\n")) and CR not in body:
        return Frame(raw, body)
    if raw.startswith(b"event: ") and raw.count(b"\n") == 3 and CR not in raw:  # as in Responses and Messages
        name, is_next, body = raw[7:].partition(b"\ndata: ")
        if is_next and body.endswith(b"\n\n"):
            return Frame(raw, body[:-2], name)
    return _parse_lines(raw)


def _parse_lines(raw: bytes) -> Frame:
    """`parse` for frames with any lines."""
    data: list[bytes] = []
    event, fields = b"", set()
    for line in _LINE.split(raw):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
        elif name:
            fields.add(name)
    return Frame(raw, b"\n".join(data) if data else None, event, frozenset(fields))


def _end_of_line(raw: bytes) -> int:
    """The end of the only line of `raw`; 0 if it has several lines, or no data."""
    end = len(raw)
    while raw[end - 1] in b"\r\n":
        end -= 1
    plain = raw.startswith(b"data: ") and raw.find(b"\n", 0, end) < 0 and raw.find(b"\r", 0, end) < 0
    return end if plain else 0


def is_cut_before_data(rest: bytes) -> bool:
    """Whether `rest`, the end of a stream, is the beginning of an event whose data never arrived."""
    return b"data: ".startswith(rest)


def event(data: bytes) -> bytes:
    """The bytes of one frame with `data`, which is one line of JSON."""
    return b"data: %b\n\n" % data if len(data) <= _LONG else joined_bytes((b"data: ", data, b"\n\n"))


def comment(text: bytes) -> bytes:
    """The bytes of a frame that clients ignore, which keeps idle timers of proxies on the way from firing."""
    return b": " + text + b"\n\n"


def _split(window: bytes) -> tuple[list[bytes], bytes]:
    """The frames that end in `window`, and the rest. A CR at the very end does not end a frame yet: LF may follow."""
    if CR not in window:
        ended = window.split(b"\n\n")
        rest = ended.pop()
        return [raw + b"\n\n" for raw in ended], rest
    frames, start = [], 0
    for match in _BLANK_LINE.finditer(window):
        end = match.end()
        if end == len(window) and window.endswith(b"\r"):
            break
        frames.append(window[start:end])
        start = end
    return frames, window[start:]


def whole_frames(events: bytes) -> list[Frame]:
    """The frames of `events`, which are whole: a CR at the end of the last one ends it."""
    decoder = Decoder()
    frames = decoder.feed(events)
    rest = decoder.take()
    return [*frames, parse(rest)] if rest.strip(b"\r\n") else frames


@define
class Decoder:
    """Turns a byte stream, split anywhere, into whole frames, in order.

    Linear in the length of the stream: each read is searched once, together with the last bytes before it, and an
    event is joined once, when it has ended.
    """

    _held: bytearray = field(factory=bytearray, repr=False)
    """Bytes of the event that has not ended."""
    _begun: bool = False
    """Whether the stream has begun; then its BOM, if any, has been removed."""

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins a frame."""
        return self._begun and not self._held

    @property
    def held(self) -> int:
        """Bytes of the event that has not ended."""
        return len(self._held)

    def is_open(self, data: bytes) -> bool:
        """Whether `data` has no line end, so that it cannot end an event."""
        return LF not in data and CR not in data and not self._held.endswith((b"\n", b"\r"))

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises FrameTooLong if an unfinished one exceeds FRAME_LIMIT."""
        if not self._begun:
            data = bytes(self._held) + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._held[:] = data
                return []
            data = data.removeprefix(_BOM)
            self._held.clear()
            self._begun = True
        held = self._held
        if held:
            before = bytes(held[-_OVERLAP:])
            frames, rest = _split(before + data)
            if frames:
                frames[0] = joined_bytes((held, frames[0][len(before) :]))
                self._held = held = bytearray(rest)
            else:
                held += data
        else:
            frames, rest = _split(data)
            if rest:
                held += rest
        if len(held) > FRAME_LIMIT:
            raise FrameTooLong
        return [
            parse(raw if raw[0] > 0x0D else raw.lstrip(b"\r\n"))
            for raw in frames
            if raw[0] > 0x0D or raw.strip(b"\r\n")  # surplus blank lines are dropped
        ]

    def take(self) -> bytes:
        """What came of the event that has not ended, which is let go of: it has to be fed again, with what follows."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def close(self) -> bytes:
        """The event that the end of the stream cut short, without surrounding line ends."""
        rest = bytes(self._held).strip(b"\r\n")
        self._held.clear()
        return rest
