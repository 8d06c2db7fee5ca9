"""A list of objects in a request, such as its messages, read no deeper than their keys: all values keep their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call, Span
from manallm_proxy.openai import sliced
from manallm_proxy.openai.json_object import DecodeErrors, encoder, replace_lone_surrogates
from manallm_proxy.openai.request import spliced

Row = dict[str, msgspec.Raw]
_T = TypeVar("_T")
_KEY: Final = msgspec.json.Decoder(str)
_ROW: Final = msgspec.json.Decoder(Row)
_ROWS: Final = msgspec.json.Decoder(list[Row])
_SHORT: Final = 2 * sliced.SMALL
"""Max bytes that are decoded in one call, of a list of more than a megabyte."""


def read_rows(text: bytes, span: Span | None = None) -> list[Row]:
    """The list in `text`, or in the part of it at `span`. Raises one of `DecodeErrors`.

    Lone surrogates become U+FFFD where there is one in what is decoded at once.
    """
    start, end = sliced.trimmed(text, *(span or (0, len(text))))
    if end - start <= sliced.LARGE_BYTES:
        return _decoded(_ROWS, text[start:end])
    if text[start : start + 1] != b"[":
        raise msgspec.DecodeError("this is no list")
    rows: list[Row] = []
    for a, b in sliced.members(text, start, end):
        if b - a <= _SHORT:
            some: list[Row] = _decoded(_ROWS, b"[%b]" % text[a:b])
            if not some:
                raise msgspec.DecodeError("a value is missing")
            rows += some
        else:
            rows.append(_long_row(text, *sliced.trimmed(text, a, b)))
    return rows


def changed_rows(call: Call, key: str, change: Callable[[list[Row]], list[Row]]) -> Call:
    """`call` with the list under `key` as `change` returns it; itself if that has the same rows, or if it is malformed,
    for the provider to refuse."""
    if (span := call.summary.spans.get(key)) is None:
        return call
    try:
        rows = read_rows(call.body, span)
        kept = change(rows)
    except DecodeErrors:
        return call
    if are_same(kept, rows):
        return call
    rows.clear()  # nothing long is held twice
    value = encoder(len(call.body) > sliced.LARGE_BYTES)(kept)
    kept.clear()
    return with_value(call, key, value)


def are_same(some: list[Row], others: list[Row]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def with_value(call: Call, key: str, value: bytes) -> Call:
    """`call` with the JSON `value` under `key`; all other bytes are kept."""
    body, spans = spliced(call.body, call.summary.spans, {key: value})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))


def _decoded(decoder: msgspec.json.Decoder[_T], text: bytes) -> _T:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        return decoder.decode(replace_lone_surrogates(text))


def _long_row(text: bytes, start: int, end: int) -> Row:
    """The object there; its long values are not copied."""
    if text[start : start + 1] != b"{":
        raise msgspec.DecodeError("this is no object")
    row: Row = {}
    for a, b in sliced.members(text, start, end):
        if b - a <= _SHORT:
            some: Row = _decoded(_ROW, b"{%b}" % text[a:b])
            row |= some
        else:
            name, at = sliced.key_at(text, a, b)
            value = sliced.trimmed(text, at, b)
            row[_decoded(_KEY, name)] = msgspec.Raw(memoryview(text)[slice(*value)])
    return row
