"""Server-sent events: where a frame ends, what its data is, how to write one.

WHATWG HTML, section 9.2: lines end in LF, CR or CRLF; a blank line ends an event; ``data`` lines join with
LF; a line that begins with a colon is a comment. Frames keep their bytes, so that a relay changes nothing
that it does not mean to.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field, frozen

DONE: Final = b"data: [DONE]\n\n"
_BOM: Final = b"\xef\xbb\xbf"
_BLANK_LINE: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n|\n\r(?!\n)|\r\n\r(?!\n)|\r\r\n")
_LINE: Final = re.compile(rb"\r\n|\n|\r")
FRAME_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of one event; a provider that sends more in one is not speaking SSE."""


class FrameTooLong(ValueError):
    """An event grew over FRAME_LIMIT without ending."""


@frozen
class Frame:
    """One event: ``raw`` with its blank line, ``data`` joined, None where there is none (comments)."""

    raw: bytes = field(repr=False)
    data: bytes | None = field(repr=False)
    event: bytes = b""
    fields: frozenset[bytes] = frozenset()
    """Names of the fields other than ``data`` and ``event``."""


def parse(raw: bytes) -> Frame:
    """The frame whose bytes are `raw`."""
    if raw.startswith(b"data: ") and b"\n" not in (body := raw[6:].rstrip(b"\r\n")) and b"\r" not in body:
        return Frame(raw, body)
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


def event(data: bytes) -> bytes:
    """One frame that carries `data`, a line of JSON."""
    return b"data: " + data + b"\n\n"


def comment(text: bytes) -> bytes:
    """A frame that says nothing to a client, but keeps the boxes between us awake."""
    return b": " + text + b"\n\n"


@define
class Decoder:
    """Bytes in, cut anywhere; whole frames out, in order.

    A CR at the very end waits for the next byte, since an LF would belong to it. The search goes on where it
    stopped, and what holds no line end is not even joined before one comes, so that a long event costs no more
    than its length.
    """

    _held: bytes = field(default=b"", repr=False)
    _behind: list[bytes] = field(factory=list, repr=False)
    """What came behind ``_held`` without a line end."""
    _size: int = 0
    """Bytes of ``_held`` and ``_behind``."""
    _searched: int = 0
    _begun: bool = field(default=False)

    @property
    def is_between(self) -> bool:
        """Nothing is held: the next byte begins a frame."""
        return self._begun and not self._held and not self._behind

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completed. FrameTooLong where one does not end."""
        if self._begun and b"\n" not in data and b"\r" not in data and not self._held.endswith(b"\r"):
            self._behind.append(data)
            self._size += len(data)
            if self._size > FRAME_LIMIT:
                raise FrameTooLong
            return []
        held = self._joined() + data
        if not self._begun:
            if _BOM.startswith(held[:3]) and len(held) < 3:
                self._held = held
                return []
            held = held.removeprefix(_BOM)
            self._begun = True
        frames = self._frames(held)
        self._size = len(self._held)
        if self._size > FRAME_LIMIT:
            raise FrameTooLong
        return frames

    def _joined(self) -> bytes:
        if self._behind:
            self._held = b"".join((self._held, *self._behind))
            self._behind.clear()
        return self._held

    def _frames(self, held: bytes) -> list[Frame]:
        if b"\r" not in held:
            *whole, self._held = held.split(b"\n\n")
            self._searched = 0
            return [parse(raw + b"\n\n") for raw in whole if raw]
        frames, start, at = [], 0, self._searched
        while (match := _BLANK_LINE.search(held, at)) is not None:
            if match.end() == len(held) and held.endswith(b"\r"):
                break
            if held[start : match.start()].strip(b"\r\n"):
                frames.append(parse(held[start : match.end()]))
            start = at = match.end()
        self._held = held[start:]
        self._searched = max(0, len(self._held) - 4)
        return frames

    def close(self) -> bytes:
        """What came behind the last blank line."""
        held, self._held = self._joined(), b""
        return held.strip(b"\r\n")
