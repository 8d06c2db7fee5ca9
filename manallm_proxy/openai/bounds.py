"""How much structure a request may have, told from its bytes before anything is made of them.

What is bounded by bytes alone is not bounded: 32 MiB hold ten million empty lists, and an object for each of them
stops everybody else for seconds. So the structure is counted first, slice by slice, and counting ends at the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from attrs import define

from manallm_proxy.contract.errors import InvalidRequest

_SLICE: Final = 32 * 1024
"""Bytes that are looked at in one go: no call into C holds the interpreter for long."""
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
    """How many objects, lists and commas a body has, which may be broken JSON; a few more where they are few.

    Raises InvalidRequest for more of something than `bounds` allow.
    """
    try:
        return count_structure(body, bounds, "limits")
    except TooMuch as error:
        raise InvalidRequest(f"the request {error}") from None


def count_structure(body: bytes, bounds: Bounds, section: str) -> int:
    """As `check_structure`. Raises TooMuch; `section` of the configuration has the bounds."""
    if len(body) <= _SLICE:
        opened = body.count(b"{") + body.count(b"[")
        few = opened <= min(bounds.depth, bounds.messages, bounds.parts) and body.count(b":") <= bounds.keys
        if few and (elements := opened + body.count(b",")) <= bounds.elements:
            return elements  # strings included, so nearly every request ends here
    count = _Count(bounds, section)
    for structure in _structure(body):
        count.add(structure)
    return count.elements


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
    _parts: int = 0
    elements: int = 0
    _keys: int = 0
    _messages: int = 0
    _depth: int = 0
    _in_list: bool = False
    """The value at the top that is being read is a list."""

    def add(self, structure: bytes) -> None:
        bounds = self._bounds
        opened = structure.count(b"{") + structure.count(b"[")
        self._parts += opened
        self.elements += opened + structure.count(b",")
        self._refuse_over(self._parts, bounds.parts, "parts", "objects and lists")
        self._refuse_over(self.elements, bounds.elements, "elements", "values")
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
