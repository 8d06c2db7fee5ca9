"""Is a target worth trying now? Each provider's `Health` decides, from what probes and requests have shown.

Rules, in the order in which `Health.admit` applies them:

1. *unconfigured*: a provider without its key is never called.
2. *unhealthy*: after ``failure_threshold`` failures in a row a circuit is open for ``backoff``; then
   half-open: one request at a time may try. Its success closes the circuit, its failure opens it for
   the whole backoff again. Provider and target have a circuit each; both must let the request through.
3. *cooling*: a target that answered 429 or "busy" rests until the time it named. That does not count as a failure.
4. *saturated*: ``max_concurrent`` requests are in flight.

What a failed attempt counts against, no more than it proves (`Health._failed`):

5. *nobody*: the caller's mistake, or ours.
6. *reach*: the provider. Connecting failed, which a probe detects as well.
7. *load*: the target cools.
8. *model*: the target. The provider works, but does not have this model.
9. *target*: the target. If two targets open and no request to the provider was served in between, the provider opens
   too, and if its trial then fails in this way, it opens again. If the provider had opened because it could not be
   reached, a trial that fails in this way says nothing about reach: the next request may try.

Probes and requests are separate kinds of evidence: a successful probe clears failures of reach, a served request
clears everything. The outcome of a probe (`Health.probed`):

10. A failed probe is a failure of reach, and keeps an open circuit open, so that no request is wasted on a trial.
11. A probe that timed out proves nothing if the provider has answered a request since the probe was sent, or is
    answering one: a server with a single thread is busy with that. If a probe was connected, and got no answer or 5xx,
    one request may try after the backoff: perhaps only the list is slow or broken. If that one is served, such probes
    are ignored until one is answered; else they count as any others.
12. A probe that finds the provider busy, or without a list of models, has reached it.

Several workers may use the same providers. Each decides for itself, and broadcasts when a circuit opens, opens again,
cools, or clears. The later state wins. Reports of other instances are hints (`Health.take_hint`).

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from attrs import evolve, field

from manallm_proxy.contract.events import Status
from manallm_proxy.contract.provider_errors import (
    Blame,
    ConnectTimeout,
    ProbeTimeout,
    ProviderError,
    ResourcesExhausted,
)
from manallm_proxy.contract.records import define
from manallm_proxy.routing.circuit import COOLING_QUOTA, Circuit, Hint, Policy, SharedState, Skip, cooling_time

OWN_EVIDENCE = 1.0
"""Seconds for which a served request counts more than what other instances say."""
TARGETS_LIMIT = 100
"""Max targets of one provider whose state is kept. Clients choose their names, so the oldest is dropped."""


@define
class Permit:
    """Permission to attempt one target. The first `failed`, `served` or `released` ends it; later calls do nothing."""

    _health: Health
    _model: str
    _trial_of: tuple[Circuit, ...]
    _began: bool = False
    _over: bool = False

    def began(self, now: float) -> None:
        """The answer has begun (commit): a trial has succeeded, though the answer may still break."""
        if self._over or self._began:
            return
        self._began = True
        self._health.answering += 1
        self._health._heard(now)
        for circuit in self._trial_of:
            circuit.half_close(self._health.policy)
            circuit.on_trial = False
        self._trial_of = ()

    def served(self, now: float) -> None:
        """The answer is complete."""
        if self._end():
            self._health._served(self._model, now)

    def failed(self, error: ProviderError, now: float) -> None:
        """The attempt failed, or its answer broke. ``error.blame`` says what follows (rules 5 to 9)."""
        trials = self._trial_of
        if self._end():
            self._health._failed(self._model, error, now, trials)

    def released(self) -> None:
        """Nothing was learned: the client left, or the caller was at fault. A trial's slot is free again."""
        self._end()

    def _end(self) -> bool:
        if self._over:
            return False
        self._over = True
        self._health.in_flight -= 1
        self._health.answering -= self._began
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
    answering: int = 0
    """Requests in flight whose answer has begun."""
    reach_detail: str | None = field(default=None, eq=False)
    """Why it could not be reached, for people ("refused"); None once a probe has reached it."""
    heard_at: float | None = field(default=None, eq=False)
    """When the provider last answered a request, or began to; monotonic seconds."""
    unlisted: Literal["", "unclear", "down", "harmless"] = field(default="", eq=False)
    """What it means that the last probe was connected and got no list (rule 11); empty: it got an answer."""
    served_at: float = field(default=-math.inf, eq=False)
    """When a request was last served."""
    is_retired: bool = field(default=False, eq=False)
    """A reload has removed or changed the provider: what its last requests find concerns nobody else."""
    provider: Circuit = field(factory=Circuit)
    targets: dict[str, Circuit] = field(factory=dict)
    """Circuits by model; only those that are not blank."""
    reported: dict[str | None, Status] = field(factory=dict)
    """The last reported status per target (None: the provider), without those that are *healthy*."""
    shared: dict[str | None, SharedState] = field(factory=dict)
    """The state per target (None: the provider) that all workers know, without those that are clear."""
    _cleared: dict[str | None, float] = field(factory=dict)
    """When states that are no longer in ``shared`` became clear."""

    @property
    def unreached_why(self) -> str | None:
        """`reach_detail`, if that is what is wrong with the provider now."""
        failed = self.provider.failures and self.provider.last_error in ("connect_error", "connect_timeout")
        return self.reach_detail if failed else None

    def admit(self, model: str, now: float) -> Permit | Skip:
        """A permit to try `model` now, or the reason to skip it."""
        refusal = self.refusal(model, now)
        if refusal is not None:
            return refusal
        self.in_flight += 1
        target = self.targets.get(model)
        if target is None and self.provider.open_until is None:
            return Permit(self, model, ())
        return Permit(self, model, tuple([c for c in (self.provider, target) if c is not None and c.take_trial()]))

    def refusal(self, model: str, now: float) -> Skip | None:
        """Why `model` should not be tried now (rules 1 to 4), or None. Changes nothing."""
        # 1
        if not self.configured:
            return Skip("unconfigured")
        # 2, 3
        for circuit in (self.provider, self.targets.get(model)):
            if circuit is not None and (refusal := circuit.refusal(now)) is not None:
                return refusal
        # 4
        if self.max_concurrent is not None and self.in_flight >= self.max_concurrent:
            return Skip("saturated")
        return None

    def probed(self, error: ProviderError | None, now: float, sent_at: float | None = None) -> None:
        """A probe's outcome (rules 10 to 12). `error` None: the provider is alive. `sent_at`: when it was asked."""
        if isinstance(error, ResourcesExhausted):
            return  # nobody was asked
        # 12
        if error is None or error.blame in (Blame.LOAD, Blame.NOBODY):
            self.unlisted = ""
            self.provider.reached(now)
            return
        # 11
        if isinstance(error, ConnectTimeout) and self._heard_since(sent_at):
            return
        connected = isinstance(error, ProbeTimeout) or error.blame is Blame.TARGET
        self.unlisted = (self.unlisted or "unclear") if connected else ""
        if self.unlisted == "harmless":
            return
        # 10
        self.provider.fail(self.policy, now, error.error_type, reach=True, again=self.unlisted != "unclear")

    def _heard(self, now: float) -> None:
        """A request is being answered, or has been."""
        self.heard_at = now
        self.unlisted = "harmless" if self.unlisted else ""

    def _heard_since(self, sent_at: float | None) -> bool:
        heard_at = self.heard_at
        return self.answering > 0 or (sent_at is not None and heard_at is not None and heard_at >= sent_at)

    def _served(self, model: str, now: float) -> None:
        self._heard(now)
        self.served_at = now
        self.provider.close(now)
        for each in self.targets.values():
            each.witnessed = False
        if (circuit := self.targets.get(model)) is not None:
            circuit.close(now)
            if not circuit.is_cooling(now):
                del self.targets[model]

    def _failed(self, model: str, error: ProviderError, now: float, trials: tuple[Circuit, ...]) -> None:
        """Rules 5 to 9."""
        policy, reason = self.policy, error.error_type
        if error.provider_status is not None:
            self.heard_at = now
            if error.provider_status < 500:
                self._heard(now)
        # 5
        if error.blame is Blame.NOBODY:
            return
        # 6
        trial = any(each is self.provider for each in trials)
        if trial and self.unlisted == "unclear":  # 11
            self.unlisted = "down"
            self.provider.fail(policy, now, reason, reach=True, again=True)
        if error.blame is Blame.REACH:
            self.provider.fail(policy, now, reason, reach=True, again=trial)
            return
        circuit = self._target(model)
        # 7
        if error.blame is Blame.LOAD:
            circuit.cool(now + cooling_time(error), reason)
            return
        # 8, 9
        witness = error.blame is Blame.TARGET
        again = any(each is circuit for each in trials)
        opened = circuit.fail(policy, now, reason, reach=False, again=again, witnessed=witness)
        if witness and (opened or trial):
            self._judge_provider(now, reason, trial=trial)

    def _judge_provider(self, now: float, reason: str, *, trial: bool) -> None:
        """Opens the provider if its failed targets speak against it (rule 9)."""
        number = sum(circuit.is_open and circuit.witnessed for circuit in self.targets.values())
        if number > 1 or (trial and self.provider.witnessed):
            self.provider.open_by_targets(self.policy, now, reason, number, again=trial)

    def _of(self, model: str | None) -> Circuit:
        """The provider's circuit (`model` None), or the target's; a new one, not kept, if the target has none."""
        return self.provider if model is None else self.targets.get(model, Circuit())

    def _keep(self, model: str | None, circuit: Circuit) -> None:
        """Keeps a target's circuit unless it is blank."""
        if model is None:
            return
        if circuit.is_blank:
            self.targets.pop(model, None)
        elif model not in self.targets:
            _make_room(self.targets)
            self.targets[model] = circuit

    def _target(self, model: str) -> Circuit:
        if model not in self.targets:
            _make_room(self.targets)
        return self.targets.setdefault(model, Circuit())

    def pending_update(self, model: str | None, now: float) -> SharedState | None:
        """The circuit's change that other workers do not know yet, or None; marks it as broadcast."""
        circuit = self._of(model)
        update, known = circuit.shared_state(now), self._known(model)
        if update.outage == known.outage and (known.is_clear or not update.is_clear):
            return None
        if update.at <= known.at:  # another worker's clock was a little ahead; this state is later all the same
            update = evolve(update, at=math.nextafter(known.at, math.inf))
        self._note(model, update)
        return update

    def merge_update(self, model: str | None, update: SharedState) -> bool:
        """Takes over another worker's state of the provider (`model` None) or a target. False if ours holds instead."""
        if update.rank <= self._known(model).rank:
            return False
        circuit = self._of(model)
        opens = update.open_until is not None and update.open_until != circuit.open_until
        circuit.adopt(update)
        circuit.witnessed &= update.at > self.served_at
        self._keep(model, circuit)
        self._note(model, update)
        if model is not None and opens and circuit.witnessed:
            self._judge_provider(update.at, update.last_error or "", trial=False)
        return True

    def take_hint(self, model: str | None, hint: Hint, now: float) -> bool:
        """Applies what another instance found out (`model` None: about the provider). Our own evidence counts more.

        A cooling is adopted, since the limit is the account's. An outage is adopted unless we know of one ourselves,
        and never for longer than our own backoff; its end lets one request try. A provider that is serving us now is
        not considered down: then this returns True, the provider should be probed, and a failed probe decides.
        """
        circuit = self._of(model)
        doubtful = model is None and hint.open_for is not None and not circuit.is_open and self._serves(now)
        if hint.cooling_for is not None:
            circuit.cool(now + min(max(hint.cooling_for, 0.0), COOLING_QUOTA), hint.reason or "rate_limited")
        if hint.is_clear:
            circuit.open_until = None if circuit.open_until is None else min(circuit.open_until, now)
        elif doubtful and hint.reach:
            circuit.reach_failures = max(circuit.reach_failures, self.policy.failure_threshold - 1)
            circuit.last_error, circuit.last_check = hint.reason, now
        elif hint.open_for is not None and not (circuit.is_open or doubtful):
            circuit.fail(self.policy, now, hint.reason or "unknown", reach=hint.reach, again=False)
            circuit.open_until = now + min(max(hint.open_for, 0.0), self.policy.backoff)
            circuit.witnessed = hint.witnessed
        self._keep(model, circuit)
        self._note(model, circuit.shared_state(now))
        return doubtful and hint.reach

    def _serves(self, now: float) -> bool:
        return self.answering > 0 or now - self.served_at <= OWN_EVIDENCE

    def _known(self, model: str | None) -> SharedState:
        return self.shared.get(model) or SharedState(self._cleared.get(model, -math.inf))

    def _note(self, model: str | None, update: SharedState) -> None:
        self.shared.pop(model, None)
        self._cleared.pop(model, None)
        if update.is_clear:
            _make_room(self._cleared)
            self._cleared[model] = update.at
        else:
            _make_room(self.shared)
            self.shared[model] = update

    def status(self, now: float) -> Status:
        """The provider's status, in one word. If all its targets are cooling, it is cooling itself."""
        if not self.configured:
            return "unconfigured"
        own = self.provider.status(now)
        if own != "healthy":
            return own
        states = {circuit.status(now) for circuit in self.targets.values() if not circuit.lacks_model} - {"healthy"}
        if not states:
            return "healthy"
        return "cooling" if states == {"cooling"} else "degraded"

    def is_usable(self, now: float) -> bool:
        """Whether a request may be sent to this provider now, as far as the provider itself goes."""
        return self.configured and self.provider.refusal(now) is None


def _make_room(held: dict[Any, Any]) -> None:
    """Drops the oldest if there are TARGETS_LIMIT."""
    if len(held) >= TARGETS_LIMIT:
        del held[next(iter(held))]
