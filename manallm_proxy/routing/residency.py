"""Which models of one server are loaded, as far as it has said, and what follows from it.

Rules, of the last observation and of what we did ourselves since:

1. *Not known* (never observed, or the server does not tell): requests go as to any other provider. So do those for a
   model that is not listed although we have loaded it, twice: the list has it under another name, or lies.
2. *Loaded*: listed, with the window that the request will ask for, and not expired. A model that we have loaded since
   the observation is loaded too. The window that our own load led to is the one we ask for, whatever the number: a
   server cuts a window down to what the model can.
3. *Cold* is every other. Taken for cold by mistake costs a round trip, since a load of what is loaded ends at once;
   taken for loaded by mistake would count the time of a load against the model.
4. A load that *failed*, or that has to be begun again soon after it ended (a *flap*), rests: twice as long each time.
   The last entry of a chain flaps rather than fail. A load that was *refused* (no such model) keeps no request from
   hearing so itself; only what is to be kept loaded is not tried again at once.
5. It is asked again every few seconds while there is traffic or a load, seldom while idle; hardly ever if it cannot
   answer.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Final, Literal

from attrs import define, evolve, field, frozen

from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry, is_ollama_cloud, ollama_name

POLL_BUSY: Final = 3.0
POLL_IDLE: Final = 60.0
POLL_REFUSED: Final = 600.0
"""Seconds between two observations."""
BUSY_FOR: Final = 60.0
"""Seconds after a request during which there is traffic."""
FAULTS_LIMIT: Final = 3
"""Unreadable answers in a row after which it is hardly asked any more."""
REST_FIRST: Final = 5.0
REST_LONGEST: Final = 900.0
FLAP: Final = 30.0
"""Seconds after a load's end within which another one of the same model is a flap."""
PAST_LIMIT: Final = 100
"""Models whose loads are remembered; a client chooses their names, so the oldest makes room."""
UNLISTED_LIMIT: Final = 2
"""Loads after which a list without the model is not gone by."""
QUICK: Final = 1.0
"""Seconds. A load that takes less was none: the model was there under another name, or unloaded a moment ago."""
PATIENCE_LONGEST: Final = 300.0
PATIENCE_LEAST: Final = 10.0
"""Seconds that a request waits for a load: at first, and at least once it is known how long they take."""
PATIENCE: Final = 3.0
"""Times the longest load of late after which one is not waited for any longer: the disk may have lost it meanwhile."""
VRAM_WHOLE: Final = 0.9
"""Share of a model on the GPU below which it is half on the CPU."""


@frozen
class _Load:
    began_at: float
    window: int | None


Outcome = Literal["well", "flap", "failed", "refused"]


@define
class _Past:
    """How the loads of one model went."""

    ended_at: float = -math.inf
    outcome: Outcome = "well"
    failures: int = 0
    """In a row, flaps and refusals included."""
    rests_until: float = -math.inf
    used_at: float = -math.inf
    window: int | None = None
    """What our last load asked for."""
    unseen: bool = False
    """It ended well, and no observation has told yet what came of it."""
    took: float = 0.0
    """Seconds of its longest load of late; 0: not known."""
    unlisted: int = 0
    """How often in a row the list did not have it after that."""


