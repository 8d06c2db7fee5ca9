"""Which models a box reports as loaded, and what follows for requests.

Rules, from the last observation and from what we did since:

1. *Not known* (never observed, or the server does not report it): requests are sent as to any other provider. So are
   those for a model that the list lacked after two loads in a row: it is listed under another name, or wrongly not; and
   those of entries with ``keep_alive: 0``: each answer unloads the model, and so would a load with that setting.
2. *Loaded*: listed, with the window that the request will ask for, and not expired; or loaded by us since the
   observation. If the server listed another window after our own load, that one counts as what we asked for: a server
   cuts a window down to what the model can take.
3. *Cold*: all others. Mistaking a loaded model for cold costs one round trip, since its load ends at once; mistaking a
   cold one for loaded would count the load time against the model.
4. A model whose load *failed*, or that has to be loaded again soon after a load (a *flap*), rests, twice as long each
   time. In the last entry of a chain, a flapping model is loaded anyway. A load that was *refused* (no such model) does
   not stop requests, which will get the same refusal; it only delays the next try to keep the model loaded.
5. The server is polled every few seconds while there is traffic or a load, seldom while idle, and hardly ever once it
   has proved unable to answer.

Nothing here waits, and the time is an argument: any monotonic number of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Final, Literal

from attrs import evolve, field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry, is_ollama_cloud, ollama_name

POLL_BUSY: Final = 3.0
POLL_IDLE: Final = 60.0
POLL_REFUSED: Final = 600.0
"""Seconds between two observations: with traffic or a load, while idle, and from a server that cannot answer."""
BUSY_FOR: Final = 60.0
"""Seconds after a request during which the box counts as busy."""
FAULTS_LIMIT: Final = 3
"""Unreadable answers in a row after which the server counts as unable to answer."""
REST_FIRST: Final = 5.0
REST_LONGEST: Final = 900.0
"""Seconds that a model rests after its first failed load, and the maximum."""
FLAP: Final = 30.0
"""A load of the same model within this many seconds after the previous one's end is a flap."""
PAST_LIMIT: Final = 100
"""Max models whose loads are remembered. Clients choose their names, so the oldest is dropped."""
UNLISTED_LIMIT: Final = 2
"""After this many loads in a row, a list that still lacks the model is no longer trusted about it."""
QUICK: Final = 1.0
"""Seconds. A shorter load loaded nothing: the model was there under another name, or had only just been unloaded."""
LOAD_TIMEOUT_MAX: Final = 300.0
LOAD_TIMEOUT_MIN: Final = 10.0
"""Max and min seconds that a request waits for a load; the max applies until a load has been timed."""
LOAD_TIMEOUT_FACTOR: Final = 3.0
"""A request waits for a load this many times as long as the longest recent one took, which the disk cache may have
helped."""
VRAM_WHOLE: Final = 0.9
"""A model with a smaller share of its bytes on the GPU counts as partly on the CPU."""


@frozen
class _Load:
    began_at: float
    window: int | None


Outcome = Literal["well", "flap", "failed", "refused"]


@define
class _Past:
    """History of the loads of one model."""

    ended_at: float = -math.inf
    outcome: Outcome = "well"
    failures: int = 0
    """Consecutive failures, flaps and refusals included."""
    rests_until: float = -math.inf
    used_at: float = -math.inf
    window: int | None = None
    """The window that our last load asked for, in tokens."""
    unseen: bool = False
    """The last load succeeded, and there has been no observation since."""
    load_seconds: float = 0.0
    """Seconds of the longest recent load; 0: not known."""
    unlisted: int = 0
    """How often in a row the list lacked it after a successful load."""


