"""Advises the kernel about this process's memory, once the start is over.

1. A request touches some 1,900 pages: the objects that it needs were scattered over Python's heap during the start, a
   few per page. After a pause, when the TLB has lost them, each translation must be found again. With huge pages of
   2 MiB there are only a dozen.
2. The parts of libraries that only the start used (Python's compiler, OpenSSL's tables) stay resident until memory is
   short; here they are released at once. What is needed later is mapped again from the page cache: a microsecond for
   64 KiB.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from manallm_proxy.contract.records import frozen

DONTNEED: Final = 4
"""MADV_DONTNEED (madvise(2)). Safe for file mappings that were never written: their pages stay in the page cache."""
COLLAPSE: Final = 25
"""MADV_COLLAPSE, since Linux 6.1; EINVAL before that, and for a block that cannot become a huge page."""
SHARED: Final = 1024
"""With more KiB than this of dirty memory shared with another process, this process is a fork."""
_MAPPING: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)\n"
    r"Size: +(\d+) kB\n(?:\w+: .*\n)*?Rss: +(\d+) kB\n(?:\w+: .*\n)*?Shared_Dirty: +(\d+) kB\n"
    r"Private_Clean: .*\nPrivate_Dirty: +(\d+) kB$",
    re.MULTILINE,
)
_SHARED_DIRTY: Final = re.compile(r"^Shared_Dirty: +(\d+) kB$", re.MULTILINE)
_SUMS: Final = Path("/proc/self/smaps_rollup")
_HUGE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


@frozen
class Advice:
    """One madvise(2): ``length`` bytes from address ``start``."""

    start: int
    length: int
    what: int


def advices(smaps: str, huge: int) -> Iterator[Advice]:
    """The advice for the mappings in `smaps` (``/proc/self/smaps``). `huge`: size of a huge page in bytes; 0: none.

    Only densely used blocks become huge pages, since a huge page is resident as a whole: Python's arenas and the heap,
    not the stacks of threads. A process that shares its memory with its parent, as a worker does with its supervisor,
    is left as it is.
    """
    mappings = [found.groups() for found in _MAPPING.finditer(smaps)]  # one after the other: in between others run
    if sum(int(shared) for *_, shared, _ in mappings) > SHARED:
        return
    for low, high, rights, name, size, resident, shared, written in mappings:
        start, end = int(low, 16), int(high, 16)
        # relocated by the linker: read-only by now, but in no file
        if rights in ("r-xp", "r--p") and name.startswith("/") and int(shared) + int(written) == 0:
            yield Advice(start, end - start, DONTNEED)
        elif huge and rights == "rw-p" and name in ("", "[heap]") and int(resident) * 8 >= int(size) * 7:
            for block in range(-(-start // huge) * huge, end - huge + 1, huge):
                yield Advice(block, huge, COLLAPSE)


def advise_kernel() -> None:
    """Applies `advices` to this process, in some ten milliseconds. Does nothing where the system lacks the calls."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        shared = _SHARED_DIRTY.search(_SUMS.read_text()) if _SUMS.exists() else None
        if shared is not None and int(shared[1]) > SHARED:
            return  # as `advices` would find, for a tenth of the work
        huge = int(_HUGE.read_text()) if _HUGE.exists() else 0
        if not (advised := list(advices(Path("/proc/self/smaps").read_text(), huge))):
            return
        import ctypes  # 0.3 MiB, for a call that Python does not have

        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for each in advised:
            madvise(each.start, each.length, each.what)
