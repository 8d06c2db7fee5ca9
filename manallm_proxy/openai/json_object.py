"""Parses a JSON object only as far as needed: its top-level values stay bytes, each with its position.

So a relay can replace one value and leave every other byte unchanged.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final

import msgspec

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Span
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.openai import sliced, sliced_writer
from manallm_proxy.openai.joined import decoded_text, encoded_text, joined_bytes
from manallm_proxy.openai.long_values import LEAST, MOST, check_utf8, shortened

encode: Final = msgspec.json.encode
decode: Final = msgspec.json.decode
DecodeErrors: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Everything that msgspec raises on bad input."""

_SLICE: Final = 64 * 1024
_STEP: Final = 16 * 1024
"""Bytes that a pattern is searched for in one call, which takes up to half a millisecond."""
_SEARCHED: Final = 512 * 1024
BOM: Final = b"\xef\xbb\xbf"
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""An escape in a string: a surrogate pair, a lone surrogate (the group), or any other."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_KEY: Final = re.compile(rb'[\s,]*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*')
_END: Final = re.compile(rb"\s*\}")
_SHORT: Final = 16 * 1024
"""Below this many bytes, copying is faster than searching."""
_FIRST_KEY: Final = 64
"""The first key of most objects ends within this many bytes."""


def decode_leniently(body: bytes) -> Any:
    """`body` decoded, with U+FFFD for each lone surrogate, and without a byte order mark.

    Both are legal JSON (RFC 8259, sections 8.1 and 8.2) that msgspec refuses. Raises one of DecodeErrors.
    """
    if len(body) > sliced.LARGE_ELEMENTS and sliced.is_large(body):
        return sliced.decode_large(body.removeprefix(BOM), _decode_leniently)
    return _decode_leniently(body)


def decode_part(body: bytes, span: Span) -> Any:
    """The value at `span` of `body`, decoded in the same way; a large one is not copied."""
    if span[1] - span[0] > sliced.LARGE_BYTES:
        return sliced.decode_large(body, _decode_leniently, span)
    return decode_leniently(body[slice(*span)])


def encode_whole(value: Any, write: Callable[[Any], bytes] = encode) -> bytes:
    """As `encode`, for values that may be large: no call into C takes long. `write` encodes the parts."""
    return sliced_writer.encode_large(value, write)


def json_text(value: Any) -> str:
    """The JSON text of `value`, which may be large."""
    return decoded_text(encode_whole(value))


def decode_text(text: str) -> Any:
    """As `decode_leniently`, for a JSON text."""
    return decode_leniently(encoded_text(text))


def object_bytes(text: str) -> bytes | None:
    """The bytes of a JSON object, unchanged but for U+FFFD in place of lone surrogates; None for another."""
    return checked_object(encoded_text(text))


def checked_object(body: bytes) -> bytes | None:
    """As `object_bytes`, for a text in UTF-8."""
    span = sliced.trimmed(body, 0, len(body))
    if body[span[0] : span[0] + 1] != b"{":
        return None
    for lenient in (False, True):
        with contextlib.suppress(*DecodeErrors):
            body = replace_lone_surrogates(body) if lenient else body
            sliced.check_large(body, *span, decode)
            return body
    return None


def encoder(large: bool) -> Callable[[Any], bytes]:
    """`encode_whole` for `large` values, else `encode`, which is faster."""
    return encode_whole if large else encode


def _decode_leniently(body: bytes) -> Any:
    try:
        return decode(body)
    except msgspec.DecodeError:
        return decode(replace_lone_surrogates(body.removeprefix(BOM)))


def contains(text: bytes, part: bytes, start: int = 0, end: int | None = None) -> bool:
    """As ``part in text[start:end]``, in short calls: one call would take half a millisecond for each megabyte."""
    if end is None and len(text) <= _SEARCHED:
        return part in text
    return next(positions(text, part, start, end), None) is not None


