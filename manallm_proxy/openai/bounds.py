"""How much structure a request may have, told from its bytes before anything is made of them.

What is bounded by bytes alone is not bounded: 32 MiB hold ten million empty lists, and an object for each of them
stops everybody else for seconds. So the structure is counted first, slice by slice, and counting ends at the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
from attrs import define

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.openai.json_object import DecodeErrors

_SLICE: Final = 32 * 1024
"""Bytes that are looked at in one go: no call into C holds the interpreter for long."""
_COUNTABLE: Final = 256 * 1024
"""Bytes of which one character may be counted at once, and which may be parsed at once."""
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
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


def check_structure(body: bytes, bounds: Bounds) -> int:
    """How many objects and lists a body has, which may be broken JSON; a few more where braces stand in its texts.

    Raises InvalidRequest for more of something than `bounds` allow.
    """
    size = len(body)
    if size <= 6 * bounds.keys:  # short, as most are: `_is_surely_within` in one look
        opened = 2 * size - len(body.replace(b"{", b"")) - len(body.replace(b"[", b""))
        if opened <= bounds.depth and opened <= bounds.messages and opened <= bounds.parts and size <= bounds.elements:
            return opened
    try:
        return count_structure(body, bounds, "limits")
    except TooMuch as error:
        raise InvalidRequest(f"the request {error}") from None


def count_structure(body: bytes, bounds: Bounds, section: str) -> int:
    """As `check_structure`. Raises TooMuch; `section` of the configuration has the bounds."""
    if len(body) <= _COUNTABLE:
        opened = _opened(body)
        if _is_surely_within(body, opened, bounds):  # nearly every request ends here
            return opened
    count = _Count(bounds, section)
    for structure in _structure(body):
        count.add(structure)
    return count.parts


def _number_of(character: bytes, text: bytes) -> int:
    """To delete what is rare takes a twentieth of the time that `bytes.count` takes (CPython 3.11)."""
    return len(text) - len(text.replace(character, b""))


def _opened(text: bytes) -> int:
    """Braces and brackets that open, those in strings included."""
    return _number_of(b"{", text) + _number_of(b"[", text)


def _is_surely_within(body: bytes, opened: int, bounds: Bounds) -> bool:
    """False where only a closer look can tell. A value takes two bytes with its comma, a key six."""
    if opened > bounds.parts or len(body) > 2 * bounds.elements:
        return False
    few_keys = len(body) <= 6 * bounds.keys or _number_of(b":", body) <= bounds.keys
    if few_keys and opened <= bounds.depth and opened <= bounds.messages:
        return True
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
