"""Counts the structure of JSON text exactly, slice by slice, without creating an object for any of its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from manallm_proxy.contract.records import define

_SLICE: Final = 32 * 1024
"""Bytes scanned per call, so that no call into C holds the GIL for long."""
_STRUCTURE: Final = b"{}[]:,"
_ANYTHING_ELSE: Final = bytes(set(range(256)) - set(_STRUCTURE))


class Bounds(Protocol):
    """The part of the configuration's ``limits`` that concerns structure."""

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
    """A limit is exceeded; the message completes "the request" or "the answer".

    ``key``: the configuration key that raises the limit.
    """

    def __init__(self, what: str, key: str) -> None:
        super().__init__(f"{what} ({key})")
        self.key = key


def structure_of(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Braces, brackets, colons and commas outside of strings, and the number of their quotes, slice by slice."""
    inside, half = 0, b""
    for at in range(0, len(body), _SLICE):
        piece = half + body[at : at + _SLICE]
        half = b""
        if b"\\" in piece:
            plain = piece.rstrip(b"\\")
            half = b"\\" * ((len(piece) - len(plain)) % 2)  # the character that it escapes is in the next slice
            piece = plain.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = piece.split(b'"')
        quotes = len(pieces) - 1
        yield b"".join(pieces[inside::2]).translate(None, _ANYTHING_ELSE), quotes
        inside ^= quotes % 2


@define
class Count:
    """Running counts for one body."""

    _bounds: Bounds
    _section: str
    parts: int = 0
    _elements: int = 0
    _quotes: int = 0
    _keys: int = 0
    _messages: int = 0
    _depth: int = 0
    _in_list: bool = False
    """Whether the current top-level value is a list."""

    def add(self, structure: bytes, quotes: int) -> None:
        bounds = self._bounds
        opened = structure.count(b"{") + structure.count(b"[")
        self.parts += opened
        self._elements += opened + structure.count(b",") + structure.count(b":")
        self._refuse_over(self.parts, bounds.parts, "parts", "objects and lists")
        self._quotes += quotes
        self._refuse_over(self._elements + self._quotes // 2, bounds.elements, "elements", "values and keys")
        deepest = self._walk(structure.replace(b",", b""))
        if deepest > bounds.depth:
            raise TooMuch(f"is nested too deeply, over {bounds.depth} levels", f"{self._section}.depth")
        self._refuse_over(self._keys, bounds.keys, "keys", "keys at its top")
        self._refuse_over(self._messages, bounds.messages, "messages", "messages or tools")

    def _refuse_over(self, number: int, bound: int, key: str, what: str) -> None:
        if number > bound:
            raise TooMuch(f"has more than {bound} {what}", f"{self._section}.{key}")

    def _walk(self, structure: bytes) -> int:
        """Follows the nesting. Returns the deepest level."""
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
