"""Tells glibc's malloc which freed memory to keep for the next request, and which to give back at once.

Memory that is new costs more than what is done with it, since the kernel clears each page when it is first touched. By
itself malloc gives back whatever is free at its end and larger than twice the largest block so far: of a prompt of
300 KB that was half of its CPU time.
"""

from __future__ import annotations

import contextlib
from typing import Final

APART: Final = 2**20
"""Blocks of so many bytes are held apart, so each goes back to the system when it is freed. Else they come to lie among
small ones that live longer, and a request of 30 MiB takes 160 MiB rather than 120."""
KEPT: Final = 4 * 2**20
"""Max bytes that are kept if they are free at malloc's end: what a prompt of a megabyte takes on its way, or a dozen
of 200 KB. Each thread that works on large requests has an end of its own."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of malloc.h."""


def tune_malloc() -> None:
    """For this process, and those that it forks. Does nothing with another C library."""
    import ctypes  # 0.3 MiB and some milliseconds: most commands serve nothing

    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, APART)
        libc.mallopt(_TRIM_THRESHOLD, KEPT)
