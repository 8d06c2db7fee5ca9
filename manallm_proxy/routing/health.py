"""Is it worth trying now? One `Health` a provider decides, from what probes and traffic have shown.

Rules, in the order in which `Health.admit` asks them:

1. *unconfigured*: a provider without its key is never called.
2. *unhealthy*: after ``failure_threshold`` failures in a row a circuit is open for ``backoff``; then
   half-open: one request at a time may try. Its success closes the circuit, its failure opens it for
   the whole backoff again. Provider and target have a circuit each; both must let the request through.
3. *cooling*: a target that said 429 or "busy" rests until the time it named. That is no failure.
4. *saturated*: ``max_concurrent`` requests are in flight.

Two witnesses, kept apart: failures of *reach* (a probe could have seen them) and failures of *service*
(only a request could). A good probe clears the first, a served request both. A failed probe counts as
a failure of reach, and keeps an open circuit open, so that no request is spent on finding out.

Several processes may serve the same providers. Each decides for itself, and they tell each other what they
*found*: that a circuit opened, opened anew, cools, or is clear again. The later finding counts.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from attrs import define, evolve, field, frozen

from manallm_proxy.contract.events import Status
from manallm_proxy.contract.provider_errors import Blame, ProviderError

SkipReason = Literal["unconfigured", "unhealthy", "cooling", "saturated"]

COOLING_DEFAULT = 15.0
COOLING_LONGEST = 300.0
COOLING_QUOTA = 600.0
"""Seconds a target cools: without a ``Retry-After``, at most with one, and for an exhausted quota."""


TARGETS_LIMIT = 100
"""Targets of one provider whose state is kept; a client chooses their names, so the oldest makes room."""


@frozen
class Policy:
    """When a circuit opens, and for how long."""

    failure_threshold: int = 2
    backoff: float = 60.0


@frozen
class Skip:
    """Not worth trying now. ``again_in``: seconds after which it may be, where that is known."""

    reason: SkipReason
    again_in: float | None = None


@frozen
class SharedState:
    """What one process found of a circuit, for the others to go by; times are of the clock that they share."""

    at: float
    open_until: float | None = None
    cooling_until: float | None = None
    reach_failures: int = 0
    service_failures: int = 0
    last_error: str | None = None
    last_check: float | None = None

    @property
    def is_clear(self) -> bool:
        """Nothing speaks against the provider or target any more."""
        return self.open_until is None and self.cooling_until is None and not self.failures

    @property
    def failures(self) -> int:
        return self.reach_failures + self.service_failures

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """The greatest counts. Of two that were found at once it is the worse one, so that all come to the same."""
        return self.at, self.open_until or 0.0, self.cooling_until or 0.0, self.failures


@define
class Circuit:
    """Failures in a row of one provider or one target, and what they led to."""

    reach_failures: int = 0
    service_failures: int = 0
    open_until: float | None = None
    """Open before this time, half-open from then on; None: closed."""
    on_trial: bool = False
    """Half-open, and a request is trying."""
    cooling_until: float | None = None
    last_error: str | None = None
    last_check: float | None = None

    @property
    def failures(self) -> int:
        return self.reach_failures + self.service_failures

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self.open_until is not None

    @property
    def is_blank(self) -> bool:
        """Nothing is known that a new circuit would not say."""
        return not self.failures and self.open_until is None and self.cooling_until is None

    def is_cooling(self, now: float) -> bool:
        return self.cooling_until is not None and now < self.cooling_until

    def status(self, now: float) -> Status:
        if self.is_open:
            return "unhealthy"
        if self.is_cooling(now):
            return "cooling"
        return "degraded" if self.failures else "healthy"

    def refusal(self, now: float) -> Skip | None:
        """Why no request may pass now; None where one may."""
        if self.open_until is not None:
            if now < self.open_until:
                return Skip("unhealthy", self.open_until - now)
            if self.on_trial:
                return Skip("unhealthy")
        if self.cooling_until is not None and now < self.cooling_until:
            return Skip("cooling", self.cooling_until - now)
        return None

    def take_trial(self) -> bool:
        """Whether the request that passes now is the half-open circuit's one trial."""
        if not self.is_open:
            return False
        self.on_trial = True
        return True

    def fail(self, policy: Policy, now: float, reason: str, *, reach: bool, again: bool) -> None:
        """One more failure. `again`: of a trial or a probe, which opens the circuit for a whole backoff anew.

        A failure of a request that began before the circuit opened tells nothing new, so it moves no time.
        """
        self.last_error, self.last_check = reason, now
        if reach:
            self.reach_failures += 1
        else:
            self.service_failures += 1
        opens = again if self.is_open else self.failures >= policy.failure_threshold
        if opens:
            self.open_until = now + policy.backoff

    def close(self, now: float) -> None:
        """A served request clears everything but the cooling, which ends by time."""
        self.reach_failures = self.service_failures = 0
        self.open_until = None
        self.last_check = now

    def half_close(self, policy: Policy) -> None:
        """A trial's answer has begun: others may pass again, but the next failure opens it at once."""
        self.open_until = None
        self.reach_failures = 0
        self.service_failures = max(0, policy.failure_threshold - 1)

    def reached(self, policy: Policy, now: float) -> None:
        """A good probe clears what a probe can see."""
        self.last_check = now
        self.reach_failures = 0
        if self.is_open and self.service_failures < policy.failure_threshold:
            self.open_until = None

    def cool(self, until: float, reason: str) -> None:
        self.last_error = reason
        self.cooling_until = max(until, self.cooling_until or until)

    def update(self, now: float) -> SharedState:
        """What is known, for others."""
        cooling = self.cooling_until if self.is_cooling(now) else None
        failures = self.reach_failures, self.service_failures
        return SharedState(now, self.open_until, cooling, *failures, self.last_error, self.last_check)

    def adopt(self, update: SharedState) -> None:
        """What another process found holds here too. A trial under way goes on; no cooling is shortened."""
        self.reach_failures, self.service_failures = update.reach_failures, update.service_failures
        self.open_until = update.open_until
        self.last_error, self.last_check = update.last_error, update.last_check
        if update.cooling_until is not None:
            self.cooling_until = max(update.cooling_until, self.cooling_until or update.cooling_until)


