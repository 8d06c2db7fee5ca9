"""Whether a text is base64, found out in short calls into C: one call takes 60 ms for a picture of 20 MiB."""

from __future__ import annotations

import binascii
from typing import Final

from manallm_proxy.openai.joined import joined_text

_SLICE: Final = 256 * 1024
"""Characters that one call decodes; a multiple of four, which are three bytes."""
_FIRST: Final = 16


def first_bytes(text: str) -> bytes:
    """The first bytes that `text` stands for; empty if it is not base64 (RFC 4648, section 4: padded, in one line)."""
    first = b""
    for at in range(0, len(text), _SLICE):
        try:
            data = binascii.a2b_base64(text[at : at + _SLICE], strict_mode=True)
        except ValueError:
            return b""
        if at + _SLICE < len(text) and len(data) != _SLICE // 4 * 3:  # padding before the end
            return b""
        first = first or data[:_FIRST]
    return first


def plain(text: str) -> str:
    """`text`, given in either alphabet, padded or not, in the first one and padded."""
    if "-" in text or "_" in text:
        pieces = (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
        text = joined_text([piece.replace("-", "+").replace("_", "/") for piece in pieces])
    padding = "=" * (-len(text) % 4)
    return joined_text([text, padding]) if padding else text


def is_base64(text: str) -> bool:
    """Whether `text` holds any bytes in base64: of either alphabet, padded or not, in lines or not."""
    return bool(first_bytes(plain(text.replace("\n", "").replace("\r", ""))))
