"""Finds the long strings in large JSON without looking at each short one: by the quotes that they do not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from manallm_proxy.openai.sliced import end_of_string, is_escaped

_KEY: Final = re.compile(rb'"([A-Za-z_][A-Za-z0-9_]*)"\s*:\s*(\[\s*)?"$')
"""What stands before a member's string, or the first one of its list. Where JSON is valid, it stands nowhere else:
within a string the quotes were escaped, and between two strings there is no word alone."""
_NEXT: Final = re.compile(rb'"\s*,\s*"')
"""What stands between two strings of a list."""
_BEFORE: Final = 128
"""Max bytes before a string that are looked at for its key."""


class LongString(NamedTuple):
    """``start`` and ``end`` of what is between its quotes. ``key``: of the member that it is, or whose list."""

    key: bytes
    start: int
    end: int
    is_listed: bool = False


def long_strings(text: bytes, start: int, end: int, least: int) -> Iterator[LongString]:
    """Those between `start` and `end` of at least `least` bytes that are members of objects, or follow each other in
    their lists from the first one on. `text` must be valid JSON."""
    block = least // 2  # bytes that are looked at together: a long string has a whole block of them
    at, before = start, None
    while at + block <= end:
        if _has_quote(text, at, at + block):
            at += block
            continue
        string = _around(text, max(at - block - 1, start), at, end, before)
        if string is None:
            while at + block <= end and not _has_quote(text, at, at + block):
                at += block
            continue
        if string.end - string.start >= least:
            yield string
        before = string
        at = string.end + 1


def _around(text: bytes, low: int, at: int, end: int, before: LongString | None) -> LongString | None:
    """The string that `at` is in, if it has a key and begins after `low`. `before`: the latest one with a key."""
    quote = at
    while (quote := text.rfind(b'"', low, quote)) >= 0:
        if not is_escaped(text, quote):
            key = _KEY.search(text[max(quote - _BEFORE, 0) : quote + 1])
            if key is not None:
                return LongString(key[1], quote + 1, end_of_string(text, quote + 1, end), key[2] is not None)
            if before is not None and before.is_listed and _NEXT.fullmatch(text, before.end, quote + 1):
                return LongString(before.key, quote + 1, end_of_string(text, quote + 1, end), is_listed=True)
            return None
    return None


def _has_quote(text: bytes, start: int, end: int) -> bool:
    """Whether a string begins or ends there."""
    if text.find(b'"', start, end) < 0:
        return False
    if is_escaped(text, start):
        start += 1
    piece = text[start:end]
    return b'"' in piece.replace(b"\\\\", b"").replace(b'\\"', b"")
