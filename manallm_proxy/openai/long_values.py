"""Cuts the few long values out of a request's JSON object: the rest is short, and parsed like any short request.

msgspec scans the body once, at 4 GB/s, and creates no objects for what it skips. So megabytes are validated and split
in a millisecond, without a thread, and without an object for each of a million keys.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

import msgspec

from manallm_proxy.contract.shortened import LongValue, Shortened

MOST: Final = 4 * 2**20
"""Max bytes of a body that one call may scan: a millisecond."""
LEAST: Final = 64 * 1024
"""Min bytes of a body for which this pays off."""
_LONG: Final = 2048
"""Min bytes of a value that is cut out."""
_BETWEEN: Final = 32 * 1024
"""Max bytes of short values before a long one, and of the whole rest."""
_NEAR: Final = 1024
"""Most long values begin within this many bytes."""
_SLICE: Final = 64 * 1024
_COLON: Final = re.compile(rb"\s*:\s*")
_COMMA: Final = re.compile(rb"\s*,\s*")
_BEGIN: Final = re.compile(rb"\[\s*")
_END: Final = re.compile(rb"\s*\]")
_EMPTY: Final = msgspec.Raw(b"")
_Value = msgspec.Raw | list[msgspec.Raw]
_TRIES: Final = 8
"""Max occurrences of one key that are tried, since it may also occur inside other values."""


class _Values(msgspec.Struct):
    """The fields that make requests long."""

    messages: msgspec.Raw = _EMPTY
    tools: msgspec.Raw = _EMPTY
    input: msgspec.Raw = _EMPTY
    prompt: msgspec.Raw = _EMPTY
    instructions: msgspec.Raw = _EMPTY
    system: msgspec.Raw = _EMPTY


class _Lists(msgspec.Struct):
    """The same, with the members of those that usually are lists of objects, so that they are not scanned again."""

    messages: list[msgspec.Raw] = []
    tools: list[msgspec.Raw] | None = None
    input: msgspec.Raw = _EMPTY
    prompt: msgspec.Raw = _EMPTY
    instructions: msgspec.Raw = _EMPTY
    system: msgspec.Raw = _EMPTY


_DECODER: Final = msgspec.json.Decoder(_Values)
_SPLITTER: Final = msgspec.json.Decoder(_Lists)
_KEYS: Final = {name: b'"%b"' % name.encode() for name in _Values.__struct_fields__}


def shortened(body: bytes, split: bool = False) -> Shortened | None:
    """`body` without its long values; None if it has none, too much is left, or it is not JSON.

    Only parsing the rest shows whether the object is well-formed, and whether each value is top-level rather than
    nested under the same key: then the key's value is at `LongValue.left_at`. `split`: with the members of lists, of
    which there must not be many.
    """
    values: _Values | _Lists
    try:
        values = (_SPLITTER if split else _DECODER).decode(body)
    except msgspec.ValidationError:
        return shortened(body) if split else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    wanted = {name: value for name in _KEYS if (value := getattr(values, name)) and _size(value) > _LONG}
    cuts: list[LongValue] = []
    parts: list[bytes] = []
    at = left = 0
    while wanted:
        found = _next(body, at, wanted)
        if found is None:
            return shortened(body) if split else None
        name, start, end = found
        parts += (body[at:start], b"0")
        left += start - at
        value = wanted.pop(name)
        if isinstance(value, list):
            cuts.append(LongValue(name, msgspec.Raw(memoryview(body)[start:end]), start, left, value))
        else:
            cuts.append(LongValue(name, value, start, left))
        left += 1
        at = end
    if left + len(body) - at > _BETWEEN or not cuts:
        return None
    return Shortened(b"".join((*parts, body[at:])), cuts)


def _size(value: _Value) -> int:
    return sum(map(len, value)) if isinstance(value, list) else len(value)


def _next(body: bytes, at: int, wanted: dict[str, _Value]) -> tuple[str, int, int] | None:
    """The nearest of the `wanted` values after `at`, its position, and its end."""
    return _nearest(body, at, at + _NEAR, wanted) or _nearest(body, at, at + _BETWEEN, wanted)


def _nearest(body: bytes, at: int, end: int, wanted: dict[str, _Value]) -> tuple[str, int, int] | None:
    best: tuple[int, str, int, int] | None = None
    for name, value in wanted.items():
        key, place = _KEYS[name], at
        for _ in range(_TRIES):
            place = body.find(key, place, end)
            if place < 0:
                break
            place += len(key)
            colon = _COLON.match(body, place)
            if colon is not None and (stop := _end_of(body, colon.end(), value)) is not None:
                found = place, name, colon.end(), stop
                best = min(best or found, found)
                break
    return best and best[1:]


def _end_of(body: bytes, at: int, value: _Value) -> int | None:
    """The end of `value`, if it is at `at`. Of a list, the members: with the same white space between any two."""
    if not isinstance(value, list):
        return at + len(value) if body.startswith(value, at) else None
    begin = _BEGIN.match(body, at)
    if begin is None or not body.startswith(value[0], begin.end()):
        return None
    comma = _COMMA.match(body, begin.end() + len(value[0]))
    inside = (comma[0] if comma is not None else b",").join(value)
    if not body.startswith(inside, begin.end()):
        return None
    end = _END.match(body, begin.end() + len(inside))
    return None if end is None else end.end()


def check_utf8(body: bytes) -> None:
    """Raises UnicodeDecodeError. Works in slices, since decoding megabytes in one call would block the event loop."""
    if len(body) <= MOST and body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(body), _SLICE):
        decoder.decode(body[at : at + _SLICE], at + _SLICE >= len(body))
