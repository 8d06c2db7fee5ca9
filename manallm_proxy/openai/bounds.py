"""How much structure a request may have, told from its bytes before anything is made of them.

What is bounded by bytes alone is not bounded: 32 MiB hold ten million empty lists, and an object for each of them
stops everybody else for seconds. So the structure is counted first, slice by slice, and counting ends at the bound.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Final, Protocol

import msgspec
from attrs import define

from manallm_proxy.contract.errors import InvalidRequest
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
_AT_ONCE: Final = 100_000
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


def glance(body: bytes, bounds: Bounds) -> tuple[int, bool]:
    """As `check_structure` where it is enough to count characters: its answer, and whether that was enough."""
    size = len(body)
    if size <= 6 * bounds.keys:  # short, as most are: the same in one look
        opened = 2 * size - len(body.replace(b"{", b"")) - len(body.replace(b"[", b""))
        if opened <= bounds.depth and opened <= bounds.messages and opened <= bounds.parts and size <= bounds.elements:
            return opened, True
    if size > MOST:
        return 0, False
    opened = _opened(body)
    if opened > min(bounds.depth, bounds.messages, bounds.parts):
        return opened, False
    few_keys = size <= 6 * bounds.keys or _number_of(b":", body, bounds.keys) <= bounds.keys
    few = size <= 2 * bounds.elements or opened + _number_of(b",", body, bounds.elements) <= bounds.elements
    return opened, few_keys and few


def look(body: bytes, opened: int, short: Shortened | None, bounds: Bounds) -> bool:
    """Whether a body with so many braces is surely within its bounds, as the lengths of its members tell.

    `short`: where it is known. False: only to walk through it can tell.
    """
    size = len(body)
    if size > MOST or opened > bounds.parts or (size > 2 * _AT_ONCE and _number_of(b",", body, _AT_ONCE) > _AT_ONCE):
        return False
    if size > 2 * bounds.elements and opened + _number_of(b",", body, bounds.elements) > bounds.elements:
        return False
    if short is not None and _is_within_long(short, bounds):
        return True
    return size <= _COUNTABLE and _is_surely_within(body, opened, bounds)


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
    opened, sure = glance(body, bounds)
    if sure or (len(body) <= _COUNTABLE and look(body, opened, None, bounds)):  # nearly every request ends here
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


def _opened(text: bytes) -> int:
    """Braces and brackets that open, those in strings included."""
    return _number_of(b"{", text) + _number_of(b"[", text)


def _is_within_long(short: Shortened, bounds: Bounds) -> bool:
    """What is left without the few long values is counted exactly; of these, members that are short cannot be deep."""
    try:
        lists = [_LIST.decode(each.value) for each in short.values if _starts(each.value, b"[")]
        if bounds.depth < 2 or _opened(short.left) + sum(map(len, lists)) > bounds.messages:
            return False
        count_structure(short.left, bounds, "limits")
        objects = [each.value for each in short.values if _starts(each.value, b"{")]
        return all(_is_shallow(value, bounds.depth - 2) for value in (*objects, *chain.from_iterable(lists)))
    except (TooMuch, *DecodeErrors):
        return False


def _starts(value: msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(value)[:1] == bracket


def _is_shallow(value: msgspec.Raw, depth: int) -> bool:
    """Whether `value` is surely nested no deeper than `depth`. A string that is long takes one look, and no copy."""
    if len(value) <= 2 * depth or _starts(value, b'"'):
        return True
    text = bytes(value)
    if _opened(text) <= depth:
        return True
    inner = _LIST.decode(text) if text[:1] == b"[" else _OBJECT.decode(text).values()
    return depth > 1 and all(_is_shallow(each, depth - 1) for each in inner)


def _is_surely_within(body: bytes, opened: int, bounds: Bounds) -> bool:
    """False where only a closer look can tell. A value takes two bytes with its comma, a key six."""
    try:
        values = _OBJECT.decode(body)
        texts = [bytes(value) for value in values.values()]
        lists = [_LIST.decode(text) for text in texts if text[:1] == b"["]
    except DecodeErrors:
        return False
    if len(values) > bounds.keys or sum(map(len, lists)) > bounds.messages:
        return False
    if sum(map(_opened, texts)) + 1 != opened:  # a key was given twice, or has a brace
        return False
    members = [bytes(member) for each in lists for member in each]
    members += [text for text in texts if text[:1] != b"["]
    return max(map(_opened, members), default=0) + 2 <= bounds.depth


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
