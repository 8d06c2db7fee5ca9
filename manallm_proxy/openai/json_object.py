"""One JSON object, parsed only as far as we need: its top-level values stay bytes, with the position of each.

So a relay can replace one value and leave every other byte as it was.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from typing import Any, Final

import msgspec

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Span

encode: Final = msgspec.json.encode
decode: Final = msgspec.json.decode
DecodeErrors: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises on bad input."""

_SLICE: Final = 64 * 1024
BOM: Final = b"\xef\xbb\xbf"
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""An escape in a string: a surrogate pair, a lone surrogate (the group), or any other."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEY: Final = re.compile(rb'[\s,]*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*')
_END: Final = re.compile(rb"\s*\}")


def decode_leniently(body: bytes) -> Any:
    """`body` decoded, with U+FFFD for each lone surrogate, and without a byte order mark.

    Both are legal JSON (RFC 8259, sections 8.1 and 8.2) that msgspec refuses. Raises one of DecodeErrors.
    """
    try:
        return decode(body)
    except msgspec.DecodeError:
        return decode(whole_surrogates(body.removeprefix(BOM)))


def whole_surrogates(body: bytes) -> bytes:
    """`body` with the escape of U+FFFD for each lone surrogate; every other byte keeps its position."""
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)


def split_object(body: bytes, last: str | None = None) -> tuple[dict[str, msgspec.Raw], dict[str, Span]]:
    """The top-level values of a JSON object, and their positions in `body`; positions only up to the key `last`.

    msgspec walks the nesting; we only step from value to value, so the cost is one comparison per top-level key,
    however large the prompt. A lone surrogate is U+FFFD in the values, and a byte order mark is white space; positions
    are those in `body` all the same. Raises InvalidRequest for anything but one well-formed object without duplicate
    keys: a provider might read the other of two values than we routed by.
    """
    try:
        values = _values(body)
    except InvalidRequest:
        lenient = whole_surrogates(b"   " + body[len(BOM) :] if body.startswith(BOM) else body)
        if lenient == body:
            raise
        body = lenient
        values = _values(body)
    spans: dict[str, Span] = {}
    at = body.index(b"{") + 1
    # in text order, except that a duplicate key has its last value at its first position
    for key, value in values.items():
        match = _KEY.match(body, at)
        text = bytes(value)
        if match is None or (match[1] != key.encode() and not _decodes_to(match[1], key)):
            raise _duplicate_key(body)
        start = match.end()
        if not body.startswith(text, start):
            raise _duplicate_key(body)
        spans[key] = (start, at := start + len(text))
        if key == last:
            return values, spans
    if _END.match(body, at) is None:
        raise _duplicate_key(body)
    return values, spans


def _values(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        _check_utf8(body)
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


def _check_utf8(body: bytes) -> None:
    """Raises UnicodeDecodeError. In slices: a thread that decodes megabytes in one go keeps the loop's waiting."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(body), _SLICE):
        decoder.decode(body[at : at + _SLICE], at + _SLICE >= len(body))


def _duplicate_key(body: bytes) -> InvalidRequest:
    """The error. It names the key unless that takes long: the standard library's parser is slow, but reports all pairs."""
    if len(body) > _SLICE:
        return InvalidRequest("a key is given twice")
    try:
        keys = json.loads(body, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
    except (ValueError, RecursionError):  # msgspec accepts some input that it does not
        keys = []
    twice = [key for key, times in Counter(keys).items() if times > 1]
    return InvalidRequest("a key is given twice", param=twice[0][:64] if twice else None)


def _decodes_to(text: bytes, key: str) -> bool:
    """Whether `text`, the inside of a JSON string, has escapes and decodes to `key`."""
    return b"\\" in text and key == decode(b'"%b"' % text, type=str)
