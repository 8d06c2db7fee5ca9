"""Walks a chain until one target serves; for every endpoint, streamed or not.

For each target in order:

1. If health, a gate or the budget is against it now, or no listed model fits an open entry: note the reason, next.
2. Attempt it. If it answers, the walk is over.
3. A failure of the provider, or one that ``fallback_on`` lists: report it to health, note it, next.
4. Any other failure goes to the caller: it ends the walk and blames nobody.
5. Any other exception (the client left, a bug) ends the walk too, and releases the permit.
6. In a tier with ``hedge``, a second target is asked if the first has not begun within that time; see `hedging`.
7. Those that were only busy are returned to if nobody behind them answered, and the request waits there.

No target left, or the chain's time is over: `NoProvider`, which says entry by entry why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from attrs import evolve, field

from manallm_proxy.contract.attempts import AttemptRecord, exhausted
from manallm_proxy.contract.events import AttemptFailed, FellBack, KeyWasRejected
from manallm_proxy.contract.provider_errors import ChainTimeout, KeyRejected, LoadFailed, ProviderError, QueueTimeout
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.circuit import BUDGET, LOADING, NO_MODEL, OF_HEALTH, Declined, Skip
from manallm_proxy.routing.health import Permit
from manallm_proxy.routing.health_registry import HealthRegistry
from manallm_proxy.routing.hedging import Racer, close_unwanted, next_end
from manallm_proxy.routing.time_limit import asked_within, within

T = TypeVar("T")
HEDGED: Final = "hedged"
"""The log's reason for the loser of two hedged attempts, which did nothing wrong."""


