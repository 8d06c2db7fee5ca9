"""Joins many parts to long bytes or texts, in short calls that each copy at most one part.

``b"".join`` and ``"".join`` copy everything in one call, into memory that is touched for the first time, which costs
more than the copy: the event loop waits a millisecond per megabyte, in whichever thread that is. A growing buffer is
remapped by the system instead, without a copy.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define

SMALL: Final = 2**20
"""Bytes or characters that are joined in one call."""
PART: Final = 64 * 1024
"""Bytes of one call."""
_APART: Final = 64 * 2**20
"""Bytes of a block that malloc holds apart, see `allocator.APART`. It grows by moving its pages, while one that
began among the small ones is copied when it finds no more room there, all of it at once. glibc keeps the small ones of
a thread in heaps of this size, so that no free room in them, which comes to be megabytes, is large enough."""
_TRIMMED: Final = 4 * 2**20
"""Characters of parts after which their memory is given back, a millisecond's work: malloc does so by itself only for
what lies behind all that is still held."""
_WIDTHS: Final = (0x7F, 0xFF, 0xFFFF, 0x10FFFF)
"""The largest characters of CPython's four string representations (PEP 393)."""

Part = bytes | bytearray | memoryview


@define(eq=False)
class Growing:
    """Bytes that grow by parts, and finally become one `bytes` without another copy."""

    _buffer: io.BytesIO = field(factory=io.BytesIO, repr=False)
    _group: list[Part] = field(factory=list, repr=False)
    """Small parts, which are added together."""
    _size: int = 0
    """Bytes of ``_group``."""

    def add(self, part: Part) -> None:
        self._group.append(part)
        self._size += len(part)
        if self._size > PART // 4:
            self._flush()

    def take(self) -> bytes:
        """All bytes. Leaves this empty."""
        if self._buffer.tell():
            self._flush()
            joined = self._buffer.getvalue()  # the buffer itself, not a copy
            self._buffer = io.BytesIO()
        else:
            joined = b"".join(self._group)
        self._group, self._size = [], 0
        return joined

    def _flush(self) -> None:
        if not self._buffer.tell() and type(self._buffer) is io.BytesIO:
            self._buffer = io.BytesIO(bytes(_APART))  # of which no page is touched
            self._buffer.truncate(0)
        if self._size <= PART:
            self._buffer.write(b"".join(self._group))
        else:
            for part in self._group:
                view = memoryview(part)
                for at in range(0, len(view), PART):
                    self._buffer.write(view[at : at + PART])
        self._group.clear()
        self._size = 0


def joined_bytes(parts: Iterable[Part]) -> bytes:
    """As ``b"".join``."""
    growing = Growing()
    for part in parts:
        growing.add(part)
    return growing.take()


def joined_parts(parts: Sequence[Part]) -> bytes:
    """As `joined_bytes`, in one call if they are short."""
    return b"".join(parts) if sum(map(len, parts)) <= SMALL else joined_bytes(parts)


def joined_text(parts: list[str]) -> str:
    """As ``"".join``. Empties `parts` if they are long, so that nothing is held twice."""
    size = sum(map(len, parts))
    if size <= SMALL:
        return "".join(parts)
    if len(parts) == 1:
        return parts.pop()
    width = max(map(_width, parts))
    return _filled(size, width, _popped(parts))


def _popped(parts: list[str]) -> Iterator[str]:
    """`parts` in order; meanwhile the memory of those before is given back."""
    parts.reverse()
    size = 0
    while parts:
        size += len(parts[-1])
        yield parts.pop()
        if size > _TRIMMED:
            _trim()
            size = 0


def joined_lines(lines: Iterable[str]) -> str:
    """As ``"\\n".join``, in short calls where they are long."""
    parts = [part for line in lines for part in ("\n", line)]
    return joined_text(parts[1:])


def tail_of(text: str, start: int) -> str:
    """As ``text[start:]``."""
    if len(text) - start <= SMALL:
        return text[start:]
    parts = (text[at : at + PART] for at in range(start, len(text), PART))
    return joined_ascii(len(text) - start, parts) if text.isascii() else joined_text([*parts])


def encoded_text(text: str) -> bytes:
    """As ``text.encode()``."""
    if len(text) <= SMALL:
        return text.encode()
    return joined_bytes(text[at : at + PART].encode() for at in range(0, len(text), PART))


def decoded_text(data: bytes) -> str:
    """As ``data.decode()``."""
    if len(data) <= SMALL:
        return data.decode()
    pieces = (data[at : at + PART] for at in range(0, len(data), PART))
    if all(piece.isascii() for piece in pieces):
        return joined_ascii(len(data), (data[at : at + PART].decode() for at in range(0, len(data), PART)))
    decoder = codecs.getincrementaldecoder("utf-8")()
    ends = range(PART, len(data) + PART, PART)
    return joined_text([decoder.decode(data[end - PART : end], end >= len(data)) for end in ends])


def joined_ascii(size: int, parts: Iterator[str]) -> str:
    """As ``"".join`` of `parts`, which are ASCII and have `size` characters in total. Keeps no part."""
    return "".join(parts) if size <= SMALL else _filled(size, _WIDTHS[0], parts)


def _filled(size: int, width: int, parts: Iterator[str]) -> str:
    """A new string of `size` characters, filled with `parts`. `width`: of the widest part, one of `_WIDTHS`."""
    api = _api()
    if api is None:
        return "".join(parts)
    address = api.PyUnicode_New(size, width)
    try:
        at = 0
        for part in parts:
            for start in range(0, len(part), PART):
                at += api.PyUnicode_CopyCharacters(address, at, part, start, min(PART, len(part) - start))
        if at != size:
            raise ValueError("the parts have another size")
        return str(ctypes.cast(address, ctypes.py_object).value)
    finally:
        api.Py_DecRef(address)


def _width(part: str) -> int:
    """The smallest of `_WIDTHS` that fits all characters, found by encoding slices."""
    if part.isascii():
        return _WIDTHS[0]
    widest = 1
    for at in range(0, len(part), PART):
        piece = part[at : at + PART]
        if widest == 1 and not _is_latin(piece):
            widest = 2
        if widest == 2 and len(piece.encode("utf-16-le", "surrogatepass")) > 2 * len(piece):
            return _WIDTHS[3]
    return _WIDTHS[widest]


def _is_latin(piece: str) -> bool:
    try:
        piece.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _trim() -> None:
    """Gives free memory back to the system, without Python's lock; who needs more of it meanwhile waits."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _api() -> Any:
    """Three functions of CPython's C API (unicode.rst) that fill a new string; None if the interpreter has none.

    The string is handled as an address until it is full, since a string with two references must not be changed.
    """
    try:
        api = ctypes.PyDLL(None)
        new, copy, forget = api.PyUnicode_New, api.PyUnicode_CopyCharacters, api.Py_DecRef
    except (AttributeError, OSError, TypeError):
        return None
    new.restype, new.argtypes = ctypes.c_void_p, (ctypes.c_ssize_t, ctypes.c_uint32)
    copy.restype = ctypes.c_ssize_t
    copy.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.py_object, ctypes.c_ssize_t, ctypes.c_ssize_t)
    forget.restype, forget.argtypes = None, (ctypes.c_void_p,)
    return api
