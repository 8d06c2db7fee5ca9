"""Checks base64 in short calls into C: for an image of 20 MiB, a single call would take 60 ms."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator
from typing import Final

from manallm_proxy.openai.joined import joined_text

_SLICE: Final = 256 * 1024
"""Characters decoded per call; a multiple of four, which make three bytes."""
_FIRST: Final = 16
_FIRST_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")
_OTHERS: Final = "-_\n\r"
"""Of the second alphabet, and between lines."""


def first_bytes(text: str | bytes, start: int = 0, end: int | None = None) -> bytes:
    """The first decoded bytes; empty if ``text[start:end]`` is not base64 (RFC 4648, section 4: padded, in one line).

    `text`: may be JSON, in which base64 stands as it is.
    """
    end = len(text) if end is None else end
    if (end - start) % 4:  # `a2b_base64` takes "QUJD=", as a whole
        return b""
    return _first_of(text[at : min(at + _SLICE, end)] for at in range(start, end, _SLICE))


def _first_of(pieces: Iterable[str | bytes]) -> bytes:
    """The same of base64 in `pieces`, each of whole groups of four characters, and at least one."""
    first, padding = b"", 0
    for piece in pieces:
        if padding:  # before the end
            return b""
        try:
            data = binascii.a2b_base64(piece, strict_mode=True)
        except ValueError:
            return b""
        padding = len(piece) // 4 * 3 - len(data)
        if padding > 2:  # "QUJD====", of which Python takes the first half
            return b""
        first = first or data[:_FIRST]
    return first


def plain(text: str) -> str:
    """`text`, given in either alphabet, padded or not, in the first one and padded."""
    if "-" in text or "_" in text:
        pieces = (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
        text = joined_text([*map(_in_first_alphabet, pieces)])
    padding = "=" * (-len(text) % 4)
    return joined_text([text, padding]) if padding else text


def in_first_alphabet(text: memoryview) -> Iterator[bytes]:
    """`text`, given in either alphabet, in pieces."""
    return (bytes(text[at : at + _SLICE]).translate(_FIRST_ALPHABET) for at in range(0, len(text), _SLICE))


def is_base64_line(text: bytes, start: int, end: int) -> bool:
    """As `is_base64` of ``text[start:end]``, which may be JSON; False for what is not in one line."""
    pieces = in_first_alphabet(memoryview(text)[start:end])
    return bool(_first_of(piece + b"=" * (-len(piece) % 4) for piece in pieces))


def _in_first_alphabet(text: str) -> str:
    return text.replace("-", "+").replace("_", "/")


def is_base64(text: str, start: int = 0) -> bool:
    """Whether ``text[start:]`` is base64, in either alphabet, padded or not, in lines or not, of at least one byte."""
    if (len(text) - start) % 4 == 0 and all(text.find(other, start) < 0 for other in _OTHERS):
        return bool(first_bytes(text, start))  # as nearly all are: nothing is copied
    return bool(_first_of(_plain_pieces(text, start)))


def _plain_pieces(text: str, start: int) -> Iterator[str]:
    """``text[start:]`` as `plain`, and in one line."""
    held = ""
    for at in range(start, len(text), _SLICE):
        held += _in_first_alphabet(text[at : at + _SLICE]).replace("\n", "").replace("\r", "")
        if whole := len(held) // 4 * 4:
            yield held[:whole]
            held = held[whole:]
    if held:
        yield held + "=" * (-len(held) % 4)
