"""Tells an event that only adds words by its bytes: nearly all events of a stream are alike but for these and counters.

An event that was read once is a pattern for those after it. Where another has the same bytes around one JSON string and
around its usage, it can say nothing but these, so nothing else is read.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Delta, Thoughts, Words
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import DecodeErrors, decode, split_object
from manallm_proxy.openai.plain_text import are_texts, is_string

_DATA: Final = b"data: "
_TEXT: Final = re.compile(rb'"text"\s*:\s*("(?:[^"\\]|\\.)*")')
_USAGE: Final = "usageMetadata"
_COUNTERS: Final = msgspec.json.Decoder(dict[str, Any])
_END: Final = b"\r\n\r\n"


@define
class PlainEvents:
    """The pattern of one stream, once there is one."""

    _front: bytes = field(default=b"", repr=False)
    """Up to the quote that opens the words."""
    _middle: bytes = field(default=b"", repr=False)
    """From the quote that closes them to the usage."""
    _tail: bytes = field(default=b"", repr=False)
    """Behind the usage, with the blank line, which is in none of the others."""

    make: type[Words | Thoughts] = Words
    """Makes the step of texts that were told."""

    def read(self, data: bytes) -> tuple[list[bytes], int, dict[str, Any]]:
        """What the events at the start of `data` add, each as the inside of a JSON string, how many bytes these events
        are, and the last one's counters; nothing and 0 if it does not begin with whole events of the pattern."""
        texts: list[bytes] = []
        counters: dict[str, Any] = {}
        used = 0
        if not self._front or not data.startswith(self._front):
            return texts, used, counters
        start, tail = len(self._front), self._tail[: -len(_END)]
        for event in data.split(_END)[:-1]:
            at = event.find(self._middle, start)
            if at < 0 or not event.startswith(self._front) or not event.endswith(tail):
                break
            try:
                counted = _COUNTERS.decode(event[at + len(self._middle) : len(event) - len(tail)])
            except DecodeErrors:
                break
            texts.append(event[start:at])
            used += len(event) + len(_END)
            counters = counted
        if len(texts) == 1:
            valid = is_string(data[start - 1 : start + len(texts[0]) + 1])
        else:
            valid = bool(texts) and are_texts(texts)
        return (texts, used, counters) if valid else ([], 0, counters)

    def learn(self, data: bytes, delta: Delta) -> None:
        """Takes `data`, which is one whole event and was read as `delta`, as the pattern if it has words and usage."""
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
        front, middle, tail = data[: found.start(1) + 1], data[found.end(1) - 1 : start], data[stop:]
        around = front + middle + tail
        if b"\\" in around or around.count(b'"text"') != 1 or around.count(_USAGE.encode()) != 1:
            return  # a member that comes twice, perhaps under an escaped name: the last one counts
        if b"\n" in around[: -len(_END)] or b"\r" in around[: -len(_END)]:
            return
        self._front, self._middle, self._tail, self.make = front, middle, tail, Words if delta.is_text else Thoughts
