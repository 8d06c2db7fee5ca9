"""The process's memory as the kernel has it, once the start is over.

A request touches some 1,900 pages: it walks through objects that the start has strewn over all of Python's memory, a
few on each page. Behind a pause, when the processor knows none of them any more, each has to be found again. Of 2 MiB
each there are a dozen. And what only the start used of libraries (the compiler of Python, the tables of OpenSSL) stays
resident until the kernel runs short; here it is told at once. What is needed is mapped again when it is used, from the
page cache: a microsecond for 64 KiB.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from manallm_proxy.contract.records import frozen

DONTNEED: Final = 4
"""MADV_DONTNEED (madvise(2)): of a file's mapping that was never written, the pages are still in the page cache."""
COLLAPSE: Final = 25
"""MADV_COLLAPSE, since Linux 6.1; EINVAL before, and for a block that cannot be joined."""
SHARED: Final = 1024
"""KiB of memory that was written and is another process's, too: above, this one was forked."""
_MAPPING: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)\n"
    r"Size: +(\d+) kB\n(?:\w+: .*\n)*?Rss: +(\d+) kB\n(?:\w+: .*\n)*?Shared_Dirty: +(\d+) kB\n"
    r"Private_Clean: .*\nPrivate_Dirty: +(\d+) kB$",
    re.MULTILINE,
)
_HUGE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


@frozen
class Advice:
    """What the kernel is told of ``length`` bytes from ``start``."""

    start: int
    length: int
    what: int


def advices(smaps: str, huge: int) -> Iterator[Advice]:
    """For the mappings of a process, as ``/proc/self/smaps`` shows them. `huge`: bytes of a huge page; 0: none here.

    Joined are blocks of memory that is in use nearly everywhere, since a huge page is resident as a whole: Python's
    objects and the heap, not the stacks of threads. A process that shares its memory with whoever has forked it, as a
    worker does with its supervisor, stays as it is.
    """
    mappings = _MAPPING.findall(smaps)
    if sum(int(shared) for *_, shared, _ in mappings) > SHARED:
        return
    for low, high, rights, name, size, resident, shared, written in mappings:
        start, end = int(low, 16), int(high, 16)
        # what the linker has written into is read-only as well by now, and stands in no file
        if rights in ("r-xp", "r--p") and name.startswith("/") and int(shared) + int(written) == 0:
            yield Advice(start, end - start, DONTNEED)
        elif huge and rights == "rw-p" and name in ("", "[heap]") and int(resident) * 8 >= int(size) * 7:
            for block in range(-(-start // huge) * huge, end - huge + 1, huge):
                yield Advice(block, huge, COLLAPSE)


def advise_kernel() -> None:
    """Tells the kernel about this process. Takes some ten milliseconds; what a system does not know changes nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        huge = int(_HUGE.read_text()) if _HUGE.exists() else 0
        if not (advised := list(advices(Path("/proc/self/smaps").read_text(), huge))):
            return
        import ctypes  # 0.3 MiB, for a call that Python does not have

        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for each in advised:
            madvise(each.start, each.length, each.what)