@define
class Residency:
    """The observation, our own loads, and how they went. Models by `ollama_name`."""

    residents: dict[str, Resident] | None = None
    """Loaded models by name; None: unknown."""
    observed_at: float = -math.inf
    """When we last asked, whether or not an answer came."""
    used_at: float = -math.inf
    """When the last request came."""
    faults: int = 0
    unanswered: bool = False
    """The server could not say now what it was asked last, as while it starts: it is asked again soon."""
    has_gpu: bool = False
    """Whether any model was ever seen on a GPU. On a server without a GPU, being on the CPU is not reported."""
    loads: dict[str, _Load] = field(factory=dict)
    """In flight."""
    _past: dict[str, _Past] = field(factory=dict)
    _windows: dict[tuple[str, int], int] = field(factory=dict)
    """The window that the server listed after our load, by model and the window that the load asked for."""

    def observed(self, residents: Iterable[Resident], asked_at: float) -> None:
        """Takes over what the server listed when asked at `asked_at`. Keeps what we have loaded since then."""
        before = self.residents or {}
        self.observed_at, self.faults = asked_at, 0
        there = [each for each in residents if not is_ollama_cloud(each.name)]
        now = {ollama_name(alias): each for each in there for alias in each.aliases}
        now |= {ollama_name(each.name): each for each in there}
        self.has_gpu = self.has_gpu or any(each.size_vram > 0 for each in now.values())
        for name, past in self._past.items():
            if past.ended_at > asked_at and name in before:
                now.setdefault(name, before[name])
            elif past.unseen:
                self._learn_from_load(name, past, now.get(name))
        self.residents = now

    def _learn_from_load(self, name: str, past: _Past, resident: Resident | None) -> None:
        past.unseen = False
        past.unlisted = past.unlisted + 1 if resident is None else 0
        if past.window is not None and resident is not None:
            self._windows[name, past.window] = resident.context_length

    def not_observed(self, asked_at: float, *, unreadable: bool) -> bool:
        """The server did not answer, or (`unreadable`) not properly. Returns whether it now counts as unable to."""
        self.observed_at, self.residents = asked_at, None
        self.faults = self.faults + 1 if unreadable else self.faults
        return unreadable and self.faults == FAULTS_LIMIT

    def observe_in(self, now: float) -> float:
        """Seconds until the next observation (rule 5)."""
        if self._is_unable:
            interval = POLL_REFUSED
        else:
            interval = POLL_BUSY if self.loads or now - self.used_at < BUSY_FOR else POLL_IDLE
        return min(max(0.0, self.observed_at + interval - now), interval)

    def is_loaded(self, entry: Entry, now: float) -> bool | None:
        """Rules 1 to 3; None: unknown."""
        if self.residents is None or (entry.options and _unloads(entry.options.get("keep_alive"))):
            return None
        name = ollama_name(entry.target.model)
        resident = self.residents.get(name)
        if resident is None:
            past = self._past.get(name)
            is_hidden = past is not None and past.unlisted >= UNLISTED_LIMIT
            return None if is_hidden or is_ollama_cloud(name) else False
        if name in self.loads:
            return False
        asked = _window(entry) if entry.options else None
        if asked is not None and resident.context_length not in (0, asked, self._windows.get((name, asked))):
            return False
        stays = resident.expires_in
        if stays is None or stays <= 0 or now < self.observed_at + stays:
            return True  # also if it is listed although it has expired: it is at work
        past = self._past.get(name)
        return past is not None and past.used_at >= self.observed_at

    def used(self, entry: Entry, now: float) -> float:
        """A request for a loaded model is sent. Returns by how many seconds an observation is overdue."""
        self.used_at = now
        if self._past and (past := self._past.get(ollama_name(entry.target.model))) is not None:
            past.used_at = now
        return now - self.observed_at - (POLL_REFUSED if self._is_unable else POLL_BUSY)

    @property
    def _is_unable(self) -> bool:
        return self.faults >= FAULTS_LIMIT and not self.unanswered

    def rest(self, model: str, now: float, kinds: Container[Outcome] = ("flap", "failed", "refused")) -> float:
        """Remaining seconds that `model` rests after an outcome of these `kinds` (rule 4); 0: it may be loaded."""
        past = self._past.get(ollama_name(model))
        return max(0.0, past.rests_until - now) if past is not None and past.outcome in kinds else 0.0

    def load_timeout(self, entry: Entry) -> float:
        """Seconds that a request waits for a load of `entry`'s model."""
        if entry.load_timeout is not None:
            return entry.load_timeout
        past = self._past.get(ollama_name(entry.target.model))
        if past is None or not past.load_seconds:
            return LOAD_TIMEOUT_MAX
        return min(max(LOAD_TIMEOUT_FACTOR * past.load_seconds, LOAD_TIMEOUT_MIN), LOAD_TIMEOUT_MAX)

    def load_begun(self, entry: Entry, now: float) -> None:
        self.used_at = now
        self.loads[ollama_name(entry.target.model)] = _Load(now, _window(entry))

    def load_ended(self, entry: Entry, now: float, outcome: Outcome = "well") -> int:
        """Records how a load ended. Returns the consecutive failures, including this one; 0: it succeeded."""
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
            past.load_seconds = max(now - load.began_at, past.load_seconds / 2)
        if went_well:
            past.ended_at, past.window, past.unseen = now, load.window, True
            if self.residents is not None:
                resident = self.residents.get(name, Resident(entry.target.model))
                self.residents[name] = evolve(resident, context_length=0, expires_in=None)
        return past.failures

    def window(self, model: str) -> int:
        """The context window in force, in tokens; 0: unknown."""
        resident = (self.residents or {}).get(ollama_name(model))
        return resident.context_length if resident is not None else 0

    def on_cpu(self, model: str) -> Resident | None:
        """The model as listed, if it is partly on the CPU although the server has a GPU (`VRAM_WHOLE`); else None."""
        resident = (self.residents or {}).get(ollama_name(model))
        if resident is None or not self.has_gpu or not resident.size:
            return None
        return resident if resident.size_vram < VRAM_WHOLE * resident.size else None


def _unloads(keep_alive: object) -> bool:
    """Whether it is 0, in one of the forms that Ollama takes: 0, 0.0, "0", "0s"."""
    if isinstance(keep_alive, str):
        return keep_alive[:1] == "0" and not any(digit in keep_alive for digit in "123456789")
    return keep_alive == 0 and not isinstance(keep_alive, bool)


def _window(entry: Entry) -> int | None:
    asked = entry.options.get("num_ctx")
    return asked if isinstance(asked, int) else None