@define
class Permit:
    """Leave to attempt one target. Exactly one of `failed`, `served`, `released` ends it; more are harmless."""

    _health: Health
    _model: str
    _trial_of: tuple[Circuit, ...]
    _over: bool = False

    def began(self) -> None:
        """The answer has begun (commit): a trial has succeeded, though the answer may still break."""
        for circuit in self._trial_of:
            circuit.half_close(self._health.policy)
            circuit.on_trial = False
        self._trial_of = ()

    def served(self, now: float) -> None:
        """The answer is complete."""
        if self._end():
            self._health._served(self._model, now)

    def failed(self, error: ProviderError, now: float) -> None:
        """The attempt failed, or its answer broke. What follows from it the error says itself."""
        trials = self._trial_of
        if self._end():
            self._health._failed(self._model, error, now, trials)

    def released(self) -> None:
        """Nothing was learnt: the client left, or the caller was at fault. A trial's place is free again."""
        self._end()

    def _end(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._health.in_flight -= 1
        for circuit in self._trial_of:
            circuit.on_trial = False
        return True


@define
class Health:
    """What is known of one provider and its targets."""

    policy: Policy = Policy()
    configured: bool = True
    max_concurrent: int | None = None
    in_flight: int = 0
    provider: Circuit = field(factory=Circuit)
    targets: dict[str, Circuit] = field(factory=dict)
    """By model; only those that have a state of their own."""
    told: dict[str | None, Status] = field(factory=dict)
    """What was last reported of each target, and under None of the provider, where it is not *healthy*."""
    found: dict[str | None, SharedState] = field(factory=dict)
    """What all processes know of each target, and under None of the provider, where that is not all clear."""
    _cleared: dict[str | None, float] = field(factory=dict)
    """When the last of them became clear."""

    def admit(self, model: str, now: float) -> Permit | Skip:
        """Leave to try `model` now, or the reason against it (rules 1 to 4)."""
        # 1
        if not self.configured:
            return Skip("unconfigured")
        # 2, 3
        circuits = self.provider, self.targets.get(model)
        for circuit in circuits:
            if circuit is not None and (refusal := circuit.refusal(now)) is not None:
                return refusal
        # 4
        if self.max_concurrent is not None and self.in_flight >= self.max_concurrent:
            return Skip("saturated")
        self.in_flight += 1
        return Permit(self, model, tuple(c for c in circuits if c is not None and c.take_trial()))

    def probed(self, error: ProviderError | None, now: float) -> None:
        """A probe's outcome; `error` None where the provider is alive."""
        if error is None:
            self.provider.reached(self.policy, now)
        else:
            self.provider.fail(self.policy, now, error.error_type, reach=True, again=True)

    def _served(self, model: str, now: float) -> None:
        self.provider.close(now)
        if (circuit := self.targets.get(model)) is not None:
            circuit.close(now)
            if circuit.is_blank or not circuit.is_cooling(now):
                del self.targets[model]

    def _failed(self, model: str, error: ProviderError, now: float, trials: tuple[Circuit, ...]) -> None:
        if error.blame is Blame.NOBODY:
            return
        if error.blame in (Blame.REACH, Blame.SERVICE):
            reach = error.blame is Blame.REACH
            again = self.provider in trials
            self.provider.fail(self.policy, now, error.error_type, reach=reach, again=again)
            return
        circuit = self._target(model)
        if error.blame is Blame.TARGET:
            circuit.fail(self.policy, now, error.error_type, reach=False, again=circuit in trials)
        else:
            circuit.cool(now + cooling_time(error), error.error_type)

    def _target(self, model: str) -> Circuit:
        if model not in self.targets:
            _make_room(self.targets)
        return self.targets.setdefault(model, Circuit())

    def pending_update(self, model: str | None, now: float) -> SharedState | None:
        """What other processes should hear of a circuit: that it changed since they last did. It counts as told."""
        circuit = self.provider if model is None else self.targets.get(model, Circuit())
        update, known = circuit.update(now), self._known(model)
        moved = (update.open_until, update.cooling_until) != (known.open_until, known.cooling_until)
        if not moved and (known.is_clear or not update.is_clear):
            return None
        if update.at <= known.at:  # the other's clock was a little ahead, and this is later all the same
            update = evolve(update, at=math.nextafter(known.at, math.inf))
        self._note(model, update)
        return update

    def heard(self, model: str | None, update: SharedState) -> bool:
        """Another process's finding, of the provider (`model` None) or a target. False where we know better."""
        if update.rank <= self._known(model).rank:
            return False
        circuit = self.provider if model is None else self._target(model)
        circuit.adopt(update)
        if model is not None and circuit.is_blank:
            del self.targets[model]
        self._note(model, update)
        return True

    def _known(self, model: str | None) -> SharedState:
        return self.found.get(model) or SharedState(self._cleared.get(model, -math.inf))

    def _note(self, model: str | None, update: SharedState) -> None:
        self.found.pop(model, None)
        self._cleared.pop(model, None)
        if update.is_clear:
            _make_room(self._cleared)
            self._cleared[model] = update.at
        else:
            _make_room(self.found)
            self.found[model] = update

    def status(self, now: float) -> Status:
        """The provider's, in one word. One whose targets are all cooling is cooling itself."""
        if not self.configured:
            return "unconfigured"
        own = self.provider.status(now)
        if own != "healthy":
            return own
        states = {circuit.status(now) for circuit in self.targets.values()} - {"healthy"}
        if not states:
            return "healthy"
        return "cooling" if states == {"cooling"} else "degraded"

    def is_usable(self, now: float) -> bool:
        """Whether a request may be sent to this provider now, as far as the provider itself goes."""
        return self.configured and self.provider.refusal(now) is None


def _make_room(held: dict[Any, Any]) -> None:
    """The oldest of TARGETS_LIMIT goes."""
    if len(held) >= TARGETS_LIMIT:
        del held[next(iter(held))]


def cooling_time(error: ProviderError) -> float:
    """Seconds that a target rests after `error`: what the provider asked for, within reason."""
    if error.detail == "quota":
        return COOLING_QUOTA
    if error.retry_after is None:
        return COOLING_DEFAULT
    return min(max(error.retry_after, 0.0), COOLING_LONGEST)
