"""Recognises events that only add text by their bytes: nearly all events of a stream differ only in text and counters.

An event that was parsed once becomes the pattern for the next ones. If another has the same bytes around one JSON
string and around its usage, it can contain nothing else, so nothing else is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter, sub
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Delta, Thoughts, Words
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import DecodeErrors, decode, split_object
from manallm_proxy.openai.plain_text import are_texts, is_string

_DATA: Final = b"data: "
_TEXT: Final = re.compile(rb'"text"\s*:\s*("(?:[^"\\]++|\\.)*+")')
_USAGE: Final = "usageMetadata"
_COUNTERS: Final = msgspec.json.Decoder(dict[str, Any])
_EACH: Final = msgspec.json.Decoder(list[msgspec.Raw])
_END: Final = b"\r\n\r\n"


@define
class PlainEvents:
    """The pattern of one stream, once it is known."""

    _front: bytes = field(default=b"", repr=False)
    """The bytes up to the text's opening quote."""
    _middle: bytes = field(default=b"", repr=False)
    """From the quote that closes them to the brace that opens the usage, with both."""
    _tail: bytes = field(default=b"", repr=False)
    """Behind the usage."""
    _between: bytes = field(default=b"", repr=False)
    make: type[Words | Thoughts] = Words
    """Makes a step from recognised texts."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return bool(self._front)

    def read(self, data: bytes) -> tuple[Sequence[bytes], int, dict[str, Any]]:
        """What the events at the start of `data` add, each as the inside of a JSON string, how many bytes these events
        are, and the last one's counters; nothing and 0 if it does not begin with whole events of the pattern."""
        end = data.find(_END) if self._front and data.startswith(self._front) else -1
        if end < 0:
            return (), 0, {}
        if end == len(data) - len(_END):  # it is one, as nearly always
            texts, counters = self._one(data[:end])
            return texts, len(data) if texts else 0, counters
        *events, _ = data.split(_END)
        texts, counters = self._all(events)
        if not texts and (odd := next((n for n, event in enumerate(events) if not self._is_alike(event)), 0)):
            texts, counters = self._all(events[:odd])
        return texts, sum(map(len, events[: len(texts)])) + len(texts) * len(_END), counters

    def _one(self, event: bytes) -> tuple[Sequence[bytes], dict[str, Any]]:
        """What `event`, without its blank line, adds, and its counters; nothing if it is not of the pattern."""
        start, at = len(self._front), event.find(self._middle, len(self._front))
        if at < 0 or not self._is_alike(event) or not is_string(event[start - 1 : at + 1]):
            return (), {}
        try:
            usage = event[at + len(self._middle) - 1 : len(event) - len(self._tail)]
            return (event[start:at],), _COUNTERS.decode(usage)
        except DecodeErrors:
            return (), {}

    def _is_alike(self, event: bytes) -> bool:
        """Whether it begins and ends like all of the pattern."""
        return event.startswith(self._front) and event.endswith(self._tail)

    def _all(self, events: Sequence[bytes]) -> tuple[Sequence[bytes], dict[str, Any]]:
        """The same of several: of all up to the first that has other bytes behind its text.

        Put together again they have to be the same bytes: half the time of a look at each of them from all sides.
        """
        start, stop = len(self._front), -len(self._tail)
        middle, inside = self._middle, map(itemgetter(slice(start, stop)), events)
        texts, found, rests = zip(*[each.partition(middle) for each in inside], strict=True)
        if b"" in found:  # as a rule in the last one, which ends the answer
            odd = found.index(b"")
            events, texts, rests = events[:odd], texts[:odd], rests[:odd]
        inner = self._between.join(map(middle.join, zip(texts, rests, strict=True)))
        if not texts or b"%b%b%b" % (self._front, inner, self._tail) != _END.join(events):
            return (), {}
        counters = _last_of(rests)
        return (texts, counters) if counters is not None and are_texts(texts) else ((), {})

    def learn(self, data: bytes, delta: Delta) -> None:
        """Makes `data`, one whole event that was parsed as `delta`, the pattern, if it has text and usage."""
        found = _TEXT.search(data)
        if not data.endswith(_END) or not data.startswith(_DATA) or found is None:
            return
        if not (delta.is_text or delta.is_reasoning):
            return
        try:
            usage = split_object(data[len(_DATA) : -len(_END)])[1].get(_USAGE)
            if usage is None or decode(found[1], type=str) != delta.content + delta.reasoning:
                return
        except (InvalidRequest, *DecodeErrors):
            return
        start, stop = usage[0] + len(_DATA), usage[1] + len(_DATA)
        if data[start : start + 1] != b"{" or found.end() > start:
            return
        front, middle, tail = data[: found.start(1) + 1], data[found.end(1) - 1 : start + 1], data[stop : -len(_END)]
        around = front + middle + tail
        if b"\\" in around or around.count(b'"text"') != 1 or around.count(_USAGE.encode()) != 1:
            return  # of a duplicate member, perhaps under an escaped name, the last one counts
        if b"\n" in around or b"\r" in around or not tail:
            return
        self._front, self._middle, self._tail, self._between = front, middle, tail, tail + _END + front
        self.make = Words if delta.is_text else Thoughts


def _last_of(rests: Sequence[bytes]) -> dict[str, Any] | None:
    """The last of some objects, each without its first brace; None unless each is whole by itself.

    They are walked together, as the elements of one array. Where these are as long as the objects are, one after the
    other, none of them ends in another.
    """
    array = b"[{%b]" % b",{".join(rests)
    try:
        each = _EACH.decode(array)
        if not array.isascii() or {*map(sub, map(len, each), map(len, rests))} != {len(b"{")}:
            return None
        return _COUNTERS.decode(each[-1])
    except DecodeErrors:
        return None
