"""Boxes: local servers that load models on demand. Polls what each has loaded, and loads what requests need.

A load belongs to the proxy and not to a client: it has a connection of its own, goes on when the client has left or
has waited long enough, and there is one per model however many clients ask for it. `residency` decides; this file
waits. A provider that is not a box costs one dictionary look-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.events import Crashed, LoadEvent, ModelLoad, Observer, PartialOffload, ResidentsUnreadable
from manallm_proxy.contract.provider_errors import BadResponse, Blame, LoadFailed, LoadTimeout, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.residents import ModelHost, Resident
from manallm_proxy.contract.targets import Chain, Entry, ollama_name
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.health_registry import Clock
from manallm_proxy.routing.residency import POLL_BUSY, Outcome, Residency
from manallm_proxy.routing.shared_line import LoadEnd, Loads

ANSWER_TIMEOUT: Final = 3.0
"""Max seconds for a server to answer which models are loaded."""
_NOT_NOW: Final = (Blame.REACH, Blame.LOAD)
"""Failures that say nothing of what the server is able to: it is away, starting or busy."""
_LOAD_FAILURES: Final = (Blame.TARGET, Blame.LOAD)
"""Failures that show that the model itself cannot be loaded. After any other failure the request is sent anyway: it
meets the same failure, and reports it better."""


@define(eq=False)
class Box:
    """One box. ``warm``: entries whose models are kept loaded."""

    provider: str
    host: ModelHost
    clock: Clock
    observe: Observer
    warm: tuple[Entry, ...] = ()
    on_slots: Callable[[Mapping[str, int]], None] = lambda slots: None
    """Called with the slots that the server reports, see `Line.reported_slots`."""
    on_reached: Callable[[], None] = lambda: None
    """Called when it answers again after it could not be reached."""
    slow_last: bool = True
    """Whether a model that is partly on the CPU is tried after all other entries."""
    loads: Loads | None = None
    """Coordinates loads with the other workers; None: there are no others."""
    server: str = ""
    """The server's name in ``loads``."""
    alone: bool = False
    """Whether it loads one model at a time, see `Loads.claim`."""
    residency: Residency = field(factory=Residency)
    _loading: dict[str, asyncio.Task[ProviderError | None]] = field(factory=dict)
    _slots: Mapping[str, int] = field(factory=dict)
    """As last reported."""
    _is_away: bool = False
    """It could not be reached the last time, by a request or a poll."""
    _slow: set[str] = field(factory=set)
    """Models reported to be partly on the CPU."""
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _watching: asyncio.Task[None] | None = None
    _lag: float = field(init=False)
    """Seconds by which each poll is delayed, see `Loads.lag`."""

    def __attrs_post_init__(self) -> None:
        self._lag = self.loads.lag if self.loads is not None else 0.0

    def gate(self, entry: Entry, last: bool) -> Skip | None:
        """As `refusal`. If this request does not wait for a cold model, the model is loaded for later requests."""
        skip = self.refusal(entry, last)
        if skip is not None and skip.again_in is None:
            self._load(entry)
        return skip

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """Why `entry` should be skipped now; None if it may be tried, after `loaded`. `last`: it ends its chain."""
        now = self.clock()
        if self.is_ready(entry, now):
            return None
        model = entry.target.model
        rest = self.residency.rest(model, now, ("failed",) if last else ("failed", "flap"))
        if rest and ollama_name(model) not in self._loading:
            return Skip("loading", rest, "its last load failed, or did not last")
        if entry.cold == "next" and not last:
            return Skip("loading", detail="not loaded yet")
        return None

    async def loaded(self, entry: Entry) -> None:
        """Returns once `entry`'s model is loaded, as far as is known. Cancelling this does not end the load.

        Raises LoadTimeout after `Residency.load_timeout` seconds, LoadFailed if the model cannot be loaded.
        """
        if self.is_ready(entry, self.clock()):
            return
        task = self._load(entry)
        seconds = self.residency.load_timeout(entry)
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            raise LoadTimeout(f"{entry.target} is still being loaded", detail=f"{seconds:.3g} s")
        error = None if task.cancelled() else task.result()
        if error is not None and error.blame in _LOAD_FAILURES:
            rest = self.residency.rest(entry.target.model, self.clock(), ("failed",))
            detail = error.detail or error.error_type
            raise LoadFailed(f"{entry.target} could not be loaded", detail=detail, retry_after=rest)

    def is_ready(self, entry: Entry, now: float) -> bool:
        """Whether the model is loaded. If that is unknown, the request is sent as to any other provider."""
        residency = self.residency
        if residency.is_loaded(entry, now) is False:
            return False
        if residency.used(entry, now) >= self._lag:
            self._wake.set()
        return True

    def _load(self, entry: Entry, *, pinned: bool = False) -> asyncio.Task[ProviderError | None]:
        """The task of this model's load, started if none is running."""
        name = ollama_name(entry.target.model)
        task = self._loading.get(name)
        if task is None:
            self.residency.load_begun(entry, self.clock())
            task = self._loading[name] = asyncio.ensure_future(self._run_load(entry, pinned))
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return task

    async def _run_load(self, entry: Entry, pinned: bool) -> ProviderError | None:
        """Runs a load to its end, or waits for another worker's. Returns the error that it ended with, or None."""
        if self.loads is not None:
            end = await self.loads.claim(self.server, entry.target.model, alone=self.alone)
            if end is not None:
                return self._ended_elsewhere(entry, end)
        self.observe(ModelLoad(self.provider, entry.target.model, "begun"))
        began, error = self.clock(), None
        try:
            await self.host.load(entry, pinned=pinned)
            # before those who have waited for it are sent
            await self._ask_slots((*(self.residency.residents or {}).values(), Resident(entry.target.model)))
        except ProviderError as failed:
            error = failed.with_traceback(None)
        except BaseException:
            self._ended(entry, began, "aborted")
            raise
        self._ended(entry, began, "finished" if error is None else "failed", error)
        return error

    def _ended(self, entry: Entry, began: float, event: LoadEvent, error: ProviderError | None = None) -> None:
        now = self.clock()
        kept_out = error is not None and error.blame not in _LOAD_FAILURES
        outcome: Outcome = "well" if event == "finished" else "refused" if kept_out or error is None else "failed"
        failures = self.residency.load_ended(entry, now, outcome)
        detail = None if error is None else error.detail or error.error_type
        again = event == "failed" and failures > 1
        self.observe(ModelLoad(self.provider, entry.target.model, event, now - began, detail, again))
        if self.loads is not None:
            end = LoadEnd(outcome, detail, self._slots) if event != "aborted" else None
            self.loads.loaded(self.server, entry.target.model, end)
        self._wake.set()

    def _ended_elsewhere(self, entry: Entry, end: LoadEnd) -> ProviderError | None:
        """Handles a load that another worker ran and reported. Returns its error, if the model was at fault."""
        self._learn_slots(end.slots)
        self.residency.load_ended(entry, self.clock(), end.outcome)
        if end.outcome != "failed":
            return None
        return BadResponse(f"{entry.target} could not be loaded", detail=end.detail)

    # --- polling ---

    def start(self) -> None:
        """Starts polling, until `close`."""
        if self._watching is not None:
            return
        if self.loads is not None:
            self.loads.listen(self.server, self.learn_residents)
        self._watching = asyncio.ensure_future(self._watch())

    def wake(self) -> None:
        """Polls at once."""
        self._wake.set()

    def lost(self) -> None:
        """A request could not reach it. Polls at once, and then as for a busy one: it may only be starting again."""
        self._is_away = True
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            wait = self.residency.observe_in(self.clock()) + self._lag
            if wait > 0 and not await self._woken(wait) and self.residency.observe_in(self.clock()) > 0:
                continue  # another worker has polled
            try:
                await self.refresh()
            except Exception as error:  # a bug in one poll must not end polling
                self.observe(Crashed(f"models of {self.provider}", error))
                await asyncio.sleep(POLL_BUSY)

    async def _woken(self, seconds: float) -> bool:
        """Waits up to `seconds`. Returns whether `wake` ended the wait."""
        try:
            async with asyncio.timeout(seconds):
                return await self._wake.wait()
        except TimeoutError:
            return False

    def learn_residents(
        self, asked_at: float, residents: tuple[Resident, ...], slots: Mapping[str, int] | None
    ) -> None:
        """Takes over what another worker found when it asked at `asked_at`, see `Loads.report_residents`."""
        if asked_at > self.residency.observed_at:
            self._learn_slots(slots)
            self.residency.observed(residents, asked_at)
            self.residency.unanswered = False
            self._slow = {each.name for each in residents if self.residency.on_cpu(each.name) is not None}

    async def refresh(self, seconds: float = ANSWER_TIMEOUT) -> None:
        """Asks within `seconds` which models are loaded, and loads those of ``warm`` that are not."""
        asked_at = self.clock()
        try:
            residents = await self.host.residents(seconds)
        except ProviderError as error:
            self._note_reach(reached=error.blame is not Blame.REACH)
            self.residency.unanswered = error.blame in _NOT_NOW
            if self.residency.not_observed(asked_at, unreadable=error.blame not in _NOT_NOW):
                self.observe(ResidentsUnreadable(self.provider, error.detail or error.error_type))
            return
        self._note_reach(reached=True)
        answered = await self._ask_slots(residents or (), seconds)
        self.residency.unanswered = not answered
        if residents is None:
            self.residency.not_observed(asked_at, unreadable=True)
            return
        self.residency.observed(residents, asked_at)
        if self.loads is not None:
            self.loads.report_residents(self.server, asked_at, residents, self._slots if answered else None)
        self._report_slow(residents)
        now = self.clock()
        for entry in self.warm:
            if self.residency.is_loaded(entry, now) is False and not self.residency.rest(entry.target.model, now):
                self._load(entry, pinned=True)

    def _note_reach(self, *, reached: bool) -> None:
        was_away, self._is_away = self._is_away, not reached
        if was_away and reached:
            self.on_reached()

    async def _ask_slots(self, loaded: Iterable[Resident], seconds: float = ANSWER_TIMEOUT) -> bool:
        """Asks how many requests the server answers at a time. Returns whether it could say; else what it said before
        holds."""
        aliases = {each.name: each.aliases for each in loaded}
        try:
            slots = await self.host.slots(aliases, seconds)
        except ProviderError:
            return False
        of_aliases = {alias: slots[name] for name in aliases if name in slots for alias in aliases[name]}
        self._learn_slots({**of_aliases, **slots})
        return True

    def _learn_slots(self, slots: Mapping[str, int] | None) -> None:
        if slots is not None:
            self._slots = slots
            self.on_slots(slots)

    def _report_slow(self, residents: Iterable[Resident]) -> None:
        """Reports each model that is partly on the CPU once; again only if it was wholly on the GPU in between."""
        slow = {each.name: each for each in residents if self.residency.on_cpu(each.name) is not None}
        for name in slow.keys() - self._slow:
            self.observe(PartialOffload(self.provider, name, slow[name].size, slow[name].size_vram))
        self._slow = set(slow)

    async def close(self) -> None:
        """Stops polling, and aborts the loads."""
        if self.loads is not None:
            self.loads.forget(self.server, self.learn_residents)
        tasks = [*self._loading.values(), *([self._watching] if self._watching is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.host.close()


@define
class Boxes:
    """All boxes, by provider."""

    boxes: Mapping[str, Box] = field(factory=dict)

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """See `Box.refusal`. Starts no load."""
        box = self.boxes.get(entry.target.provider)
        return box.refusal(entry, last) if box is not None else None

    async def loaded(self, entry: Entry) -> None:
        """See `Box.loaded`."""
        if (box := self.boxes.get(entry.target.provider)) is not None:
            await box.loaded(entry)

    def slow_last(self, chain: Chain) -> Chain:
        """`chain` with the targets that are partly on the CPU moved to its end, as a last resort."""
        if not self.boxes or len(chain) < 2:
            return chain
        slow = [entry for entry in chain if self._goes_last(entry)]
        if not slow:
            return chain
        return evolve(chain, entries=(*(entry for entry in chain if entry not in slow), *slow))

    def _goes_last(self, entry: Entry) -> bool:
        box = self.boxes.get(entry.target.provider)
        return box is not None and box.slow_last and box.residency.on_cpu(entry.target.model) is not None

    async def refresh(self, seconds: float) -> None:
        """Asks each box once, at the start, within `seconds`. Errors are dropped: polling will meet them again."""
        await asyncio.gather(*(box.refresh(seconds) for box in self.boxes.values()), return_exceptions=True)

    def start(self) -> None:
        for box in self.boxes.values():
            box.start()
