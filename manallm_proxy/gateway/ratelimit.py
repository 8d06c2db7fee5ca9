"""Rate limits per minute for requests and tokens, as sliding windows, and their state as OpenAI's headers report it.

A token bucket of 60 a minute would let 119 requests through within one minute; a sliding window does not. It stores one
number per request of the last minute, so the configured limit bounds its memory too. Nothing here waits, and the time
is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

SPAN: Final = 60.0
"""Length of the window in seconds."""


@define(eq=False)
class RemoteCount:
    """How many passed in other processes: ``number``, as reported at time ``at``."""

    number: int = 0
    at: float = 0.0

    def learn(self, number: int, now: float) -> None:
        self.number, self.at = max(0, number), now

    def estimate(self, now: float) -> int:
        """How many of them still count, assuming that they were spread evenly over the minute before the report."""
        if not self.number or now - self.at >= SPAN:
            return 0
        return math.ceil(self.number * (1 - (now - self.at) / SPAN))


@define(eq=False)
class Window:
    """Lets ``limit`` pass in any `SPAN` seconds. The limit may change; what has passed still counts."""

    limit: int
    _passed: deque[float] = field(factory=deque, repr=False)
    """Times at which those of the last minute passed, oldest first."""
    _elsewhere: RemoteCount = field(factory=RemoteCount)

    def note(self, now: float) -> None:
        """Records one that another process has let pass."""
        self._forget(now)
        self._passed.append(now)

    def learn(self, passed: int, now: float) -> None:
        """Records that `passed` have passed in total, here and in other processes."""
        self._forget(now)
        self._elsewhere.learn(passed - len(self._passed), now)

    def take(self, now: float) -> bool:
        """Lets one more pass now, if the limit allows. A refusal leaves no trace: asking too often costs nothing."""
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
        if elsewhere:  # one of the remote ones may have expired by then
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
    """Tokens of one request, and when they were taken. ``tick``: the time at the server that counts for all, if any."""

    at: float
    tokens: int
    tick: int | None = None
    id: str = ""
    """Its id at that server."""


@define(eq=False)
class TokenWindow:
    """Lets ``limit`` tokens pass in any `SPAN` seconds. A reservation holds at least one, which bounds the memory."""

    limit: int
    _taken: OrderedDict[TokenReservation, None] = field(factory=OrderedDict, repr=False)
    """Reservations, oldest first."""
    _sum: int = 0
    _elsewhere: RemoteCount = field(factory=RemoteCount)

    def take(self, tokens: int, now: float, likely: int = 0) -> TokenReservation | None:
        """Reserves `tokens` until `settle`; None, without a trace, if so many may not pass now.

        Up to `likely` more are reserved, as far as there is room.
        """
        tokens, left = max(tokens, 1), self.remaining(now)
        if tokens > left:
            return None
        return self.note(min(tokens + likely, left), now)

    def note(self, tokens: int, now: float, tick: int | None = None, id_: str = "") -> TokenReservation:
        """Records tokens that have passed; `tick`: when the server decided it."""
        taken = TokenReservation(now, tokens, tick, id_)
        self._taken[taken] = None
        self._sum += tokens
        return taken

    def learn(self, passed: int, now: float) -> None:
        """Records that `passed` have passed in total, here and in other processes."""
        self._forget(now)
        self._elsewhere.learn(passed - self._sum, now)

    def settle(self, taken: TokenReservation, tokens: int, now: float) -> None:
        """Replaces a reservation by the actual number. Any excess counts from now: a long stream must not expire."""
        if tokens > taken.tokens:
            self.note(tokens - taken.tokens, now)
        elif taken in self._taken:  # else it is over a minute old, or of a window that a reload has ended
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
        """Seconds until `tokens` may pass; None: never."""
        if tokens > self.limit:
            return None
        self._forget(now)
        elsewhere = self._elsewhere.estimate(now)
        over, wait = self._sum + elsewhere + max(tokens, 1) - self.limit, 0.0
        if 0 < over <= elsewhere:  # which expire one by one
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
