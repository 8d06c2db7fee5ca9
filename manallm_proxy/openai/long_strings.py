"""Finds the long strings in large JSON without looking at each short one: by the quotes that they do not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from manallm_proxy.openai.sliced import end_of_string, is_escaped

LEAST: Final = 4096
"""Min bytes of a long string, unless others are asked for."""
_KEY: Final = re.compile(rb'"([A-Za-z_][A-Za-z0-9_]*)"\s*:\s*"$')
"""What stands before a member's string. Where JSON is valid, it stands nowhere else: within a string the quotes were
escaped, and between two strings there is no word alone."""
_BEFORE: Final = 128
"""Max bytes before a string that are looked at for its key."""


class LongString(NamedTuple):
    """``start`` and ``end`` of what is between its quotes. ``key``: of the member that it is."""

    key: bytes
    start: int
    end: int


def long_strings(text: bytes, start: int, end: int, least: int = LEAST) -> Iterator[LongString]:
    """Those between `start` and `end` that are members of objects, of at least `least` bytes. `text` must be valid
    JSON."""
    block = least // 2  # bytes that are looked at together: a long string has a whole block of them
    at = start
    while at + block <= end:
        if _has_quote(text, at, at + block):
            at += block
            continue
        string = _around(text, max(at - block - 1, start), at, end)
        if string is None:
            while at + block <= end and not _has_quote(text, at, at + block):
                at += block
            continue
        if string.end - string.start >= least:
            yield string
        at = string.end + 1


def _around(text: bytes, low: int, at: int, end: int) -> LongString | None:
    """The string that `at` is in, if it is a member's and begins after `low`."""
    quote = at
    while (quote := text.rfind(b'"', low, quote)) >= 0:
        if not is_escaped(text, quote):
            key = _KEY.search(text[max(quote - _BEFORE, 0) : quote + 1])
            return None if key is None else LongString(key[1], quote + 1, end_of_string(text, quote + 1, end))
    return None


def _has_quote(text: bytes, start: int, end: int) -> bool:
    """Whether a string begins or ends there."""
    if text.find(b'"', start, end) < 0:
        return False
    if is_escaped(text, start):
        start += 1
    piece = text[start:end]
    return b'"' in piece.replace(b"\\\\", b"").replace(b'\\"', b"")
