"""A circuit breaker for one provider or one target: counts failures in a row, opens, half-opens, closes, cools.

`health` holds the circuits and decides by them.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import field

from manallm_proxy.contract.events import Status
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define, frozen

SkipReason = Literal["unconfigured", "unhealthy", "cooling", "saturated", "loading", "no_model", "too_long", "budget"]
OF_HEALTH: Final[frozenset[SkipReason]] = frozenset({"unhealthy", "cooling"})
"""The skip reasons that come from a circuit."""
BUDGET: Final[SkipReason] = "budget"
LOADING: Final[SkipReason] = "loading"
NO_MODEL: Final[SkipReason] = "no_model"
"""The provider of an open entry lists nothing that fits the request. Decided by `Walk`, not by a circuit."""

COOLING_DEFAULT = 15.0
COOLING_LONGEST = 300.0
COOLING_QUOTA = 600.0
"""Seconds a target cools: without a ``Retry-After``, at most with one, and for an exhausted quota."""


@frozen
class Policy:
    """When a circuit opens, and for how long."""

    failure_threshold: int = 2
    backoff: float = 60.0


@frozen
class Skip:
    """Do not try this target now. ``again_in``: seconds until it may be tried, if known."""

    reason: SkipReason
    again_in: float | None = None
    detail: str | None = None
    """More about the reason, for people."""


class Declined(Exception):
    """An attempt was given up before it was sent: when its turn came, the budget left too little for it, or while it
    waited, its target became unhealthy, or its model was unloaded."""

    def __init__(self, skip: Skip) -> None:
        super().__init__(skip.reason)
        self.skip = skip


@frozen
class SharedState:
    """A circuit's state as workers exchange it. Times are seconds of CLOCK_MONOTONIC, which they share."""

    at: float
    open_until: float | None = None
    cooling_until: float | None = None
    reach_failures: int = 0
    service_failures: int = 0
    last_error: str | None = None
    last_check: float | None = None
    witnessed: bool = False

    @property
    def is_clear(self) -> bool:
        """Whether requests may pass without restriction again."""
        return self.open_until is None and self.cooling_until is None and not self.failures

    @property
    def failures(self) -> int:
        return self.reach_failures + self.service_failures

    @property
    def outage(self) -> tuple[float | None, float | None, bool]:
        """What other workers act on."""
        return self.open_until, self.cooling_until, self.witnessed

    @property
    def rank(self) -> tuple[float, float, float, int, bool]:
        """Of two states the one of greater rank wins: the later one, or at equal times the worse one, so that all
        workers agree."""
        return self.at, self.open_until or 0.0, self.cooling_until or 0.0, self.failures, self.witnessed


@frozen
class Hint:
    """A circuit's state at another instance, whose clock differs: seconds from now on; None: not in that state."""

    open_for: float | None = None
    cooling_for: float | None = None
    reach: bool = False
    """Whether connecting failed; else requests failed."""
    witnessed: bool = False
    reason: str | None = None

    @property
    def is_clear(self) -> bool:
        return self.open_for is None and self.cooling_for is None

    @classmethod
    def of(cls, state: SharedState) -> Hint:
        return cls(
            None if state.open_until is None else max(0.0, state.open_until - state.at),
            None if state.cooling_until is None else max(0.0, state.cooling_until - state.at),
            state.reach_failures > state.service_failures,
            state.witnessed,
            state.last_error,
        )


