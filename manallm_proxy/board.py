"""Health of all providers, and the one place that reports its changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field

from manallm_proxy.chain import Target
from manallm_proxy.errors import ProviderError
from manallm_proxy.events import HealthChanged, Observer
from manallm_proxy.health import Circuit, Health, Permit, Skip, Status

Clock = Callable[[], float]


@define
class Board:
    """``clock`` is monotonic seconds. Providers come from one configuration; their `Health` may be older."""

    providers: Mapping[str, Health]
    clock: Clock
    observe: Observer
    _told: dict[tuple[str, str | None], Status] = field(factory=dict)

    def admit(self, target: Target) -> Permit | Skip:
        """See `Health.admit`."""
        return self.providers[target.provider].admit(target.model, self.clock())

    def began(self, target: Target, permit: Permit) -> None:
        permit.began()
        self.note(target.provider)

    def served(self, target: Target, permit: Permit) -> None:
        permit.served(self.clock())
        self.note(target.provider)

    def failed(self, target: Target, permit: Permit, error: ProviderError) -> None:
        permit.failed(error, self.clock())
        self.note(target.provider)

    def probed(self, provider: str, error: ProviderError | None) -> None:
        self.providers[provider].probed(error, self.clock())
        self.note(provider)

    def again_in(self, targets: Iterable[Target]) -> float | None:
        """Seconds until the first of `targets` may be tried; None where none ever may."""
        now = self.clock()
        waits = [self._again_in(t, now) for t in targets if self.providers[t.provider].configured]
        return min(waits, default=None)

    def _again_in(self, target: Target, now: float) -> float:
        health = self.providers[target.provider]
        circuits = (health.provider, health.targets.get(target.model))
        refusals = [r for c in circuits if c is not None and (r := c.refusal(now)) is not None]
        return max((r.again_in or 0.0 for r in refusals), default=0.0)

    def note(self, provider: str) -> None:
        """Reports what changed since the last time. *Degraded* is told by numbers, not by a line each."""
        health = self.providers[provider]
        now = self.clock()
        if health.provider.is_blank and not health.targets and not self._told:
            return
        self._tell(provider, None, health.provider, now)
        for model, circuit in health.targets.items():
            self._tell(provider, model, circuit, now)
        for name, gone in [key for key in self._told if key[0] == provider]:
            if gone is not None and gone not in health.targets:
                self._tell(name, gone, Circuit(), now)

    def _tell(self, provider: str, model: str | None, circuit: Circuit, now: float) -> None:
        is_now = circuit.status(now)
        is_now = "healthy" if is_now == "degraded" else is_now
        was = self._told.get((provider, model), "healthy")
        if is_now == "healthy":
            self._told.pop((provider, model), None)
        else:
            self._told[provider, model] = is_now
        if is_now != was:
            self.observe(HealthChanged(provider, model, was, is_now, circuit.last_error))

    def carry(self, told_before: Board) -> None:
        """Goes on where an older generation's board stopped telling."""
        self._told.update((key, told) for key, told in told_before._told.items() if key[0] in self.providers)
