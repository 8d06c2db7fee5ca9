"""How much structure a request may have, told from its bytes before anything is made of them.

What is bounded by bytes alone is not bounded: 32 MiB hold ten million empty lists, and an object for each of them
stops everybody else for seconds. So the structure is counted first, slice by slice, and counting ends at the bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

import msgspec

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.records import define
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.long_values import MOST

_SLICE: Final = 32 * 1024
"""Bytes that are looked at in one go: no call into C holds the interpreter for long."""
_COUNTABLE: Final = 256 * 1024
"""Bytes of which one character may be counted at once, and which may be parsed at once."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_FEW: Final = 32
"""Times that a character is looked for one by one."""
_AT_ONCE: Final = 120_000
"""Commas of a body up to which its lists may be taken apart at once."""
_STRUCTURE: Final = b"{}[]:,"
_ANYTHING_ELSE: Final = bytes(set(range(256)) - set(_STRUCTURE))


class Bounds(Protocol):
    """``limits`` of the configuration, as far as they are about structure."""

    @property
    def keys(self) -> int: ...
    @property
    def messages(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def depth(self) -> int: ...


class TooMuch(Exception):
    """More of something than the bounds allow; the message completes "the request" or "the answer".

    ``key``: of the configuration, which raises the bound.
    """

    def __init__(self, what: str, key: str) -> None:
        super().__init__(f"{what} ({key})")
        self.key = key


class NeedsFullScan(Exception):
    """What has to be looked at takes milliseconds: that belongs in a thread."""


def count_by_characters(body: bytes, bounds: Bounds) -> tuple[int, bool]:
    """As `check_structure` where it is enough to count characters: its answer, and whether that was enough."""
    size = len(body)
    if size <= 6 * bounds.keys:  # short, as most are: the same in one look
        opened = 2 * size - len(body.replace(b"{", b"")) - len(body.replace(b"[", b""))
        if opened <= bounds.depth and opened <= bounds.messages and opened <= bounds.parts and size <= bounds.elements:
            return opened, True
    if size > MOST:
        return 0, False
    most = min(bounds.depth, bounds.messages, bounds.parts)
    opened = _opened(body, most)
    if opened > most:
        return opened, False
    few_keys = size <= 6 * bounds.keys or _number_of(b":", body, bounds.keys) <= bounds.keys
    few = size <= 2 * bounds.elements or opened + _number_of(b",", body, bounds.elements) <= bounds.elements
    return opened, few_keys and few


def count_by_members(body: bytes, short: Shortened | None, bounds: Bounds, most: int = sys.maxsize) -> int | None:
    """As `check_structure`, where the lengths of members tell enough; None: only to walk through `body` can tell.

    `short`: where it is known. Raises NeedsFullScan for more than `most` of them, which each take a microsecond.
    """
    size = len(body)
    if size > MOST:
        return None
    counts = size > 2 * min(_AT_ONCE, bounds.elements)  # a value takes two bytes with its comma
    commas = _number_of(b",", body, max(_AT_ONCE, bounds.elements)) if counts else size // 2
    if commas > _AT_ONCE:
        return None
    opened = _opened_in_long(short, bounds, most) if short is not None else None
    if opened is None and size <= _COUNTABLE:
        opened = _opened_in_members(body, bounds, most)
    if opened is None or opened > bounds.parts or (counts and opened + commas > bounds.elements):
        return None
    return opened


def check_structure(body: bytes, bounds: Bounds) -> int:
    """How many objects and lists a body has, which may be broken JSON; a few more where braces stand in its texts.

    Raises InvalidRequest for more of something than `bounds` allow.
    """
    try:
        return count_structure(body, bounds, "limits")
    except TooMuch as error:
        raise InvalidRequest(f"the request {error}") from None


def count_structure(body: bytes, bounds: Bounds, section: str) -> int:
    """As `check_structure`. Raises TooMuch; `section` of the configuration has the bounds."""
    opened, sure = count_by_characters(body, bounds)
    if not sure and len(body) <= _COUNTABLE and (found := count_by_members(body, None, bounds)) is not None:
        opened, sure = found, True
    if sure:  # nearly every request ends here
        return opened
    count = _Count(bounds, section)
    for structure in _structure(body):
        count.add(structure)
    return count.parts


def _number_of(character: bytes, text: bytes, enough: int = sys.maxsize) -> int:
    """To delete what is rare takes a twentieth of the time that `bytes.count` takes (CPython 3.11).

    Above `enough` it does not count on.
    """
    size = len(text)
    if size <= _SLICE:
        return size - len(text.replace(character, b""))
    number, at = 0, text.find(character)
    while at >= 0 and number < _FEW:  # what is very rare: at the speed of memory, and without a copy
        number, at = number + 1, text.find(character, at + 1)
    for start in range(at, size, _SLICE) if at >= 0 else ():
        piece = text[start : start + _SLICE]
        number += len(piece) - len(piece.replace(character, b""))
        if number > enough:
            break
    return number


def _opened(text: bytes, enough: int = sys.maxsize) -> int:
    """Braces and brackets that open, those in strings included."""
    return _number_of(b"{", text, enough) + _number_of(b"[", text, enough)


def _opened_in_long(short: Shortened, bounds: Bounds, most: int) -> int | None:
    """What is left without the few long values is counted exactly; of these, members that are short cannot be deep."""
    try:
        lists = [_LIST.decode(each.value) for each in short.values if _starts(each.value, b"[")]
        _refuse_many(lists, most)
        if bounds.depth < 2 or _opened(short.left) + sum(map(len, lists)) > bounds.messages:
            return None
        opened = count_structure(short.left, bounds, "limits") + len(lists)
        objects = (each.value for each in short.values if _starts(each.value, b"{"))
        return _opened_in_all(chain(objects, *lists), bounds.depth - 2, opened)
    except (TooMuch, *DecodeErrors):
        return None


def _opened_in_all(values: Iterable[msgspec.Raw], depth: int, opened: int = 0) -> int | None:
    """`opened`, and what opens in `values`, at most; None where one may be nested deeper than `depth`."""
    for value in values:
        if len(value) <= 2 * depth:
            opened += len(value) // 2
        elif not _starts(value, b'"'):
            text = bytes(value)
            more: int | None = _opened(text, depth)
            if more is not None and more > depth:
                inner = _LIST.decode(text) if text[:1] == b"[" else _OBJECT.decode(text).values()
                more = _opened_in_all(inner, depth - 1, 1) if depth > 1 else None
            if more is None:
                return None
            opened += more
    return opened


def _starts(value: msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(value)[:1] == bracket


def _refuse_many(lists: list[list[msgspec.Raw]], most: int) -> None:
    if sum(map(len, lists)) > most:
        raise NeedsFullScan


def _opened_in_members(body: bytes, bounds: Bounds, most: int) -> int | None:
    """As `_opened_in_long`, for whatever keys there are."""
    try:
        values = _OBJECT.decode(body)
        texts = [bytes(value) for value in values.values()]
        lists = [_LIST.decode(text) for text in texts if text[:1] == b"["]
    except DecodeErrors:
        return None
    _refuse_many(lists, most)
    if len(values) > bounds.keys or sum(map(len, lists)) > bounds.messages:
        return None
    opened = _opened(body)
    if sum(map(_opened, texts)) + 1 != opened:  # a key was given twice, or has a brace
        return None
    members = [bytes(member) for each in lists for member in each]
    members += [text for text in texts if text[:1] != b"["]
    return opened if max(map(_opened, members), default=0) + 2 <= bounds.depth else None


def _structure(body: bytes) -> Iterator[bytes]:
    """Braces, brackets, colons and commas outside of strings, slice by slice."""
    inside, half = 0, b""
    for at in range(0, len(body), _SLICE):
        piece = half + body[at : at + _SLICE]
        half = b""
        if b"\\" in piece:
            plain = piece.rstrip(b"\\")
            half = b"\\" * ((len(piece) - len(plain)) % 2)  # what it escapes is in the next slice
            piece = plain.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = piece.split(b'"')
        yield b"".join(pieces[inside::2]).translate(None, _ANYTHING_ELSE)
        inside ^= (len(pieces) - 1) % 2


@define
class _Count:
    """What has been seen of one body."""

    _bounds: Bounds
    _section: str
    parts: int = 0
    _elements: int = 0
    _keys: int = 0
    _messages: int = 0
    _depth: int = 0
    _in_list: bool = False
    """The value at the top that is being read is a list."""

    def add(self, structure: bytes) -> None:
        bounds = self._bounds
        opened = structure.count(b"{") + structure.count(b"[")
        self.parts += opened
        self._elements += opened + structure.count(b",")
        self._refuse_over(self.parts, bounds.parts, "parts", "objects and lists")
        self._refuse_over(self._elements, bounds.elements, "elements", "values")
        deepest = self._walk(structure.replace(b",", b""))
        if deepest > bounds.depth:
            raise TooMuch(f"is nested too deeply, over {bounds.depth} levels", f"{self._section}.depth")
        self._refuse_over(self._keys, bounds.keys, "keys", "keys at its top")
        self._refuse_over(self._messages, bounds.messages, "messages", "messages or tools")

    def _refuse_over(self, number: int, bound: int, key: str, what: str) -> None:
        if number > bound:
            raise TooMuch(f"has more than {bound} {what}", f"{self._section}.{key}")

    def _walk(self, structure: bytes) -> int:
        """Follows the nesting; the deepest level."""
        depth = deepest = self._depth
        for byte in structure:
            if byte == 0x3A:  # a colon
                if depth == 1:
                    self._keys += 1
            elif byte in b"}]":
                depth -= 1
            else:
                if depth == 1:
                    self._in_list = byte == 0x5B  # [
                elif depth == 2 and self._in_list and byte == 0x7B:  # {
                    self._messages += 1
                depth += 1
                if depth > deepest:
                    deepest = depth
        self._depth = depth
        return deepest