@define
class Circuit:
    """Consecutive failures, and the state that they led to.

    Two kinds are counted apart: of *reach* (a probe could have seen them) and of *service* (only a request could).
    """

    reach_failures: int = 0
    service_failures: int = 0
    open_until: float | None = None
    """Open before this time, half-open from then on; None: closed."""
    on_trial: bool = False
    """Half-open, and its one trial request is in flight."""
    cooling_until: float | None = None
    last_error: str | None = None
    last_check: float | None = None
    witnessed: bool = False
    """Opened by failures that only requests can detect, with no request to the provider served since."""
    recoveries: int = field(default=0, eq=False)
    """How often it has closed after having been open."""

    @property
    def failures(self) -> int:
        return self.reach_failures + self.service_failures

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self.open_until is not None

    @property
    def is_blank(self) -> bool:
        """Whether it equals a new circuit: no failures, not open, not cooling."""
        if self.open_until is not None or self.cooling_until is not None:
            return False
        return self.reach_failures == self.service_failures == 0

    @property
    def lacks_model(self) -> bool:
        """Whether the provider said that it does not have the model (4xx), which says nothing against the provider."""
        return self.cooling_until is None and (self.last_error or "").startswith("http_4")

    def is_cooling(self, now: float) -> bool:
        return self.cooling_until is not None and now < self.cooling_until

    def status(self, now: float) -> Status:
        if self.is_open:
            return "unhealthy"
        if self.is_cooling(now):
            return "cooling"
        return "degraded" if self.failures else "healthy"

    def refusal(self, now: float) -> Skip | None:
        """Why no request may pass now; None if one may."""
        if self.open_until is not None:
            if now < self.open_until:
                return Skip("unhealthy", self.open_until - now, self.last_error)
            if self.on_trial:
                return Skip("unhealthy", detail=self.last_error)
        if self.cooling_until is not None and now < self.cooling_until:
            return Skip("cooling", self.cooling_until - now, self.last_error)
        return None

    def take_trial(self) -> bool:
        """Whether the request that passes now becomes the half-open circuit's one trial."""
        if not self.is_open:
            return False
        self.on_trial = True
        return True

    def fail(
        self, policy: Policy, now: float, reason: str, *, reach: bool, again: bool, witnessed: bool = False
    ) -> bool:
        """Counts a failure. Returns whether it opened the circuit, for the first time or again.

        `again`: a trial or a probe failed, which opens the circuit for the whole backoff again. The failure of a
        request that began before the circuit opened is no news, so it does not move ``open_until``.
        """
        self.last_error, self.last_check = reason, now
        if reach:
            self.reach_failures += 1
        else:
            self.service_failures += 1
        opens = again if self.is_open else self.failures >= policy.failure_threshold
        if opens:
            self.open_until = now + policy.backoff
            self.witnessed = self.witnessed or witnessed
        return opens

    def open_by_targets(self, policy: Policy, now: float, reason: str, number: int, *, again: bool) -> None:
        """Opens a provider's circuit because `number` of its targets are open. `again`: even if it is open already."""
        self.last_error, self.last_check = reason, now
        self.service_failures = max(self.service_failures, policy.failure_threshold, number)
        self.witnessed = True
        if again or not self.is_open:
            self.open_until = now + policy.backoff

    def close(self, now: float) -> None:
        """A served request clears everything but the cooling, which ends by time."""
        self.reach_failures = self.service_failures = 0
        if self.open_until is not None or self.witnessed:
            self._let_pass()
        self.last_check = now

    def half_close(self, policy: Policy) -> None:
        """A trial's answer has begun: others may pass again, but the next failure opens it at once."""
        self._let_pass()
        self.reach_failures = 0
        self.service_failures = max(0, policy.failure_threshold - 1)

    def reached(self, now: float) -> None:
        """A successful probe clears the failures that a probe can detect."""
        self.last_check = now
        self.reach_failures = 0
        if not self.witnessed:
            self._let_pass()

    def _let_pass(self) -> None:
        self.recoveries += self.is_open
        self.open_until, self.witnessed = None, False

    def cool(self, until: float, reason: str) -> None:
        self.last_error = reason
        self.cooling_until = max(until, self.cooling_until or until)

    def shared_state(self, now: float) -> SharedState:
        """The state to send to other workers."""
        return SharedState(
            now,
            self.open_until,
            self.cooling_until if self.is_cooling(now) else None,
            self.reach_failures,
            self.service_failures,
            self.last_error,
            self.last_check,
            self.witnessed,
        )

    def adopt(self, state: SharedState) -> None:
        """Takes over another worker's state. A trial in progress goes on; cooling is never shortened."""
        self.reach_failures, self.service_failures = state.reach_failures, state.service_failures
        self.recoveries += self.is_open and state.open_until is None
        self.open_until, self.witnessed = state.open_until, state.witnessed
        self.last_error, self.last_check = state.last_error, state.last_check
        if state.cooling_until is not None:
            self.cooling_until = max(state.cooling_until, self.cooling_until or state.cooling_until)


def cooling_time(error: ProviderError) -> float:
    """Seconds that a target rests after `error`: what the provider asked for, within reason."""
    if error.detail == "quota":
        return COOLING_QUOTA
    if error.retry_after is None:
        return COOLING_DEFAULT
    return min(max(error.retry_after, 0.0), COOLING_LONGEST)
