"""Compressed bodies, which some servers send although we ask for none: inflated piece by piece."""

from __future__ import annotations

import zlib
from typing import Any, Final

INFLATE_LIMIT: Final = 256 * 1024
"""Max bytes that one read of a compressed body returns, so that the reader can limit a zip bomb."""
IDENTITY: Final = frozenset({b"", b"identity", b"none"})
"""``none`` is not a registered coding, but servers send it to keep others from compressing an event stream."""
_GZIP: Final = 31
_WINDOW_BITS: Final = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}
_MAGIC: Final = b"\x1f\x8b"
"""The beginning of each member of a gzip body."""
_MEMBERS: Final = 64
"""Max members that one call inflates."""
_PART: Final = 4096
"""Max bytes that a later member is given at a time: what is behind its end is copied."""


class Inflater:
    """As ``zlib.decompressobj``, but of several gzip members that follow each other all are read (RFC 1952, 2.2)."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._member: Any = zlib.decompressobj(bits)
        self._is_first = True
        self._ended = b""
        """The first byte behind a member, if the second one has not arrived yet."""
        self.unconsumed_tail = b""
        """What `decompress` has to be given next, before bytes that have arrived since."""

    @property
    def eof(self) -> bool:
        """Whether what came so far is whole."""
        return bool(self._member.eof)

    def decompress(self, data: bytes, limit: int) -> bytes:
        """At most `limit` bytes; may be none although more follows.

        Raises ``zlib.error``. What follows the last member and is none is left out, as by gzip.
        """
        out: list[bytes] = []
        if self._ended:
            data, self._ended = self._ended + data, b""
        view, at = memoryview(data), 0
        for _ in range(_MEMBERS):
            if self._member.eof and not self._begins_next(bytes(view[at : at + len(_MAGIC)])):
                at = len(data)
            if at == len(data) or limit <= 0:
                break
            end = len(data) if self._is_first else min(at + _PART, len(data))
            out.append(self._member.decompress(view[at:end], limit))
            limit -= len(out[-1])
            at = end - len(self._member.unused_data or self._member.unconsumed_tail)
        self.unconsumed_tail = bytes(view[at:])
        return b"".join(out)

    def _begins_next(self, front: bytes) -> bool:
        if self._bits != _GZIP or front != _MAGIC:
            self._ended = b"" if front != _MAGIC[:1] else _MAGIC[:1]
            return False
        self._member, self._is_first = zlib.decompressobj(self._bits), False
        return True


def inflater(encoding: bytes) -> Inflater | None:
    """For a content coding in lower case; None for an unknown one."""
    bits = _WINDOW_BITS.get(encoding)
    return Inflater(bits) if bits is not None else None
