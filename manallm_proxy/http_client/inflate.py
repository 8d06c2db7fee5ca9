"""Compressed bodies, which some servers send although we ask for none: inflated piece by piece."""

from __future__ import annotations

import zlib
from typing import Any, Final

INFLATE_LIMIT: Final = 256 * 1024
"""Max bytes that one read of a compressed body returns, so that the reader can limit a zip bomb."""
IDENTITY: Final = frozenset({b"", b"identity", b"none"})
"""``none`` is not a registered coding, but servers send it to keep others from compressing an event stream."""
_WINDOW_BITS: Final = {b"gzip": 31, b"x-gzip": 31, b"deflate": zlib.MAX_WBITS}


def inflater(encoding: bytes) -> Any:
    """A ``zlib.decompressobj`` for a content coding in lower case; None for an unknown one."""
    bits = _WINDOW_BITS.get(encoding)
    return zlib.decompressobj(bits) if bits is not None else None
