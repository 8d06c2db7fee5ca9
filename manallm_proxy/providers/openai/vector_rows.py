"""The rows of a large embeddings answer, checked slice by slice where they are cut: between one row and the next.

To find the members of just any list takes a walk over its brackets. Between two rows of numbers there is nothing that
looks like their border, and where there is, a slice is no list of rows, and the long way is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.long_values import check_utf8

_SLICE: Final = 32 * 1024
"""Bytes that one call checks: rows of them, and at least one."""
_AROUND: Final = 64 * 1024
"""Bytes before and after the rows."""
_DATA: Final = re.compile(rb'"data"\s*:\s*(?=\[)')
_BORDER: Final = re.compile(rb"\}\s*,\s*(?=\{)")


_QUOTE: Final = 0x22
_BEGIN: Final = frozenset(b'["')
"""First bytes of a vector: of numbers, or in base64."""


class _Row(msgspec.Struct):
    embedding: msgspec.Raw


_ROWS: Final = msgspec.json.Decoder(list[_Row])


class Rows(NamedTuple):
    """``start``, ``end``: of the list of rows; ``left``: the body with ``0`` in its place; ``packed``: in base64."""

    start: int
    end: int
    number: int
    packed: bool
    left: bytes


def large_rows(body: bytes) -> Rows | None:
    """None where only a closer look can tell.

    Rows are well-formed, and each has an embedding. Whether they are the object's own ``data`` shows when what is left
    is read: then its value is where they were.
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
