"""Walk a chain until one target serves. Written once, for every endpoint, streamed or not.

For each target in order:

1. Not worth trying now (`health` says why): note it, next.
2. Attempt it. An answer: done.
3. A failure that is the provider's, or one that ``fallback_on`` lists: blame it, note it, next.
4. Any other failure is the caller's to hear: it ends the walk and blames nobody.
5. Anything else (the client left, a bug) ends the walk too, and the trial's place is free again.

No target left: `NoProvider`, which tells entry by entry why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from attrs import define, field

from manallm_proxy.contract.errors import Attempt, NoProvider
from manallm_proxy.contract.events import AttemptFailed, FellBack, KeyWasRejected
from manallm_proxy.contract.provider_errors import KeyRejected, ProviderError
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.health import Permit
from manallm_proxy.routing.health_registry import HealthRegistry

T = TypeVar("T")


@define  # not frozen: as `events.RequestEnded`
class Served(Generic[T]):
    """What the walk ended with. ``permit`` is still open: whoever relays the answer says how it ended."""

    entry: Entry
    permit: Permit
    value: T


@define
class Walk:
    """One request's way along its chain. ``log`` can be read at any time, also when the walk was left."""

    chain: Chain
    registry: HealthRegistry
    request_id: str
    log: list[Attempt] = field(factory=list)
    tried: int = 0
    _passed: list[tuple[str, str, bool]] = field(factory=list)
    """Targets passed since the last attempt: name, reason, whether only ``fallback_on`` let us pass."""

    async def run(self, attempt: Callable[[Entry], Awaitable[T]], asked: str) -> Served[T]:
        """The first answer along the chain. `asked` is what the request called it, for the message."""
        for entry in self.chain:
            # 1
            verdict = self.registry.admit(entry.target)
            if isinstance(verdict, Skip):
                self._pass(Attempt(str(entry.target), verdict.reason))
                continue
            # 2
            self._tell_fallback(entry)
            started = self.registry.clock()
            self.tried += 1
            try:
                value = await attempt(entry)
            except ProviderError as error:
                self._failed(entry, verdict, error, started)
            except BaseException:  # 5
                verdict.released()
                raise
            else:
                return Served(entry, verdict, value)
        raise NoProvider(asked, self.log, self.registry.again_in(e.target for e in self.chain))

    def _failed(self, entry: Entry, permit: Permit, error: ProviderError, started: float) -> None:
        target = entry.target
        error.target = str(target)
        duration = self.registry.clock() - started
        self.registry.observe(
            AttemptFailed(self.request_id, target.provider, target.model, error.error_type, error.detail, duration)
        )
        if isinstance(error, KeyRejected):
            self.registry.observe(KeyWasRejected(target.provider, error.provider_status))
        widened = not error.retryable and is_widened(error, entry)
        # 4
        if not (error.retryable or widened):
            permit.released()
            raise error
        # 3
        self.registry.failed(target, permit, error)
        line = Attempt(str(target), error.error_type, error.provider_status, error.detail, duration)
        self._pass(line, widened=widened)

    def _pass(self, line: Attempt, *, widened: bool = False) -> None:
        self.log.append(line)
        self._passed.append((line.model, line.reason, widened))

    def _tell_fallback(self, to: Entry) -> None:
        for model, reason, widened in self._passed:
            self.registry.observe(FellBack(self.request_id, model, str(to.target), reason, widened))
        self._passed.clear()


def is_widened(error: ProviderError, entry: Entry) -> bool:
    """Whether the operator lets the walk move on from an error that is not the provider's failure."""
    if not entry.fallback_on:
        return False
    return error.widened_by in entry.fallback_on or str(error.provider_status) in entry.fallback_on