@define
class Walk:
    """One request's way along its chain. ``log`` can be read at any time, even after the walk was cancelled."""

    chain: Chain
    registry: HealthRegistry
    request_id: str
    gate: Callable[[Entry, Callable[[Entry], bool]], Skip | None] = lambda entry, is_last: None
    """Checks beyond health: (entry, `is_last`) -> why to skip it now, or None."""
    may_serve: Callable[[Entry], bool] | None = None
    """Whether these checks would let a last entry pass now, without their side effects; None: it does not matter."""
    log: list[AttemptRecord] = field(factory=list)
    tried: int = 0
    trying: Target | None = None
    """The last target that was asked, until the walk moves on from it."""
    trying_at: float | None = None
    _hedged: tuple[Entry, ...] = ()
    """Entries that were asked while another one was under way."""
    _busy: list[Entry] = field(factory=list)
    """Entries at which the request could have waited; see 7."""
    _returns: bool = False
    """Whether it waits at them now."""
    _passed: list[tuple[str, str, bool]] = field(factory=list)
    """Targets passed since the last attempt: name, reason, whether only ``fallback_on`` allowed it."""

    async def run(
        self,
        ask: Callable[[Entry], Awaitable[T]],
        asked: str,
        aclose: Callable[[T], Awaitable[None]] | None = None,
    ) -> Attempt[T]:
        """The first answer along the chain.

        `ask` makes one attempt; `aclose` closes what it returned. `asked`: the request's name for the chain, for the
        error message. Raises NoProvider, or the ProviderError that ends the walk (4).
        """
        clock = self.registry.clock
        until = clock() + self.chain.timeout if self.chain.timeout else None
        for entry in self._way() if self.may_serve is not None or self.chain.has_tiers else self.chain.entries:
            if until is not None and clock() >= until:
                self._pass(AttemptRecord(str(entry.target), ChainTimeout.reason, detail="not tried"))
                continue
            # 1
            verdict = self._verdict(entry)
            if isinstance(verdict, Skip):
                self._skip(entry, verdict)
                continue
            # 6
            if entry.tier is not None and entry.tier.hedge is not None and not self._returns:
                attempt = await self._race(entry, verdict, ask, until, aclose)
                if attempt is not None:
                    return attempt
                continue
            # 2
            if self._passed:
                self._report_fallback(entry)
            started = clock()
            self.tried += 1
            self.trying, self.trying_at = entry.target, started
            try:
                value = await (ask(entry) if until is None else within(until - started, ask(entry)))
            except ProviderError as error:
                self._failed(entry, verdict, error, started)
                clear_tracebacks(error)
            except Declined as no:
                self._declined(entry, verdict, no.skip)
            except BaseException:  # 5
                verdict.released()
                raise
            else:
                close = partial(aclose, value) if aclose is not None else None
                return Attempt(entry, value, verdict, self.registry, close)
        spent = {line.model for line in self.log if line.reason == BUDGET}  # too far away to be worth a Retry-After
        targets = [entry.target for entry in self.chain if str(entry.target) not in spent]
        # health is asked again, since its state may have changed meanwhile
        rests = {each.model: each.again_at for each in self.log if each.again_at and each.reason not in OF_HEALTH}
        again_in = self.registry.again_in(targets, rests)
        names_target = self.chain.alias is None
        raise exhausted(asked, self.log, again_in, names_target=names_target, local_only=self.chain.local_only)

    # 7

    def _way(self) -> Iterator[Entry]:
        """The entries of the chain but those that were hedged; and before those that could not be asked, or at its end,
        those that were busy."""
        before = None
        for entry in self.chain.entries:
            if self._hedged and self._is_hedged(entry):
                continue
            if self._busy and before is not None and self.is_last(before):
                yield from self._again()
            yield entry
            before = entry
        yield from self._again()

    def _again(self) -> Iterator[Entry]:
        """Entries that were busy, and could serve whoever waits there."""
        self._returns = True
        while self._busy:
            entry = self._busy.pop(0)
            if self.may_serve is not None and self.registry.refusal(entry.target) is None and self.may_serve(entry):
                yield entry

    # 6

    async def _race(
        self,
        entry: Entry,
        permit: Permit,
        ask: Callable[[Entry], Awaitable[T]],
        until: float | None,
        aclose: Callable[[T], Awaitable[None]] | None,
    ) -> Attempt[T] | None:
        """The first answer of `entry` or of a second member of its tier; None if all that were asked failed."""
        assert entry.tier is not None
        hedge_delay = entry.tier.hedge
        racers = [self._begin(entry, permit, ask, until)]
        try:
            while racers:
                racer = await next_end(racers, hedge_delay)
                if racer is None:
                    hedge_delay = None
                    if (spare := self._spare(entry)) is not None:
                        racers.append(self._begin(*spare, ask, until))
                    continue
                racers.remove(racer)
                try:
                    value = racer.task.result()
                except ProviderError as error:
                    self._failed(racer.entry, racer.permit, error, racer.started)
                    clear_tracebacks(error)
                except Declined as no:
                    self._declined(racer.entry, racer.permit, no.skip)
                except BaseException:
                    racer.permit.released()
                    raise
                else:
                    self._won(racer, racers)
                    close = partial(aclose, value) if aclose is not None else None
                    return Attempt(racer.entry, value, racer.permit, self.registry, close)
            return None
        finally:
            for racer in racers:
                racer.leave(aclose)

    def _begin(
        self, entry: Entry, permit: Permit, ask: Callable[[Entry], Awaitable[T]], until: float | None
    ) -> Racer[T]:
        self._report_fallback(entry)
        started = self.registry.clock()
        self.tried += 1
        self.trying, self.trying_at = entry.target, started
        asking = asked_within(None if until is None else until - started, ask, entry)
        return Racer(entry, permit, started, asyncio.ensure_future(asking))

    def _spare(self, first: Entry) -> tuple[Entry, Permit] | None:
        """The next member of the tier that may be asked now."""
        for entry in self._behind(first):
            if entry.tier != first.tier:
                return None
            if self._is_hedged(entry):
                continue
            if isinstance(verdict := self._verdict(entry), Permit):
                self._hedged = (*self._hedged, entry)
                return entry, verdict
        return None

    def _is_hedged(self, entry: Entry) -> bool:
        return any(each is entry for each in self._hedged)

    def _won(self, racer: Racer[T], others: list[Racer[T]]) -> None:
        now = self.registry.clock()
        for other in others:
            line = AttemptRecord(str(other.entry.target), HEDGED, None, "another one began first", now - other.started)
            self.log.append(evolve(line, at=other.started))
            if other.started < racer.started:
                self._passed.append((line.model, HEDGED, False))
        self._report_fallback(racer.entry)
        self.trying, self.trying_at = racer.entry.target, racer.started

    def _behind(self, first: Entry) -> tuple[Entry, ...]:
        """The entries of the chain after `first`."""
        entries = self.chain.entries
        return entries[next(n for n, entry in enumerate(entries) if entry is first) + 1 :]

    def is_last(self, entry: Entry) -> bool:
        """Whether no entry after this one could be asked now: then a request waits here where else it moves on."""
        if self._returns or entry is self.chain.entries[-1]:
            return True
        may_serve = self.may_serve
        return may_serve is not None and not any(
            not (each.target.is_open or self._is_hedged(each))
            and self.registry.refusal(each.target) is None
            and may_serve(each)
            for each in self._behind(entry)
        )

    def _verdict(self, entry: Entry) -> Permit | Skip:
        verdict = self.registry.admit(entry.target)
        if isinstance(verdict, Skip):
            return verdict
        skip = self._refusal(entry)
        if skip is None:
            return verdict
        verdict.released()
        if skip.reason != NO_MODEL:
            self._note_busy(entry)
        return skip

    def _note_busy(self, entry: Entry) -> None:
        """`entry` is passed, but not for a failure of its own."""
        if not self._returns and all(each is not entry for each in self._busy):
            self._busy.append(entry)

    def refusal(self, entry: Entry) -> Skip | None:
        """Why `entry` would be skipped now, or None. Takes no permit: for reports about the chain."""
        return self.registry.refusal(entry.target) or self._refusal(entry)

    def _refusal(self, entry: Entry) -> Skip | None:
        if self.chain.is_open and entry.target.is_open:
            return Skip(NO_MODEL, detail=entry.unfilled)
        return self.gate(entry, self.is_last)

    def _failed(self, entry: Entry, permit: Permit, error: ProviderError, started: float) -> None:
        target = entry.target
        error.target = str(target)
        duration = self.registry.clock() - started
        self.registry.observe(
            AttemptFailed(
                self.request_id,
                target.provider,
                target.model,
                error.error_type,
                error.detail,
                duration,
                error.provider_message,
            )
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
        if isinstance(error, QueueTimeout):
            self._note_busy(entry)
        elif isinstance(error, ChainTimeout):
            self._busy.clear()
        self.trying = None
        record = AttemptRecord(str(target), error.error_type, error.provider_status, error.detail, duration, started)
        if isinstance(error, LoadFailed) and error.retry_after is not None:  # of which health knows nothing
            record = evolve(record, again_at=self.registry.clock() + error.retry_after)
        self._pass(record, widened=widened)

    def _declined(self, entry: Entry, permit: Permit, skip: Skip) -> None:
        permit.released()
        self.tried -= 1
        self.trying = None
        if skip.reason == LOADING:
            self._note_busy(entry)
        self._skip(entry, skip)

    def _skip(self, entry: Entry, skip: Skip) -> None:
        now = self.registry.clock()
        again_at = None if skip.again_in is None else now + skip.again_in
        self._pass(AttemptRecord(str(entry.target), skip.reason, detail=skip.detail, at=now, again_at=again_at))

    def _pass(self, record: AttemptRecord, *, widened: bool = False) -> None:
        self.log.append(record)
        self._passed.append((record.model, record.reason, widened))

    def _report_fallback(self, to: Entry) -> None:
        for model, reason, widened in self._passed:
            self.registry.observe(FellBack(self.request_id, model, str(to.target), reason, widened))
        self._passed.clear()


def is_widened(error: ProviderError, entry: Entry) -> bool:
    """Whether ``fallback_on`` lets the walk move on from an error that is not the provider's failure.

    It may list the error's class, the provider's status or the client's: local servers say 500 where others say 400."""
    if not entry.fallback_on:
        return False
    return not entry.fallback_on.isdisjoint((error.widened_by, str(error.provider_status), str(error.status)))


async def in_background(
    walking: Coroutine[Any, Any, Attempt[T]], interval: float, signal: Callable[[], Awaitable[None]]
) -> Attempt[T]:
    """The result of `walking`. Until it is there, calls `signal` every `interval` seconds.

    A successful attempt is always either returned or closed: the client may leave in the same loop iteration in
    which the walk succeeds, and its task may be cancelled again while we clean up.
    """
    task = asyncio.ensure_future(walking)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=interval)
            if done:
                return task.result()
            await signal()
    except BaseException:
        task.cancel()
        task.add_done_callback(partial(close_unwanted, Attempt.aclose))
        raise
