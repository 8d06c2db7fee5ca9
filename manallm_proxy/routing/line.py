"""The queue in front of one local server: which requests it serves now, which wait, and for how long.

1. At most `slots` requests for one model are served at a time; the others wait here, first come first served, so
   that the server's own queue, which we cannot see, stays empty.
2. After an outage the server gets one request at a time, whichever model it is for, and one more for each answer:
   1, 2, 4, ... round by round, so that a server that has just come back is not flooded.
3. A request is expected to wait for the first slot to become free, and for those that wait before it to be served.

This is the deciding half and never waits: `queues` does. The time is an argument, any monotonic number of seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from manallm_proxy.contract.targets import ollama_name
from manallm_proxy.routing.pace import Pace

MODELS_LIMIT: Final = 100
"""Models whose pace is remembered; clients choose their names, so the oldest that is idle makes room."""
RAMP_LIMIT: Final = 32
"""Once so many requests are allowed at a time, the ramp after an outage ends."""
OVERDUE: Final = 0.1
"""A request that takes longer than expected is expected to need this part of the expected time still."""


@define(eq=False)
class Turn:
    """One request's place. ``began_at`` None: it waits."""

    model: str
    expected: float
    """Seconds that it is expected to take once it is served."""
    began_at: float | None = None
    on_turn: Callable[[], None] | None = field(default=None, repr=False)
    """Called when a request that has waited is served."""
    ended: bool = False


@define(eq=False)
class ModelLine:
    """The requests for one model: with the server, and waiting here."""

    name: str
    pace: Pace = field(factory=Pace)
    serving: set[Turn] = field(factory=set)
    waiting: deque[Turn] = field(factory=deque)

    @property
    def is_idle(self) -> bool:
        return not self.serving and not self.waiting


@define(eq=False)
class Line:
    """The requests for one server. ``slots``: how many it serves at a time for one model; None: no limit."""

    slots: int | None
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

    def enter(self, turn: Turn, now: float) -> None:
        """Serves `turn` at once if there is room; else it waits, last in line."""
        line = self.of(turn.model)
        if not line.waiting and self._has_room(line):
            self._serve(line, turn, now)
        else:
            line.waiting.append(turn)

    def leave(self, turn: Turn, now: float, *, answered: bool) -> None:
        """Takes `turn` out, served or waiting, and serves those that have room now. Harmless when repeated.

        `answered`: its answer was complete.
        """
        if turn.ended:
            return
        turn.ended = True
        line = self.of(turn.model)
        line.serving.discard(turn)
        if turn.began_at is None:
            line.waiting.remove(turn)
        if self.ramp is not None and answered:
            self.ramp = self.ramp + 1 if self.ramp < min(self.slots or RAMP_LIMIT, RAMP_LIMIT) else None
        for each in list(self.models.values()):
            while each.waiting and self._has_room(each):
                self._serve(each, each.waiting.popleft(), now)

    def came_back(self) -> None:
        """The server is back after an outage (rule 2)."""
        self.ramp = 1

    def expected_wait(self, model: str, now: float) -> float:
        """Seconds that a new request for `model` would wait (rule 3)."""
        line = self.of(model)
        if not line.waiting and self._has_room(line):
            return 0.0
        slots = min(each for each in (self.slots, self.ramp) if each is not None)
        rest = sorted(_remaining(turn, now) for turn in line.serving)[:slots]
        first = rest[0] if len(rest) == slots else 0.0
        return first + sum(turn.expected for turn in line.waiting) / slots

    def _has_room(self, line: ModelLine) -> bool:
        if self.slots is not None and len(line.serving) >= self.slots:
            return False
        return self.ramp is None or sum(len(each.serving) for each in self.models.values()) < self.ramp

    @staticmethod
    def _serve(line: ModelLine, turn: Turn, now: float) -> None:
        turn.began_at = now
        line.serving.add(turn)
        if turn.on_turn is not None:
            turn.on_turn()

    def _forget(self) -> None:
        idle = next((name for name, line in self.models.items() if line.is_idle), None)
        if idle is not None:
            del self.models[idle]


def _remaining(turn: Turn, now: float) -> float:
    began = turn.began_at if turn.began_at is not None else now
    return max(turn.expected - (now - began), OVERDUE * turn.expected)
