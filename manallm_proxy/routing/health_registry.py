"""Health of all providers, and the one place that reports its changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from manallm_proxy.contract.events import HealthChanged, Observer
from manallm_proxy.contract.provider_errors import Blame, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.routing.circuit import Circuit, Hint, SharedState, Skip
from manallm_proxy.routing.health import Health, Permit

Clock = Callable[[], float]
Broadcast = Callable[[str, str | None, SharedState], None]
"""Sends the state of a provider (model None), or of one of its models, to the other workers."""
_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


@define
class HealthRegistry:
    """``clock`` is monotonic seconds. Providers come from one configuration; their `Health` may be older."""

    providers: Mapping[str, Health]
    clock: Clock
    observe: Observer
    broadcast: Broadcast | None = None
    """None if there are no other workers."""

    def admit(self, target: Target) -> Permit | Skip:
        """See `Health.admit`."""
        return self.providers[target.provider].admit(target.model, self.clock())

    def refusal(self, target: Target) -> Skip | None:
        """Why `admit` would refuse `target` now, or None. Takes no permit."""
        return self.providers[target.provider].refusal(target.model, self.clock())

    def in_flight(self, target: Target) -> int:
        """Requests in flight at the target's provider."""
        return self.providers[target.provider].in_flight

    def may_pass(self, target: Target) -> bool:
        """Whether a request to `target` would be tried now, as far as its health goes."""
        return self.providers[target.provider].configured and not self._again_in(target, self.clock())

    def passing(self) -> Callable[[Target], bool]:
        """`may_pass` as of now, for thousands of targets: each provider is looked at once."""
        now = self.clock()
        usable = {
            name for name, health in self.providers.items() if health.configured and not _rest(now, health.provider)
        }
        resting = {
            (name, model)
            for name, health in self.providers.items()
            for model, circuit in health.targets.items()
            if _rest(now, circuit)
        }
        return lambda target: target.provider in usable and (target.provider, target.model) not in resting

    def began(self, target: Target, permit: Permit) -> None:
        permit.began(self.clock())
        self.note(target.provider)

    def served(self, target: Target, permit: Permit) -> None:
        permit.served(self.clock())
        self.note(target.provider)

    def failed(self, target: Target, permit: Permit, error: ProviderError) -> None:
        permit.failed(error, self.clock())
        if error.blame is Blame.REACH:
            self.providers[target.provider].reach_detail = error.detail
        self.note(target.provider)

    def probed(self, provider: str, error: ProviderError | None, sent_at: float | None = None) -> None:
        health = self.providers[provider]
        health.probed(error, self.clock(), sent_at)
        health.reach_detail = error.detail if error is not None and error.blame is Blame.REACH else None
        self.note(provider)

    def again_in(self, targets: Iterable[Target], rests: Mapping[str, float] = _NOTHING) -> float | None:
        """Seconds until the first of `targets` may be tried; None if none ever may.

        `rests`: by target name, the monotonic time until which a gate beyond health skips it.
        """
        now = self.clock()
        known = [target for target in targets if self.providers[target.provider].configured]
        waits = [max(self._again_in(target, now), rests.get(str(target), now) - now) for target in known]
        return min(waits, default=None)

    def _again_in(self, target: Target, now: float) -> float:
        health = self.providers[target.provider]
        return _rest(now, health.provider, health.targets.get(target.model))

    def note(self, provider: str) -> None:
        """Reports what changed since the last time. *Degraded* shows in metrics only; it is not logged.

        What was reported is kept with the health, which several generations of the configuration share.
        """
        health = self.providers[provider]
        if health.is_retired or (
            health.provider.is_blank and not health.targets and not health.reported and not health.shared
        ):
            return
        now = self.clock()
        for model in (None, *({*health.targets, *health.reported, *health.shared} - {None})):
            self._report(provider, model, now, self.observe)
            if self.broadcast is not None and (update := health.pending_update(model, now)) is not None:
                self.broadcast(provider, model, update)

    def retire(self, successor: HealthRegistry) -> None:
        """`successor` holds from now on. What requests in flight find of a provider that it does not share, whose name
        may mean another server by now, is neither reported nor sent to the others."""
        for name, health in self.providers.items():
            health.is_retired = successor.providers.get(name) is not health

    def merge_update(self, provider: str, model: str | None, update: SharedState) -> None:
        """Takes over another worker's state. That worker has reported it; only its consequence together with our own
        targets is reported here (rule 9 of `health`)."""
        health = self.providers.get(provider)
        if health is None:
            return
        before = health.provider.open_until
        if health.merge_update(model, update):
            self._report(provider, model, self.clock(), lambda event: None)
            if model is not None and health.provider.open_until != before:
                self.note(provider)

    def take_hint(self, provider: str, model: str | None, hint: Hint) -> bool:
        """Applies what another instance found out and logged. Returns whether the provider should be probed."""
        now = self.clock()
        doubtful = self.providers[provider].take_hint(model, hint, now)
        self._report(provider, model, now, lambda event: None)
        return doubtful

    def _report(self, provider: str, model: str | None, now: float, observe: Observer) -> None:
        health = self.providers[provider]
        reported = health.reported
        circuit = health.provider if model is None else health.targets.get(model, Circuit())
        is_now = circuit.status(now)
        is_now = "healthy" if is_now == "degraded" else is_now
        was = reported.get(model, "healthy")
        if is_now == "healthy":
            reported.pop(model, None)
        else:
            reported[model] = is_now
        if is_now != was:
            reason = None if is_now == "healthy" else circuit.last_error
            detail = health.unreached_why if model is None and reason is not None else None
            observe(HealthChanged(provider, model, was, is_now, reason, detail))


def _rest(now: float, *circuits: Circuit | None) -> float:
    """Seconds until all `circuits` let a request through; 0: now, or as soon as another one's trial ends."""
    refusals = [r for c in circuits if c is not None and (r := c.refusal(now)) is not None]
    return max((r.again_in or 0.0 for r in refusals), default=0.0)