@define
class Residency:
    """The observation, our own loads, and how they went. Models by `ollama_name`."""

    residents: dict[str, Resident] | None = None
    """None: not known."""
    observed_at: float = -math.inf
    """When the last observation was asked for, whatever came of it."""
    used_at: float = -math.inf
    """The last request."""
    faults: int = 0
    has_gpu: bool = False
    """Something was seen on it once: else a server without one would look half on the CPU."""
    loads: dict[str, _Load] = field(factory=dict)
    """In flight."""
    _past: dict[str, _Past] = field(factory=dict)
    _windows: dict[tuple[str, int], int] = field(factory=dict)
    """The window in force that a load with another one led to."""

    def observed(self, residents: Iterable[Resident], asked_at: float) -> None:
        """What the server listed, asked at `asked_at`. What we have loaded since then stays."""
        before = self.residents or {}
        self.observed_at, self.faults = asked_at, 0
        now = {ollama_name(each.name): each for each in residents}
        self.has_gpu = self.has_gpu or any(each.size_vram > 0 for each in now.values())
        for name, past in self._past.items():
            if past.ended_at > asked_at and name in before:
                now.setdefault(name, before[name])
            elif past.unseen:
                self._came_of_it(name, past, now.get(name))
        self.residents = now

    def _came_of_it(self, name: str, past: _Past, resident: Resident | None) -> None:
        past.unseen = False
        past.unlisted = past.unlisted + 1 if resident is None else 0
        if past.window is not None and resident is not None:
            self._windows[name, past.window] = resident.context_length

    def not_observed(self, asked_at: float, *, unreadable: bool) -> bool:
        """It could not be asked, or (`unreadable`) answered something else. Whether it is given up by that."""
        self.observed_at, self.residents = asked_at, None
        self.faults = self.faults + 1 if unreadable else self.faults
        return unreadable and self.faults == FAULTS_LIMIT

    def observe_in(self, now: float) -> float:
        """Seconds until the next observation (rule 5)."""
        if self.faults >= FAULTS_LIMIT:
            interval = POLL_REFUSED
        else:
            interval = POLL_BUSY if self.loads or now - self.used_at < BUSY_FOR else POLL_IDLE
        return max(0.0, self.observed_at + interval - now)

    def is_loaded(self, entry: Entry, now: float) -> bool | None:
        """Rules 1 to 3; None where it is not known."""
        if self.residents is None or is_ollama_cloud(entry.target.model):
            return None
        name = ollama_name(entry.target.model)
        resident = self.residents.get(name)
        past = self._past.get(name)
        if past is not None and past.unlisted >= UNLISTED_LIMIT and resident is None:
            return None
        if resident is None or name in self.loads:
            return False
        window, asked = resident.context_length, _window(entry)
        if asked is not None and window not in (0, asked, self._windows.get((name, asked))):
            return False
        if resident.expires_in is None or resident.expires_in <= 0:
            return True  # listed although it has expired: it is at work
        since = past.used_at if past is not None else -math.inf
        return now < self.observed_at + resident.expires_in or since >= self.observed_at

    def used(self, entry: Entry, now: float) -> None:
        """A request for a loaded model."""
        self.used_at = now
        past = self._past.get(ollama_name(entry.target.model))
        if past is not None:
            past.used_at = now

    def rest(self, model: str, now: float, kinds: Container[Outcome] = ("flap", "failed", "refused")) -> float:
        """Seconds that `model` is not to be loaded, after an outcome of these `kinds` (rule 4)."""
        past = self._past.get(ollama_name(model))
        return max(0.0, past.rests_until - now) if past is not None and past.outcome in kinds else 0.0

    def patience(self, entry: Entry) -> float:
        """Seconds that a request waits for a load of `entry`'s model."""
        if entry.load_timeout is not None:
            return entry.load_timeout
        past = self._past.get(ollama_name(entry.target.model))
        if past is None or not past.took:
            return PATIENCE_LONGEST
        return min(max(PATIENCE * past.took, PATIENCE_LEAST), PATIENCE_LONGEST)

    def load_begun(self, entry: Entry, now: float) -> None:
        self.used_at = now
        self.loads[ollama_name(entry.target.model)] = _Load(now, _window(entry))

    def load_ended(self, entry: Entry, now: float, outcome: Outcome = "well") -> int:
        """Failures in a row, this one included; 0 where it went well."""
        name = ollama_name(entry.target.model)
        load = self.loads.pop(name)
        past = self._past.pop(name, None) or _Past()
        if len(self._past) >= PAST_LIMIT:
            oldest = next(iter(self._past))
            del self._past[oldest]
            self._windows = {key: window for key, window in self._windows.items() if key[0] != oldest}
        self._past[name] = past
        went_well = outcome == "well"
        if went_well and load.began_at - past.ended_at < FLAP and now - load.began_at >= QUICK:
            outcome = "flap"
        past.outcome, past.failures = outcome, 0 if outcome == "well" else past.failures + 1
        if past.failures:
            past.rests_until = now + min(REST_FIRST * 2.0 ** min(past.failures - 1, 10), REST_LONGEST)
        if went_well and now - load.began_at >= QUICK:
            past.took = max(now - load.began_at, past.took / 2)
        if went_well:
            past.ended_at, past.window, past.unseen = now, load.window, True
            if self.residents is not None:
                resident = self.residents.get(name, Resident(entry.target.model))
                self.residents[name] = evolve(resident, context_length=0, expires_in=None)
        return past.failures

    def window(self, model: str) -> int:
        """Tokens of the window in force; 0 where it is not known."""
        resident = (self.residents or {}).get(ollama_name(model))
        return resident.context_length if resident is not None else 0

    def on_cpu(self, model: str) -> Resident | None:
        """The model, where a good part of it is not on the GPU that there is."""
        resident = (self.residents or {}).get(ollama_name(model))
        if resident is None or not self.has_gpu or not resident.size:
            return None
        return resident if resident.size_vram < VRAM_WHOLE * resident.size else None


def _window(entry: Entry) -> int | None:
    asked = entry.options.get("num_ctx")
    return asked if isinstance(asked, int) else None
