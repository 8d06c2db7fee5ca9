"""At most so many in any minute: a sliding window, and its state in the words of OpenAI's headers.

A window and not a bucket that refills: a bucket of 60 a minute lets 119 through within one, and a limit that can
be exceeded twofold is none. It costs one number for each request of the last minute, so the configuration's
limit bounds its memory too. Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from attrs import define, field

SPAN: Final = 60.0
"""Seconds of a window."""


@define(eq=False)
class Window:
    """Lets ``limit`` pass in any `SPAN` seconds. The limit may change; what has passed still counts."""

    limit: int
    _passed: deque[float] = field(factory=deque, repr=False)
    """When each of the last minute passed, the oldest first."""
    _others: int = 0
    """How many had passed elsewhere, when that was last known."""
    _others_at: float = 0.0

    def note(self, now: float) -> None:
        """One has passed, which was decided elsewhere."""
        self._forget(now)
        self._passed.append(now)

    def learn(self, passed: int, now: float) -> None:
        """So many have passed in all, here and elsewhere."""
        self._forget(now)
        self._others, self._others_at = max(0, passed - len(self._passed)), now

    def take(self, now: float) -> bool:
        """Whether one more may pass now. One that may not leaves no trace: asking too often costs nothing."""
        self._forget(now)
        if len(self._passed) + self._elsewhere(now) >= self.limit:
            return False
        self._passed.append(now)
        return True

    def remaining(self, now: float) -> int:
        """How many more may pass now."""
        self._forget(now)
        return max(0, self.limit - len(self._passed) - self._elsewhere(now))

    def next_in(self, now: float) -> float:
        """Seconds until one more may pass; 0 if one may."""
        self._forget(now)
        elsewhere = self._elsewhere(now)
        over = len(self._passed) + elsewhere - self.limit
        if over < 0:
            return 0.0
        if elsewhere:  # one of those may be forgotten by then
            return SPAN / self._others
        return SPAN - (now - self._passed[over])

    def reset_in(self, now: float) -> float:
        """Seconds until all of ``limit`` may pass again, if none does before."""
        self._forget(now)
        return SPAN - (now - self._passed[-1]) if self._passed else 0.0

    def _elsewhere(self, now: float) -> int:
        """An estimate: as if those had passed evenly over the minute before it was known."""
        if not self._others or now - self._others_at >= SPAN:
            return 0
        return math.ceil(self._others * (1 - (now - self._others_at) / SPAN))

    def _forget(self, now: float) -> None:
        while self._passed and now - self._passed[0] >= SPAN:
            self._passed.popleft()


def spoken(seconds: float) -> str:
    """A duration as OpenAI writes it in ``x-ratelimit-reset-requests``: ``17ms``, ``8.64s``, ``1m0s``; rounded up."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{f'{minutes}m' if minutes else ''}{rest / 1000:g}s"
