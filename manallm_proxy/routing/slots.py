"""How many requests a local server answers at a time for one model, learned from what ours show.

Ollama does not tell (``OLLAMA_NUM_PARALLEL``), and what it cannot answer at once waits inside it, unseen, in the order
in which it came. Of a request that was sent while `earlier` ones were with the server:

1. It *overlapped* if its first content came (of a whole answer: its end) while all earlier ones were still there: they
   were answered at the same time, which proves a slot for each of them and for itself.
2. A whole answer overlapped *likely* if less than half of its usual time lay between the first end of an earlier one
   and its own. `LIKELY` of those in a row prove one slot more.
3. It *waited* if an earlier one ended first, and it took `WAITED` times its usual time. Those that were still there and
   itself filled all slots then. `WAITS` of these in a row, and no overlap between, lower the number to the most that
   any of them saw.
4. Until something else is seen there is one slot: Ollama's default.
5. While requests wait here, one more than that may be sent as a *trial*: it is the next in line in any case. Once a
   trial has waited there is none for `REST` seconds, twice as long after each, since its request can no longer go
   elsewhere. There is none before the usual time is known. Nothing shows of a whole answer how long it waits: it is a
   trial only if it would have its turn here in time (`line`).

The usual time is that of the latest requests which surely did not wait: they were alone, or overlapped.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

LIKELY: Final = 3
WAITS: Final = 5
WAITED: Final = 1.5
REST: Final = 30.0
REST_LONGEST: Final = 900.0
"""Seconds without a trial after one that waited, at first and at most."""
USUAL: Final = 20
"""Latest requests from which the usual time is known."""


@define  # not frozen: there is one for each request
class Sign:
    """What one request has shown, at its first content or at the end of a whole answer."""

    earlier: int
    """Requests that were with the server when it was sent."""
    still: int
    """How many of these are there still."""
    seconds: float
    """Since it was sent."""
    since_end: float = 0.0
    """Seconds since the first of the earlier ones ended."""
    tokens: int | None = None
    """Of a whole answer; None: the first content of a stream. 0: not known."""


@define(eq=False)
class Slots:
    """Of one model. ``number``: as far as is known."""

    number: int = 1
    _streams: deque[float] = field(factory=lambda: deque(maxlen=USUAL))
    """Seconds to the first content of streams that did not wait."""
    _tokens: deque[float] = field(factory=lambda: deque(maxlen=USUAL))
    """Seconds for each token of whole answers that did not wait."""
    _likely: int = 0
    _waits: list[int] = field(factory=list)
    _rest: float = REST
    _rests_until: float = 0.0

    def may_try(self, streams: bool, now: float) -> bool:
        """Whether one request more than ``number`` may be sent now (rule 5). `streams`: it is a stream."""
        since = self.trial_from(streams)
        return since is not None and now >= since

    def trial_from(self, streams: bool) -> float | None:
        """From when on there may be a trial; None: the usual time is not known yet."""
        return self._rests_until if (self._streams if streams else self._tokens) else None

    def alone(self, seconds: float, tokens: int | None) -> None:
        """As `shown`, if there were no earlier ones."""
        if tokens is None:
            self._streams.append(seconds)
        elif tokens:
            self._tokens.append(seconds / tokens)

    def overlapped(self, earlier: int, seconds: float, tokens: int | None) -> None:
        """As `shown`, if all earlier ones are there still (rule 1)."""
        self.alone(seconds, tokens)
        self._waits.clear()
        if earlier >= self.number:
            self._raise(earlier + 1)

    def shown(self, sign: Sign, now: float) -> None:
        """Learns from a request's sign of life."""
        is_trial = sign.earlier >= self.number
        # 1
        if not sign.earlier:
            self.alone(sign.seconds, sign.tokens)
        elif sign.still == sign.earlier:
            self.overlapped(sign.earlier, sign.seconds, sign.tokens)
        elif (usual := self._usual(sign)) is None:
            return
        # 2
        elif sign.tokens is not None and sign.since_end < usual / 2:
            self._waits.clear()
            self._likely += is_trial
            if self._likely >= LIKELY:
                self._raise(self.number + 1)
        # 3
        elif sign.seconds >= WAITED * usual:
            self._waits.append(sign.still + 1)
            if len(self._waits) >= WAITS:
                self.number = min(self.number, max(self._waits))
                self._waits.clear()
            if is_trial:
                self.failed(now)

    def failed(self, now: float) -> None:
        """A trial has waited, or ended without a sign."""
        self._likely = 0
        self._rests_until = now + self._rest
        self._rest = min(2 * self._rest, REST_LONGEST)

    def server_recovered(self) -> None:
        """The server is back after an outage, perhaps with other settings."""
        self._rest, self._rests_until = REST, 0.0

    def trial_timeout(self) -> float:
        """Seconds to the first content of the slowest stream that did not wait; 0: not known."""
        return WAITED * max(self._streams, default=0.0)

    def _raise(self, number: int) -> None:
        self.number, self._likely = number, 0
        self.server_recovered()

    def _usual(self, sign: Sign) -> float | None:
        """Seconds that it takes as a rule; None: not known."""
        if sign.tokens is None:
            return _median(self._streams) if self._streams else None
        return _median(self._tokens) * sign.tokens if self._tokens and sign.tokens else None


def _median(values: deque[float]) -> float:
    """Of an even number the upper one of the two in the middle; `statistics` takes ten times as long for the mean."""
    return sorted(values)[len(values) // 2]
