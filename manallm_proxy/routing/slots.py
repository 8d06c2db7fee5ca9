"""Learns how many requests a local server answers at a time for one model, from the timing of ours.

Ollama does not report it (``OLLAMA_NUM_PARALLEL``), and requests that it cannot answer at once wait inside it, unseen,
first come, first served. For a request that was sent while `earlier` ones were at the server:

1. It *overlapped* if its first content (for a whole answer: its end) came while all earlier ones were still there:
   all were answered at the same time, which proves a slot for each of them.
2. A whole answer *likely* overlapped if less than half of its usual time lay between the first end of an earlier one
   and its own. `LIKELY` of those in a row prove one more slot.
3. It *waited* if an earlier one ended first and it took `WAITED` times its usual time. Then the others still there and
   itself filled all slots. `WAITS` of these in a row, without an overlap in between, lower the number to the largest
   that any of them saw.
4. Until there is evidence there is one slot: Ollama's default.
5. While requests wait here, the next in line may be sent above the number, as a *trial*. After one that waited there is
   none for `REST` seconds, doubled each time, since its request could no longer go elsewhere. There is none before
   the usual time is known. For a whole answer nothing shows how long it waits: it may be a trial only if its turn here
   would come in time (`line`).

The usual time is that of the latest requests that surely did not wait: they were alone, or overlapped.

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
"""Seconds without a trial after one that waited: the first time, and the maximum."""
USUAL: Final = 20
"""Number of latest requests that the usual time is taken from."""


@define  # not frozen: there is one for each request
class Sign:
    """Evidence from one request, at its first content or at the end of a whole answer."""

    earlier: int
    """Number of requests at the server when it was sent."""
    still: int
    """How many of those are still there."""
    seconds: float
    """Since it was sent."""
    since_end: float = 0.0
    """Seconds since the first of the earlier ones ended."""
    tokens: int | None = None
    """Tokens of a whole answer (0: unknown); None: this is the first content of a stream."""


@define(eq=False)
class Slots:
    """The slots of one model. ``number``: the current estimate."""

    number: int = 1
    _streams: deque[float] = field(factory=lambda: deque(maxlen=USUAL))
    """Seconds to the first content of streams that did not wait."""
    _tokens: deque[float] = field(factory=lambda: deque(maxlen=USUAL))
    """Seconds per token of whole answers that did not wait."""
    _likely: int = 0
    _waits: list[int] = field(factory=list)
    _rest: float = REST
    _rests_until: float = 0.0

    def may_try(self, streams: bool, now: float) -> bool:
        """Whether one request above ``number`` may be sent now (rule 5). `streams`: it is a stream."""
        since = self.trial_from(streams)
        return since is not None and now >= since

    def trial_from(self, streams: bool) -> float | None:
        """The time from which a trial is allowed; None: the usual time is not known yet."""
        return self._rests_until if (self._streams if streams else self._tokens) else None

    def alone(self, seconds: float, tokens: int | None) -> None:
        """As `shown`, for a request that was alone."""
        if tokens is None:
            self._streams.append(seconds)
        elif tokens:
            self._tokens.append(seconds / tokens)

    def overlapped(self, earlier: int, seconds: float, tokens: int | None) -> None:
        """As `shown`, if all `earlier` ones are still there (rule 1)."""
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
        """A trial has waited, or ended without evidence."""
        self._likely = 0
        self._rests_until = now + self._rest
        self._rest = min(2 * self._rest, REST_LONGEST)

    def server_recovered(self) -> None:
        """The server is back after an outage, perhaps with other settings."""
        self._rest, self._rests_until = REST, 0.0

    def trial_timeout(self) -> float:
        """Seconds to the first content of the slowest recent stream that did not wait; 0: unknown."""
        return WAITED * max(self._streams, default=0.0)

    def _raise(self, number: int) -> None:
        self.number, self._likely = number, 0
        self.server_recovered()

    def _usual(self, sign: Sign) -> float | None:
        """The usual seconds for such a request; None: unknown."""
        if sign.tokens is None:
            return _median(self._streams) if self._streams else None
        return _median(self._tokens) * sign.tokens if self._tokens and sign.tokens else None


def _median(values: deque[float]) -> float:
    """The upper median. `statistics` takes ten times as long."""
    return sorted(values)[len(values) // 2]
