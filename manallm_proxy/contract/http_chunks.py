"""The frame of a chunk of an HTTP/1.1 body (RFC 9112, section 7.1), by tables.

To write a number anew for each chunk, or to read one, takes code that nothing else on a chunk's way needs, and that is
in no cache by then.
"""

from __future__ import annotations

from typing import Final

_SIZE_LINES: Final = tuple(b"%x\r\n" % size for size in range(1024))
"""By a chunk's size in bytes: the line before it. Nearly all events of a stream are that short."""
_BY_FRAME = {len(line) + size + 2: line for size, line in enumerate(_SIZE_LINES) if size}
_FRAMES: Final = tuple(_BY_FRAME.get(size, b"") for size in range(max(_BY_FRAME) + 1))
"""By the size of a chunk in its frame: the line that it begins with; empty where none has that size."""


def framed(data: bytes) -> bytes:
    """`data`, which is not empty, as one chunk."""
    size = len(data)
    return b"".join((_SIZE_LINES[size] if size < len(_SIZE_LINES) else b"%x\r\n" % size, data, b"\r\n"))


def framed_lines(data: bytes) -> bytes:
    """`data`, which is not empty, with each line as a chunk: so Ollama sends them, and some of its clients need it."""
    if 0 <= data.find(b"\n") < len(data) - 1:
        return b"".join(map(framed, data.splitlines(keepends=True)))
    return framed(data)


def unframed(data: bytes) -> bytes:
    """What is in the frame, if `data` looks like one chunk as `framed` writes it; else empty.

    It may as well be the middle of a longer one: whoever asks has to know what came before.
    """
    size = len(data)
    line = _FRAMES[size] if size < len(_FRAMES) else b""
    return data[len(line) : -2] if line and data.startswith(line) and data.endswith(b"\r\n") else b""
