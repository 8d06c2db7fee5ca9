"""Recognises lines that only add text by their bytes: nearly all lines of a stream differ only in text and date.

The text may also be the model's thinking.

A line that was parsed once becomes the pattern for the next ones. If another has the same bytes around a date and
around one JSON string, it can contain nothing else, so nothing else is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import Delta, Thoughts, Words
from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.openai.plain_text import are_texts, is_string

_DATE: Final = re.compile(rb'"created_at"\s*:\s*"([0-9T:.Z+-]*)"')
_THINKING: Final = b"thinking"
_OF_DATES: Final = b"0123456789T:.Z+-"
"""The characters of Go's dates. Dates are not parsed here, but anything that is no JSON string must not pass."""


@define
class PlainLines:
    """The pattern of one stream, once it is known. `key`: of the member that holds the text."""

    key: bytes = field(repr=False)
    _front: bytes = field(default=b"", repr=False)
    """The bytes up to the date's opening quote."""
    _middle: bytes = field(default=b"", repr=False)
    """The bytes from the date's closing quote to the text's opening quote."""
    _tail: bytes = field(default=b"", repr=False)
    """The bytes from the text's closing quote, with the line end, which no JSON string contains."""
    _between: bytes = field(default=b"", repr=False)
    make: type[Words | Thoughts] = Words
    """Makes a step from recognised texts."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return bool(self._front)

    def read(self, data: bytes) -> tuple[Sequence[bytes], int]:
        """(texts, bytes) of the lines at the start of `data` that match: each text as the content of a JSON string.

        Nothing and 0 if no whole line at the start matches."""
        if not self._front or not data.startswith(self._front):
            return (), 0
        at, size = data.find(self._middle), len(data)
        quoted = data[at + len(self._middle) - 1 : size - len(self._tail) + 1]
        if at > 0 and data.endswith(self._tail) and is_string(quoted):
            return ((quoted[1:-1],), size) if not data[len(self._front) : at].strip(_OF_DATES) else ((), 0)
        first, *parts = data.split(self._middle)
        if first[len(self._front) :].strip(_OF_DATES):
            return (), 0
        texts: list[bytes] = []
        for part in parts:
            text, between, date = part.partition(self._between)
            if between and not date.strip(_OF_DATES):
                texts.append(text)
                continue
            text, ended, _ = part.partition(self._tail)
            if ended:
                texts.append(text)
            break
        count = len(texts)
        if not count or not are_texts(texts):
            return (), 0
        before = len(first) + sum(map(len, parts[: count - 1])) + count * len(self._middle)
        return texts, before + len(texts[-1]) + len(self._tail)

    def learn(self, data: bytes, delta: Delta) -> None:
        """Makes `data`, one whole line that was parsed as `delta`, the pattern, if it has only text."""
        if not (delta.is_text or delta.is_reasoning):
            return
        key, text = (self.key, delta.content) if delta.content else (_THINKING, delta.reasoning)
        date = _DATE.search(data)
        found = re.search(rb'"%b"\s*:\s*("(?:[^"\\]++|\\.)*+")' % key, data)
        if date is None or found is None or date.end() > found.start():
            return
        try:
            if decode(found[1], type=str) != text:
                return
        except DecodeErrors:
            return
        front, middle = data[: date.start(1)], data[date.end(1) : found.start(1) + 1]
        tail = data[found.end(1) - 1 :]
        around = front + middle + tail
        if b"\\" in around or around.count(b'"%b"' % key) != 1 or around.count(b"created_at") != 1:
            return  # of a duplicate member, perhaps under an escaped name, the last one counts
        self._front, self._middle, self._tail, self._between = front, middle, tail, tail + front
        self.make = Words if delta.content else Thoughts
