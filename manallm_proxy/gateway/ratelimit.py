"""At most so many requests or tokens in any minute: sliding windows, and their state in the words of OpenAI's headers.

A window and not a bucket that refills: a bucket of 60 a minute lets 119 through within one, and a limit that can
be exceeded twofold is none. It costs one number for each request of the last minute, so the configuration's
limit bounds its memory too. Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

SPAN: Final = 60.0
"""Seconds of a window."""


@define(eq=False)
class RemoteCount:
    """How many have passed at others, as it was last known: ``number``, at ``at``."""

    number: int = 0
    at: float = 0.0

    def learn(self, number: int, now: float) -> None:
        self.number, self.at = max(0, number), now

    def estimate(self, now: float) -> int:
        """Those that count still, as if they had passed evenly over the minute before it was known."""
        if not self.number or now - self.at >= SPAN:
            return 0
        return math.ceil(self.number * (1 - (now - self.at) / SPAN))


@define(eq=False)
class Window:
    """Lets ``limit`` pass in any `SPAN` seconds. The limit may change; what has passed still counts."""

    limit: int
    _passed: deque[float] = field(factory=deque, repr=False)
    """When each of the last minute passed, the oldest first."""
    _elsewhere: RemoteCount = field(factory=RemoteCount)

    def note(self, now: float) -> None:
        """One has passed, which was decided elsewhere."""
        self._forget(now)
        self._passed.append(now)

    def learn(self, passed: int, now: float) -> None:
        """So many have passed in all, here and elsewhere."""
        self._forget(now)
        self._elsewhere.learn(passed - len(self._passed), now)

    def take(self, now: float) -> bool:
        """Whether one more may pass now. One that may not leaves no trace: asking too often costs nothing."""
        self._forget(now)
        if len(self._passed) + self._elsewhere.estimate(now) >= self.limit:
            return False
        self._passed.append(now)
        return True

    def remaining(self, now: float) -> int:
        """How many more may pass now."""
        self._forget(now)
        return max(0, self.limit - len(self._passed) - self._elsewhere.estimate(now))

    def next_in(self, now: float) -> float:
        """Seconds until one more may pass; 0 if one may."""
        self._forget(now)
        elsewhere = self._elsewhere.estimate(now)
        over = len(self._passed) + elsewhere - self.limit
        if over < 0:
            return 0.0
        if elsewhere:  # one of those may be forgotten by then
            return SPAN / self._elsewhere.number
        return SPAN - (now - self._passed[over])

    def reset_in(self, now: float) -> float:
        """Seconds until all of ``limit`` may pass again, if none does before."""
        self._forget(now)
        return SPAN - (now - self._passed[-1]) if self._passed else 0.0

    def _forget(self, now: float) -> None:
        while self._passed and now - self._passed[0] >= SPAN:
            self._passed.popleft()


@define(eq=False)
class TokenReservation:
    """Tokens of one request, and when they were taken. ``tick``: by the clock of who counts for all, if one did."""

    at: float
    tokens: int
    tick: int | None = None
    id: str = ""
    """What those know it by."""


@define(eq=False)
class TokenWindow:
    """Lets ``limit`` tokens pass in any `SPAN` seconds. What is held takes at least one, which bounds the memory."""

    limit: int
    _taken: OrderedDict[TokenReservation, None] = field(factory=OrderedDict, repr=False)
    """The oldest first."""
    _sum: int = 0
    _elsewhere: RemoteCount = field(factory=RemoteCount)

    def take(self, tokens: int, now: float, likely: int = 0) -> TokenReservation | None:
        """What is taken until `settle`; None where so many `tokens` may not pass now, which leaves no trace.

        `likely` ones are taken beside them, as far as there is room.
        """
        tokens, left = max(tokens, 1), self.remaining(now)
        if tokens > left:
            return None
        return self.note(min(tokens + likely, left), now)

    def note(self, tokens: int, now: float, tick: int | None = None, id_: str = "") -> TokenReservation:
        """So many pass; in `tick` it was decided elsewhere."""
        taken = TokenReservation(now, tokens, tick, id_)
        self._taken[taken] = None
        self._sum += tokens
        return taken

    def learn(self, passed: int, now: float) -> None:
        """So many have passed in all, here and elsewhere."""
        self._forget(now)
        self._elsewhere.learn(passed - self._sum, now)

    def settle(self, taken: TokenReservation, tokens: int, now: float) -> None:
        """`tokens` it was. What it took more counts from now on, so that a long stream is not forgotten at its end."""
        if tokens > taken.tokens:
            self.note(tokens - taken.tokens, now)
        elif now - taken.at < SPAN:
            self._sum -= taken.tokens - tokens
            taken.tokens = tokens
            if not tokens:
                self._taken.pop(taken, None)
        self._forget(now)

    def remaining(self, now: float) -> int:
        """How many more may pass now."""
        self._forget(now)
        return max(0, self.limit - self._sum - self._elsewhere.estimate(now))

    def next_in(self, tokens: int, now: float) -> float | None:
        """Seconds until so many may pass; None where they never may."""
        if tokens > self.limit:
            return None
        self._forget(now)
        elsewhere = self._elsewhere.estimate(now)
        over, wait = self._sum + elsewhere + max(tokens, 1) - self.limit, 0.0
        if 0 < over <= elsewhere:  # of which the first are forgotten one by one
            return over * SPAN / self._elsewhere.number
        for each in self._taken:
            if over <= 0:
                break
            over, wait = over - each.tokens, SPAN - (now - each.at)
        return wait

    def reset_in(self, now: float) -> float:
        """Seconds until all of ``limit`` may pass again, if nothing does before."""
        self._forget(now)
        return SPAN - (now - next(reversed(self._taken)).at) if self._taken else 0.0

    def _forget(self, now: float) -> None:
        while self._taken and now - (oldest := next(iter(self._taken))).at >= SPAN:
            self._sum -= oldest.tokens
            del self._taken[oldest]


def format_duration(seconds: float) -> str:
    """A duration as OpenAI writes it in ``x-ratelimit-reset-requests``: ``17ms``, ``8.64s``, ``1m0s``; rounded up."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{f'{minutes}m' if minutes else ''}{rest / 1000:g}s"
