"""Decodes and splits large JSON in many short calls into C; `sliced_writer` encodes it.

A thread does not block the event loop, but each call into C holds the GIL to its end: msgspec takes 30 ms for 32 MiB of
text, and 40 ms for a million numbers. So a large value is cut between the members of its lists and objects, and a long
string between its characters; the pieces are decoded by msgspec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.joined import joined_ascii, joined_text

SMALL: Final = 32 * 1024
"""Max bytes decoded per call."""
LARGE_BYTES: Final = 2**20
LARGE_ELEMENTS: Final = 50_000
"""Above one of these, a text is decoded in slices: below, it takes a few milliseconds."""
TEXT: Final = 32 * 1024
"""Bytes or characters of a string that one call works on."""
_KEY_LIMIT: Final = 256 * 1024
"""Max bytes of the key of a large value."""
NESTED_LIMIT: Final = 24
"""Max levels above a large value, since each level is scanned once more."""
_SLICE: Final = 16 * 1024
"""Bytes scanned at once."""
_OPEN: Final = (b"[", b"{")
_CLOSE: Final = (b"]", b"}")
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_CURLY: Final = bytes.maketrans(b"[]", b"{}")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ROUNDS: Final = 8
"""Max levels that open and close within a slice and are recognised without a walk."""
_ESCAPED: Final = re.compile(rb"(?:[^\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+", re.DOTALL)
"""Text up to an escape that would be cut."""
_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_HIGH: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}$")
"""A high surrogate."""
KEY: Final = re.compile(rb'\s*("(?:[^"\\]++|\\.)*+")\s*:\s*', re.DOTALL)
_BLANK: Final = b" \t\r\n"

Decode = Callable[[bytes], Any]
Span = tuple[int, int]


def is_large(text: bytes) -> bool:
    """Whether decoding `text` in one call would noticeably block."""
    size = len(text)
    return size > LARGE_BYTES or (size > LARGE_ELEMENTS and text.count(b",") > LARGE_ELEMENTS)


def decode_large(text: bytes, decode: Decode, span: Span | None = None) -> Any:
    """`text`, or the part at `span`, decoded; small parts of it by `decode`.

    Raises DecodeError, RecursionError, and what `decode` raises.
    """
    start, end = trimmed(text, *(span or (0, len(text))))
    value = _value(text, start, end, decode, NESTED_LIMIT)
    free_later(value)
    return value


def trimmed(text: bytes | memoryview, start: int, end: int) -> Span:
    """The span without surrounding white space."""
    while start < end and text[start] in _BLANK:
        start += 1
    while end > start and text[end - 1] in _BLANK:
        end -= 1
    return start, end


def members(text: bytes, start: int, end: int) -> Iterator[Span]:
    """Spans of complete members of the list or object at `start`: many small ones together, each large one alone.

    Spans are separated by a comma. Brackets are not checked: if each span is well-formed, so is the whole.
    Raises DecodeError for a list or object that does not end.
    """
    if end - start < 2 or text[end - 1] != (0x5D if text[start] == 0x5B else 0x7D):
        raise msgspec.DecodeError("a list or object does not end")
    begin = start + 1
    cut = begin - 1
    for comma in _commas(text, begin, end - 1):
        if comma - begin > SMALL and cut >= begin:
            yield begin, cut
            begin = cut + 1
        if comma - begin > SMALL:
            yield begin, comma
            begin = comma + 1
        cut = comma
    if end - 1 - begin > SMALL and cut >= begin:
        yield begin, cut
        begin = cut + 1
    yield begin, end - 1


def _commas(text: bytes, at: int, end: int) -> Iterator[int]:
    """Positions of commas between members: the first and the last one of each slice."""
    depth, inside = 0, False
    while at < end:
        stop = min(at + _SLICE, end)
        piece = text[at:stop]
        if piece.endswith(b"\\") and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = text[at : (stop := min(stop + 1, end))]  # including the character that the last one escapes
        plain, inside = _without_strings(piece, inside)
        if depth == 0 or _goes_up(plain, depth):
            depth, first, last = _walked(plain, depth)
            if first >= 0:
                yield at + first
                yield at + last
        else:
            depth += sum(map(plain.count, _OPEN)) - sum(map(plain.count, _CLOSE))
        at = stop
    if depth or inside:
        raise msgspec.DecodeError("a list, an object or a string does not end")


def _without_strings(piece: bytes, inside: bool) -> tuple[bytes, bool]:
    """`piece` with every character of strings replaced, and whether it ends in a string. `inside`: it begins in one."""
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    if b'"' not in piece:
        return b"" if inside else piece, inside
    parts = piece.split(b'"')
    first = 0 if inside else 1
    parts[first::2] = [b"_" * len(part) for part in parts[first::2]]
    return b"_".join(parts), inside ^ (len(parts) % 2 == 0)


def _goes_up(plain: bytes, depth: int) -> bool:
    """Whether anything in `plain`, which begins at `depth`, may be at depth 0."""
    closed = sum(map(plain.count, _CLOSE))
    if closed < depth:
        return False
    brackets = plain.translate(_CURLY, _NO_BRACKETS)
    for _ in range(_ROUNDS):
        size = len(brackets)
        brackets = brackets.replace(b"{}", b"")
        if len(brackets) == size:
            break
    else:
        return True
    opened = brackets.find(b"{")
    return (len(brackets) if opened < 0 else opened) >= depth


def _walked(plain: bytes, depth: int) -> tuple[int, int, int]:
    """The depth at the end, and the positions of the first and last comma at depth 0; -1: none."""
    first = last = -1
    at = 0
    for found in _BRACKET.finditer(plain):
        here = found.start()
        if depth == 0 and (comma := plain.rfind(b",", at, here)) >= 0:
            first, last = plain.find(b",", at, here) if first < 0 else first, comma
        depth += 1 if plain[here] in b"[{" else -1
        if depth < 0:
            raise msgspec.DecodeError("brackets do not match")
        at = here + 1
    if depth == 0 and (comma := plain.rfind(b",", at)) >= 0:
        first, last = plain.find(b",", at) if first < 0 else first, comma
    return depth, first, last


def end_of_string(text: bytes, at: int, end: int) -> int:
    """The position of the closing quote of a string whose first character is at `at`."""
    while at < end:
        stop = min(at + TEXT, end)
        quote = text.find(b'"', at, stop)
        plain = stop if quote < 0 else quote
        if text.find(b"\\", at, plain) < 0:
            if quote >= 0:
                return quote
            at = stop
            continue
        found = _STRING.match(text, at, stop)
        assert found is not None  # it may match the empty string
        at = found.end()
        if at < end and text[at] == 0x22:
            return at
        if at < stop and at + 1 >= end:
            break
        if at < stop and found.end() == found.start():
            break
    raise msgspec.DecodeError("a string does not end")


def _value(text: bytes, start: int, end: int, decode: Decode, levels: int) -> Any:
    first = text[start : start + 1]
    if first == b'"':
        return decode(text[start:end]) if end - start <= TEXT else _string(text, start, end, decode)
    if end - start <= SMALL or first not in (b"[", b"{"):
        return decode(text[start:end])
    if not levels:
        raise RecursionError
    return (_list if first == b"[" else _object)(text, start, end, decode, levels - 1)


def _list(text: bytes, start: int, end: int, decode: Decode, levels: int) -> list[Any]:
    found: list[Any] = []
    for a, b in members(text, start, end):
        if b - a <= 2 * SMALL:
            some = decode(b"[%b]" % text[a:b])
            if not some:
                raise msgspec.DecodeError("a value is missing")
            found += some
        else:
            found.append(_value(text, *trimmed(text, a, b), decode, levels))
    return found


def _object(text: bytes, start: int, end: int, decode: Decode, levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for a, b in members(text, start, end):
        if b - a <= 2 * SMALL:
            some = decode(b"{%b}" % text[a:b])
            if not some:
                raise msgspec.DecodeError("a value is missing")
            found |= some
        else:
            name, at = key_at(text, a, b)
            found[decode(name)] = _value(text, *trimmed(text, at, b), decode, levels)
    return found


def key_at(text: bytes, start: int, end: int) -> tuple[bytes, int]:
    """The raw key of the one member between `start` and `end`, and the position of its value."""
    found = KEY.match(text, start, min(end, start + _KEY_LIMIT))
    if found is None:
        raise msgspec.DecodeError("a key is missing, or too long")
    return found[1], found.end()


def _string(text: bytes, start: int, end: int, decode: Decode) -> str:
    pieces = (text[at : at + TEXT] for at in range(start, end, TEXT))
    if all(piece.isascii() and b"\\" not in piece for piece in pieces):
        return joined_ascii(end - start - 2, _texts(text, start, end, decode))
    return joined_text(list(_texts(text, start, end, decode)))


def between_escapes(text: bytes) -> Iterator[bytes]:
    """`text` in short pieces, cut outside of escapes and characters. Raises DecodeError for one that has no end."""
    return string_pieces(text, 0, len(text))


def _texts(text: bytes, start: int, end: int, decode: Decode) -> Iterator[Any]:
    """The parts of the string there, each decoded by `decode`."""
    at, last = start + 1, end - 1
    if end_of_string(text, at, end) != last:
        raise msgspec.DecodeError("something follows a string")
    for piece in string_pieces(text, at, last):
        yield decode(b'"%b"' % piece)


def string_pieces(text: bytes, at: int, last: int) -> Iterator[bytes]:
    """What is in a string, from `at` to `last`, in short pieces, cut outside of escapes and characters."""
    while at < last:
        stop = safe_cut(text, at, min(at + TEXT, last), last)
        yield text[at:stop]
        at = stop


def safe_cut(text: bytes, at: int, stop: int, last: int) -> int:
    """The position at or before `stop` where a string may be cut: not in an escape, a surrogate pair or a character."""
    if stop == last:
        return last
    if text.find(b"\\", at, stop) >= 0:
        found = _ESCAPED.match(text, at, stop)
        assert found is not None
        half = _HIGH.search(text, max(at, found.end() - 6), found.end())
        stop = (
            half.start()
            if half is not None and at < half.start() and not is_escaped(text, half.start())
            else found.end()
        )
        if stop == at:  # no escape at all
            raise msgspec.DecodeError("invalid escape")
    while stop - 1 > at and text[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop


def is_escaped(text: bytes, at: int) -> bool:
    """Whether the character there is, by the backslashes before it."""
    first = at
    while first and text[first - 1] == 0x5C:
        first -= 1
    return (at - first) % 2 == 1


def check_large(text: bytes, start: int, end: int, check: Decode, levels: int = NESTED_LIMIT) -> None:
    """Whether the value there is valid JSON; small parts are checked by `check`. Raises as `decode_large`."""
    first = text[start : start + 1]
    if first == b'"' and end - start > TEXT:
        for _ in _texts(text, start, end, check):
            pass
    elif end - start <= SMALL or first not in (b"[", b"{"):
        check(text[start:end])
    elif not levels:
        raise RecursionError
    else:
        around = b"[%b]" if first == b"[" else b"{%b}"
        for a, b in members(text, start, end):
            if b - a <= 2 * SMALL:
                if not (some := text[a:b].strip(_BLANK)):
                    raise msgspec.DecodeError("a value is missing")
                check(around % some)
            else:
                at = a
                if first == b"{":
                    name, at = key_at(text, a, b)
                    check(name)
                check_large(text, *trimmed(text, at, b), check, levels - 1)