def positions(text: bytes, part: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where `part` is in `text`, in short calls."""
    end = len(text) if end is None else end
    for begin in range(start, end, _SEARCHED):
        at, stop = begin, min(begin + _SEARCHED + len(part) - 1, end)
        while (at := text.find(part, at, stop)) >= 0:
            yield at
            at += len(part)


def holds(text: Any, pattern: re.Pattern[bytes]) -> bool:
    """Whether `pattern`, which matches at most a kilobyte, occurs in `text` (any bytes-like object)."""
    size = memoryview(text).nbytes
    if size <= _STEP:
        return pattern.search(text) is not None
    return any(pattern.search(text, at, at + _STEP + 1024) is not None for at in range(0, size, _STEP))


def replaced(body: bytes, edits: Iterable[tuple[Span, bytes]]) -> bytes:
    """`body` with the bytes at some non-overlapping spans replaced; an empty span means an insertion.

    Insertions at the same position keep their order.
    """
    if len(body) <= sliced.LARGE_BYTES:
        return b"".join(_pieces(body, edits))
    return joined_bytes(_pieces(memoryview(body), edits))


def _pieces(body: Any, edits: Iterable[tuple[Span, bytes]]) -> list[Any]:
    parts: list[Any] = []
    at = 0
    for (start, end), value in sorted(edits, key=itemgetter(0)):
        parts += (body[at:start], value)
        at = end
    parts.append(body[at:])
    return parts


def replace_lone_surrogates(body: bytes) -> bytes:
    """`body` with the escape of U+FFFD for each lone surrogate; every other byte keeps its position.

    Raises DecodeError for an escape that does not end, where it is long.
    """
    if len(body) > sliced.LARGE_BYTES:
        return joined_bytes(map(_without_lone_surrogates, sliced.between_escapes(body)))
    return _without_lone_surrogates(body)


def _without_lone_surrogates(body: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)


def split_object(
    body: bytes, last: str | None = None, short: Shortened | None = None, *, keys: int = sys.maxsize
) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    """The top-level values of a JSON object, and their positions in `body`; positions only up to the key `last`.

    msgspec walks the nesting; we only step from value to value, so the cost is one comparison per top-level key,
    however large the prompt. A lone surrogate becomes U+FFFD in the values, and a byte order mark counts as white
    space; positions still refer to `body`. `short`: `body` without its long values, if known. `keys`: how many a body
    of less than a megabyte may have.

    Raises InvalidRequest for more, and for anything but one well-formed object without duplicate keys: of two values, a
    provider might use the other one than routing did.
    """
    if short is None and LEAST < len(body) <= MOST:
        short = shortened(body)
    if short is not None:
        found = _split_long(body, short)
        if found is not None:
            return found
    if len(body) > sliced.LARGE_BYTES:
        return _split_large(body)
    return _split(body, last, keys)


def _split_long(body: bytes, short: Shortened) -> tuple[dict[str, msgspec.Raw], dict[str, Span]] | None:
    """`split_object` by one scan; None if that is inconclusive, or the body is to be refused."""
    left, cuts = short
    try:
        check_utf8(body)
        values, spans = _split(left, None)
    except (InvalidRequest, UnicodeDecodeError):
        return None
    if any(spans.get(cut.key) != (cut.left_at, cut.left_at + 1) for cut in cuts):
        return None
    moved: dict[str, Span] = {}
    shift = 0
    found = {cut.key: cut.value for cut in cuts}
    for key, (start, end) in spans.items():  # in text order
        start, end = start + shift, end + shift
        if (value := found.get(key)) is not None:
            values[key] = value
            shift += len(value) - 1
            end += len(value) - 1
        moved[key] = (start, end)
    return values, moved


def _split_large(body: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    """`split_object` in many short calls."""
    start, end = sliced.trimmed(body, len(BOM) if body.startswith(BOM) else 0, len(body))
    if body[start : start + 1] != b"{":
        raise InvalidRequest("the body must be a JSON object")
    values: dict[str, msgspec.Raw] = {}
    spans: dict[str, Span] = {}
    try:
        for a, b in sliced.members(body, start, end):
            if b - a <= 2 * sliced.SMALL:
                some, places = _split(b"{%b}" % body[a:b], None)
                if not some:
                    raise InvalidRequest("the body is not valid JSON: a value is missing")
                moved = {key: (x + a - 1, y + a - 1) for key, (x, y) in places.items()}
            else:
                some, moved = _split_member(body, a, b)
            if not values.keys().isdisjoint(some):
                raise InvalidRequest("a key is given twice", param=next(iter(values.keys() & some.keys()))[:64])
            values |= some
            spans |= moved
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    return values, spans


def _split_member(body: bytes, start: int, end: int) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    """The one member between `start` and `end`, whose value is large."""
    name, at = sliced.key_at(body, start, end)
    key = str(_decode_leniently(name))
    span = sliced.trimmed(body, at, end)
    sliced.check_large(body, *span, _check)
    return {key: msgspec.Raw(memoryview(body)[slice(*span)])}, {key: span}


def _check(text: bytes) -> None:
    """Whether `text` is one JSON value. Raises one of DecodeErrors."""
    text.decode()
    try:
        _RAW.decode(text)
    except msgspec.DecodeError:
        _RAW.decode(replace_lone_surrogates(text))


def _split(body: bytes, last: str | None, keys: int = sys.maxsize) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    try:
        values = _values(body)
    except InvalidRequest:
        lenient = replace_lone_surrogates(b"   " + body[len(BOM) :] if body.startswith(BOM) else body)
        if lenient == body:
            raise
        body = lenient
        values = _values(body)
    if len(values) > keys:  # before they are looked for one by one
        raise InvalidRequest(f"the request has more than {keys} keys at its top (limits.keys)")
    if last is None and len(body) <= _SHORT and (usual := _usual_spans(body, values)) is not None:
        return values, usual
    spans: dict[str, Span] = {}
    at = body.index(b"{") + 1
    # in text order, except that a duplicate key has its last value at its first position
    for key, value in values.items():
        match = _KEY.match(body, at)
        if match is None or (match[1] != key.encode() and not _decodes_to(match[1], key)):
            raise _duplicate_key(body)
        start = match.end()
        if not body.startswith(value, start):
            raise _duplicate_key(body)
        spans[key] = (start, at := start + len(value))
        if key == last:
            return values, spans
    if _END.match(body, at) is None:
        raise _duplicate_key(body)
    return values, spans


def _usual_spans(body: bytes, values: dict[str, msgspec.Raw]) -> dict[str, Span] | None:
    """The positions of `values` in `body`, if it is formatted like nearly all requests: without white space, or with
    one space after each comma and colon; else None.

    The values, written again in this format, must equal `body` byte for byte, which excludes duplicate keys. That takes
    half the time of searching each key.
    """
    comma, colon = (b', "', b'": ') if body.find(b'": ', 0, _FIRST_KEY) >= 0 else (b',"', b'":')
    members: list[bytes] = []
    spans: dict[str, Span] = {}
    at, gap = len(b'{"'), len(comma)
    for key, value in values.items():
        front = key.encode() + colon
        start = at + len(front)
        end = start + len(value)
        spans[key] = (start, end)
        at = end + gap
        members.append(front + value)
    return spans if b'{"%b}' % comma.join(members) == body else None


def _values(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        check_utf8(body)
        return _OBJECT.decode(body)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except msgspec.ValidationError:
        raise InvalidRequest("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        if not body.strip():
            raise InvalidRequest("the body is empty; send a JSON object") from None
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _duplicate_key(body: bytes) -> InvalidRequest:
    """The error, with the key unless finding it takes long: the standard library reports all pairs, but is slow."""
    if len(body) > _SLICE:
        return InvalidRequest("a key is given twice")
    try:
        keys = json.loads(body, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except (ValueError, RecursionError):  # msgspec accepts some input that the standard library does not
        keys = []
    twice = [key for key, times in Counter(keys).items() if times > 1]
    return InvalidRequest("a key is given twice", param=twice[0][:64] if twice else None)


def _decodes_to(text: bytes, key: str) -> bool:
    """Whether `text`, the content of a JSON string, has escapes and decodes to `key`."""
    return b"\\" in text and key == decode(b'"%b"' % text, type=str)
