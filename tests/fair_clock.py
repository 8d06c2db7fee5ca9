"""The clock of the tests' event loops, which stands still while their thread waits for a processor that others have.

On a busy machine a test is late without anything being slow. With this clock timeouts, a proxy's as well as a test's,
and the seconds that a test measures by ``loop.time()``, are those of a machine of one's own, and need no slack for its
neighbours. What other processes and threads do is not covered. The kernel (Linux) counts how long a thread was ready
and did not run; where it does not say so, this is `time.monotonic`.
"""

from __future__ import annotations

import contextlib
import os
import time
from asyncio import BaseEventLoop

TOLD = "/proc/thread-self/schedstat"
"""Of the thread that reads it, in nanoseconds: how long it ran, and how long it was ready to; then how often."""
OFTEN = 0.01
"""Seconds between two looks at it, which take 10 us."""
A_MOMENT = 1e-6
"""Seconds that a look at the clock takes at least."""


class FairTime:
    """In place of `BaseEventLoop.time`. It never goes back by what it has just learned, and never quite stands: what
    took a moment took some time."""

    __slots__ = ("last", "looked", "waited")

    def __init__(self) -> None:
        self.looked = self.waited = self.last = 0.0

    def __call__(self) -> float:
        """Three hundred times a test."""
        now = time.monotonic()
        if now - self.looked > OFTEN:
            self.looked = now
            with contextlib.suppress(OSError, IndexError):
                self.waited = _waited()
        told, now = self.last + A_MOMENT, now - self.waited
        self.last = told = max(told, now)
        return told


def _waited() -> float:
    told = os.open(TOLD, os.O_RDONLY)
    try:
        return int(os.read(told, 64).split()[1]) / 1e9
    finally:
        os.close(told)


def begin(loop: BaseEventLoop) -> float:
    """`BaseEventLoop.time`, patched: the first call gives `loop` a clock of its own."""
    clock = FairTime()
    loop.time = clock  # type: ignore[method-assign]  # each loop has its thread, whose waiting is its own
    return clock()
