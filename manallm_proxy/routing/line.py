"""The queue in front of one local server: which requests it serves now, which wait, and for how long.

1. At most `slots` requests for one model are served at a time; the others wait here, first come first served, so
   that the server's own queue, which we cannot see, stays empty. Where nobody says how many these are, they are learned
   (`slots`), or there is no limit.
2. After an outage the server gets one request at a time, whichever model it is for, and one more for each answer:
   1, 2, 4, ... round by round, so that a server that has just come back is not flooded.
3. A request is expected to wait for the first slot to become free, and for those that wait before it to be served.

This is the deciding half and never waits: `queues` does. The time is an argument, any monotonic number of seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from attrs import define, field

from manallm_proxy.contract.targets import is_ollama_cloud, ollama_name
from manallm_proxy.routing.pace import Pace
from manallm_proxy.routing.slots import Sign, Slots

MODELS_LIMIT: Final = 100
"""Models whose pace is remembered; clients choose their names, so the oldest that is idle makes room."""
RAMP_LIMIT: Final = 32
"""Once so many requests are allowed at a time, the ramp after an outage ends."""
OVERDUE: Final = 0.1
"""A request that takes longer than expected is expected to need this part of the expected time still."""


@define(eq=False)
class Turn:
    """One request's place. ``began_at`` None: it waits; ``number``: see `shared_line`."""

    model: str
    expected: float
    """Seconds that it is expected to take once it is served."""
    streams: bool = False
    began_at: float | None = None
    on_turn: Callable[[], None] | None = field(default=None, repr=False)
    """Called when a request that has waited is served."""
    number: int = 0
    ended_at: float | None = None
    earlier: tuple[Turn, ...] = field(default=(), repr=False)
    """Those that were served when it began to be."""
    is_trial: bool = False
    """It was sent to learn whether there is a slot more, and may wait with the server."""
    patience: float = 0.0
    """Of a trial: seconds to its first content, if it does not wait."""
    has_signed: bool = False
    """Its sign of life has taught how many slots there are, see `slots.Sign`."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None


@define(eq=False)
class ModelLine:
    """The requests for one model: with the server, and waiting here."""

    name: str
    pace: Pace = field(factory=Pace)
    said: int | None = None
    """How many slots there are, where it is said of this model alone."""
    slots: Slots = field(factory=Slots)
    """What was learned of them."""
    trial: Turn | None = None
    """The request that was sent to learn whether there is a slot more."""
    serving: set[Turn] = field(factory=set)
    waiting: deque[Turn] = field(factory=deque)
    is_told: bool = False
    """Other workers know that it has a limit."""
    backlog: float = 0.0
    """The sum of what those that wait are expected to take, in seconds."""

    def add(self, turn: Turn) -> None:
        """`turn` waits, last in line."""
        self.waiting.append(turn)
        self.backlog += turn.expected

    def remove(self, turn: Turn) -> None:
        """`turn` waits no more."""
        if self.waiting[0] is turn:
            self.waiting.popleft()
        else:
            self.waiting.remove(turn)
        self.backlog = self.backlog - turn.expected if self.waiting else 0.0

    @property
    def is_idle(self) -> bool:
        return not self.serving and not self.waiting


@define(eq=False)
class Line:
    """The requests for one server. ``slots``: how many it serves at a time for one model; None: nobody says."""

    slots: int | None
    said: Mapping[str, int] = field(factory=dict)
    """What the server itself says of them, by model, or under ``""`` for each."""
    learns: bool = False
    """Whether they are learned where nobody says; else there is no limit then."""
    models: dict[str, ModelLine] = field(factory=dict)
    """By `ollama_name`."""
    ramp: int | None = None
    """After an outage, how many are served at a time for all models together; else None."""

    def of(self, model: str) -> ModelLine:
        """The line for `model`."""
        name = ollama_name(model)
        line = self.models.get(name)
        if line is None:
            if len(self.models) >= MODELS_LIMIT:
                self._forget()
            line = self.models[name] = ModelLine(model)
        return line

    def limit(self, line: ModelLine) -> int | None:
        """How many requests are served at a time for the model of `line`, as far as is known; None: no limit."""
        if self.slots is not None or line.said is not None:
            return self.slots or line.said
        if self.said:
            return self.said.get(line.name) or self.said.get("")
        return line.slots.number if self.is_learning(line) else None

    def is_learning(self, line: ModelLine) -> bool:
        """Whether it goes by what it learns of the slots of `line`'s model."""
        if not self.learns or self.slots is not None or line.said is not None or self.said:
            return False
        return not is_ollama_cloud(line.name)  # which runs elsewhere

    def enter(self, turn: Turn, now: float) -> None:
        """Serves `turn` at once if there is room; else it waits, last in line."""
        line = self.of(turn.model)
        if not line.waiting and self.has_room(line, turn.streams, now):
            self._serve(line, turn, now)
        else:
            line.add(turn)

    def began(self, turn: Turn, now: float) -> None:
        """The first content of its stream has come. Serves those that have room now."""
        if self.learns and not turn.has_signed and not turn.ended and self.is_learning(self.of(turn.model)):
            self._learn(turn, now, None)
            self._go_on(now)

    def leave(self, turn: Turn, now: float, *, answered: bool, tokens: int = 0) -> None:
        """Takes `turn` out, served or waiting, and serves those that have room now. Harmless when repeated.

        `answered`: its answer was complete, with so many `tokens` (0: not known).
        """
        if turn.ended:
            return
        line = self.of(turn.model)
        if turn.began_at is None:
            line.remove(turn)
        elif answered and not turn.has_signed and self.is_learning(line):
            self._learn(turn, now, tokens)
        if line.trial is turn:
            line.trial = None
            line.slots.failed(now)
        turn.ended_at, turn.earlier = now, ()
        line.serving.discard(turn)
        if self.ramp is not None and answered:
            slots = self.limit(line) or RAMP_LIMIT
            self.ramp = self.ramp + 1 if self.ramp < min(slots, RAMP_LIMIT) else None
            self._go_on(now)
        elif line.waiting or self.ramp is not None:
            self._go_on(now)

    def came_back(self) -> None:
        """The server is back after an outage (rule 2)."""
        self.ramp = 1
        for line in self.models.values():
            line.slots.came_back()

    def expected_wait(self, model: str, now: float, *, streams: bool | None = None) -> float:
        """Seconds that a new request for `model` would wait (rule 3). `streams` None: it is no trial of slots."""
        line = self.of(model)
        if not line.waiting and self.has_room(line, streams, now):
            return 0.0
        slots = min(each for each in (self.limit(line), self.ramp) if each is not None)
        served = [(turn.expected, turn.began_at) for turn in line.serving if turn.began_at is not None]
        return wait_for(slots, served, line.backlog, now)

    def has_room(self, line: ModelLine, streams: bool | None, now: float) -> bool:
        """Whether a request more would be served at once if none waited. `streams` None: not as a trial of slots."""
        if self.ramp is not None and sum(len(each.serving) for each in self.models.values()) >= self.ramp:
            return False
        limit = self.limit(line)
        if limit is None or len(line.serving) < limit:
            return True
        if not self.is_learning(line) or line.trial is not None or streams is None or len(line.serving) > limit:
            return False
        return line.slots.may_try(streams, now)

    def _go_on(self, now: float) -> None:
        for each in list(self.models.values()):
            while each.waiting and self.has_room(each, each.waiting[0].streams, now):
                turn = each.waiting[0]
                each.remove(turn)
                self._serve(each, turn, now)

    def _learn(self, turn: Turn, now: float, tokens: int | None) -> None:
        """From the first content of a stream (`tokens` None), or from the end of a whole answer."""
        turn.has_signed = True
        assert turn.began_at is not None
        line, earlier = self.of(turn.model), len(turn.earlier)
        if line.trial is turn:
            line.trial = None
        ends = [each.ended_at for each in turn.earlier if each.ended_at is not None]
        since_end = now - min(ends) if ends else 0.0
        line.slots.shown(Sign(earlier, earlier - len(ends), now - turn.began_at, since_end, tokens), now)

    def _serve(self, line: ModelLine, turn: Turn, now: float) -> None:
        turn.began_at = now
        if self.is_learning(line):
            turn.earlier = tuple(line.serving)
            if len(line.serving) >= line.slots.number:
                line.trial, turn.is_trial, turn.patience = turn, True, line.slots.patience()
        line.serving.add(turn)
        if turn.on_turn is not None:
            turn.on_turn()

    def _forget(self) -> None:
        idle = next((name for name, line in self.models.items() if line.is_idle), None)
        if idle is not None:
            del self.models[idle]


def wait_for(slots: int, served: Collection[tuple[float, float]], backlog: float, now: float) -> float:
    """Seconds until a new request has a slot (rule 3). `served`: the seconds that each request is expected to take, and
    when it began; `backlog`: see `ModelLine`."""
    first = 0.0
    if len(served) >= slots:
        first = min([max(expected - (now - began), OVERDUE * expected) for expected, began in served])
    return first + backlog / slots
