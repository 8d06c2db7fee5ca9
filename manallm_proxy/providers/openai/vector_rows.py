"""Checks the rows of a large embeddings answer in slices, cut between rows.

Finding the members of an arbitrary list takes a walk over its brackets. Rows of numbers contain nothing that looks like
the border between two rows; if they do, a slice is no list of rows, and the general path is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.long_values import check_utf8

_SLICE: Final = 32 * 1024
"""Bytes of rows checked per call; at least one row."""
_AROUND: Final = 64 * 1024
"""Max bytes before and after the rows."""
_DATA: Final = re.compile(rb'"data"\s*:\s*(?=\[)')
_BORDER: Final = re.compile(rb"\}\s*,\s*(?=\{)")


_QUOTE: Final = 0x22
_BEGIN: Final = frozenset(b'["')
"""The first bytes of a vector, as numbers or in base64."""


class _Row(msgspec.Struct):
    embedding: msgspec.Raw


_ROWS: Final = msgspec.json.Decoder(list[_Row])


class Rows(NamedTuple):
    """``start``, ``end``: span of the list of rows; ``left``: the body with ``0`` in its place; ``packed``: base64."""

    start: int
    end: int
    number: int
    packed: bool
    left: bytes


def large_rows(body: bytes) -> Rows | None:
    """The rows of `body`; None if this check is inconclusive.

    The rows are well-formed, and each has an embedding. Whether they are the top-level ``data`` shows when ``left`` is
    parsed: then its value is at ``start``.
    """
    found = _DATA.search(body, 0, _AROUND)
    if found is None:
        return None
    start, end = found.end(), body.rfind(b"]", len(body) - _AROUND) + 1
    if end <= start + 2:
        return None
    number, packed = 0, False
    try:
        for piece in _slices(body, start + 1, end - 1):
            rows = _ROWS.decode(b"[%b]" % piece)
            begin = {memoryview(row.embedding)[0] for row in rows}
            if not begin <= _BEGIN:
                return None
            packed = packed if number else memoryview(rows[0].embedding)[0] == _QUOTE
            number += len(rows)
        check_utf8(body)
    except (*DecodeErrors, IndexError):  # IndexError: no rows
        return None
    return Rows(start, end, number, packed, b"%b0%b" % (body[:start], body[end:]))


def _slices(body: bytes, at: int, end: int) -> Iterator[bytes]:
    while at < end:
        border = _BORDER.search(body, min(at + _SLICE, end), end)
        stop, after = (border.start() + 1, border.end()) if border is not None else (end, end)
        yield body[at:stop]
        at = after
