"""Servers that load models on demand: asked what is loaded, and made to load what is wanted, whoever leaves.

A load is ours and no client's: it has a connection of its own, goes on when patience with it ends, and is one per
model however many ask. `residency` decides; here is what waits. Providers that are none of these cost one look-up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define, evolve, field

from manallm_proxy.contract.events import Crashed, HalfOnCpu, LoadEvent, ModelLoad, Observer, ResidentsUnreadable
from manallm_proxy.contract.provider_errors import Blame, LoadFailed, ProviderError, StillLoading
from manallm_proxy.contract.residents import ModelHost, Resident
from manallm_proxy.contract.targets import Chain, Entry, ollama_name
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.health_registry import Clock
from manallm_proxy.routing.residency import POLL_BUSY, Outcome, Residency

ANSWER_TIMEOUT: Final = 3.0
"""Seconds for the server to tell what is loaded."""
_LOADS_FAIL: Final = (Blame.TARGET, Blame.LOAD)
"""What a failed load says of the model. Any other failure the request itself will meet, and say so better."""


@define(eq=False)
class Box:
    """One such server. ``warm``: what is to be loaded always."""

    provider: str
    host: ModelHost
    clock: Clock
    observe: Observer
    warm: tuple[Entry, ...] = ()
    slow_last: bool = True
    """Whether a model that is half on the CPU is tried behind all others."""
    residency: Residency = field(factory=Residency)
    _loading: dict[str, asyncio.Task[ProviderError | None]] = field(factory=dict)
    _slow: set[str] = field(factory=set)
    """Models that were reported to be half on the CPU."""
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _watching: asyncio.Task[None] | None = None

    def gate(self, entry: Entry, last: bool) -> Skip | None:
        """As `refusal`. A model for which nobody waits is loaded for those who come later."""
        skip = self.refusal(entry, last)
        if skip is not None and skip.again_in is None:
            self._load(entry)
        return skip

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """Why `entry` is not to be tried now; None where it may be, after `loaded`. `last`: nobody comes after it."""
        now = self.clock()
        if self._is_ready(entry, now):
            return None
        model = entry.target.model
        rest = self.residency.rest(model, now, ("failed",) if last else ("failed", "flap"))
        if rest and ollama_name(model) not in self._loading:
            return Skip("loading", rest, "its last load failed, or did not last")
        if entry.cold == "next" and not last:
            return Skip("loading", detail="not loaded yet")
        return None

    async def loaded(self, entry: Entry) -> None:
        """Returns once `entry`'s model is loaded, as far as is known. The load goes on if this does not wait for it.

        StillLoading after ``load_timeout``, LoadFailed.
        """
        if self._is_ready(entry, self.clock()):
            return
        task = self._load(entry)
        patience = self.residency.patience(entry)
        done, _ = await asyncio.wait([task], timeout=patience)
        if not done:
            raise StillLoading(f"{entry.target} is still being loaded", detail=f"{patience:.3g} s")
        error = None if task.cancelled() else task.result()
        if error is not None and error.blame in _LOADS_FAIL:
            raise LoadFailed(f"{entry.target} could not be loaded", detail=error.detail or error.error_type)

    def _is_ready(self, entry: Entry, now: float) -> bool:
        """Loaded, or not known: then it is asked as any other."""
        if self.residency.is_loaded(entry, now) is False:
            return False
        self.residency.used(entry, now)
        if not self.residency.observe_in(now):
            self._wake.set()
        return True

    def _load(self, entry: Entry, *, pinned: bool = False) -> asyncio.Task[ProviderError | None]:
        """The one load of this model, begun if there is none."""
        name = ollama_name(entry.target.model)
        task = self._loading.get(name)
        if task is None:
            self.residency.load_begun(entry, self.clock())
            self.observe(ModelLoad(self.provider, entry.target.model, "begun"))
            task = self._loading[name] = asyncio.ensure_future(self._carry(entry, pinned))
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return task

    async def _carry(self, entry: Entry, pinned: bool) -> ProviderError | None:
        """A load to its end: what kept it from finishing, None where nothing did."""
        began, error = self.clock(), None
        try:
            await self.host.load(entry, pinned=pinned)
        except ProviderError as failed:
            error = failed.with_traceback(None)
        except BaseException:
            self._ended(entry, began, "aborted")
            raise
        self._ended(entry, began, "finished" if error is None else "failed", error)
        return error

    def _ended(self, entry: Entry, began: float, event: LoadEvent, error: ProviderError | None = None) -> None:
        now = self.clock()
        kept_out = error is not None and error.blame not in _LOADS_FAIL
        outcome: Outcome = "well" if event == "finished" else "refused" if kept_out or error is None else "failed"
        failures = self.residency.load_ended(entry, now, outcome)
        detail = None if error is None else error.detail or error.error_type
        again = event == "failed" and failures > 1
        self.observe(ModelLoad(self.provider, entry.target.model, event, now - began, detail, again))
        self._wake.set()

    # --- what is loaded ---

    def start(self) -> None:
        """Watches from now on, until `close`."""
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            wait = self.residency.observe_in(self.clock())
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
            try:
                await self.look()
            except Exception as error:  # a bug in one look must not end the others
                self.observe(Crashed(f"models of {self.provider}", error))
                await asyncio.sleep(POLL_BUSY)

    async def look(self, seconds: float = ANSWER_TIMEOUT) -> None:
        """Asks what is loaded, and loads what should be."""
        asked_at = self.clock()
        try:
            residents = await self.host.residents(seconds)
        except ProviderError as error:
            if self.residency.not_observed(asked_at, unreadable=error.blame is not Blame.REACH):
                self.observe(ResidentsUnreadable(self.provider, error.detail or error.error_type))
            return
        self.residency.observed(residents, asked_at)
        self._report_slow(residents)
        now = self.clock()
        for entry in self.warm:
            if self.residency.is_loaded(entry, now) is False and not self.residency.rest(entry.target.model, now):
                self._load(entry, pinned=True)

    def _report_slow(self, residents: Iterable[Resident]) -> None:
        """Once, and again when it has been well in between."""
        slow = {each.name: each for each in residents if self.residency.on_cpu(each.name) is not None}
        for name in slow.keys() - self._slow:
            self.observe(HalfOnCpu(self.provider, name, slow[name].size, slow[name].size_vram))
        self._slow = set(slow)

    async def close(self) -> None:
        """Ends the watch, and what it loads."""
        tasks = [*self._loading.values(), *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.host.close()


@define
class Boxes:
    """All of them, by provider."""

    boxes: Mapping[str, Box] = field(factory=dict)

    def gate(self, entry: Entry, last: bool) -> Skip | None:
        """See `Box.gate`."""
        box = self.boxes.get(entry.target.provider)
        return box.gate(entry, last) if box is not None else None

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """See `Box.refusal`. It begins no load."""
        box = self.boxes.get(entry.target.provider)
        return box.refusal(entry, last) if box is not None else None

    async def loaded(self, entry: Entry) -> None:
        """See `Box.loaded`."""
        if (box := self.boxes.get(entry.target.provider)) is not None:
            await box.loaded(entry)

    def slow_last(self, chain: Chain) -> Chain:
        """`chain` with the targets behind all others that are half on the CPU: used when no other can serve."""
        if not self.boxes or len(chain) < 2:
            return chain
        slow = [entry for entry in chain if self._goes_last(entry)]
        if not slow:
            return chain
        return evolve(chain, entries=(*(entry for entry in chain if entry not in slow), *slow))

    def _goes_last(self, entry: Entry) -> bool:
        box = self.boxes.get(entry.target.provider)
        return box is not None and box.slow_last and box.residency.on_cpu(entry.target.model) is not None

    async def look(self, seconds: float) -> None:
        """One look at each, for a start; what goes wrong, `Box.start` will meet again."""
        await asyncio.gather(*(box.look(seconds) for box in self.boxes.values()), return_exceptions=True)

    def start(self) -> None:
        for box in self.boxes.values():
            box.start()
