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

from attrs import field
from msgspec import Struct

from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import is_ollama_cloud, ollama_name
from manallm_proxy.routing.pace import Pace, Pictures
from manallm_proxy.routing.slots import Sign, Slots

MODELS_LIMIT: Final = 100
"""Models whose pace is remembered; clients choose their names, so the oldest that is idle makes room."""
RAMP_LIMIT: Final = 32
"""Once so many requests are allowed at a time, the ramp after an outage ends."""
OVERDUE: Final = 0.1
"""A request that takes longer than expected is expected to need this part of the expected time still."""


class Turn(Struct, eq=False):  # made in half the time of attrs' classes
    """One request's place. ``began_at`` None: it waits; ``number``: see `shared_line`."""

    line: ModelLine
    """That of its model."""
    expected: float
    """Seconds that it is expected to take once it is served."""
    streams: bool = False
    size: int = 0
    """Bytes of the request without its pictures."""
    pictures: Pictures | None = None
    until: float | None = None
    """When it moves on if it still waits then; None: never."""
    began_at: float | None = None
    first_at: float | None = None
    """When its first content came, of a stream."""
    on_turn: Callable[[], None] | None = None
    """Called when a request that has waited is served."""
    number: int = 0
    ended_at: float | None = None
    earlier: tuple[Turn, ...] = ()
    """Those that were served when it began to be."""
    is_trial: bool = False
    """It was sent to learn whether there is a slot more, and may wait with the server."""
    trial_timeout: float = 0.0
    """Of a trial: seconds to its first content, if it does not wait."""
    waits: bool = False
    """Of a trial: it may be waiting with the server, since all are there still that came before."""
    has_signed: bool = False
    """Its sign of life has taught how many slots there are, see `slots.Sign`."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    __repr__ = object.__repr__  # the line knows its turns


@define(eq=False)
class ModelLine:
    """The requests for one model: with the server, and waiting here."""

    name: str
    pace: Pace = field(factory=Pace)
    reported_slots: int | None = None
    """How many slots there are, where it is said of this model alone."""
    slots: Slots = field(factory=Slots)
    """What was learned of them."""
    trial: Turn | None = None
    """The request that was sent to learn whether there is a slot more."""
    serving: set[Turn] = field(factory=set)
    waiting: deque[Turn] = field(factory=deque)
    is_published: bool = False
    """Other workers know that it has a limit."""
    backlog: float = 0.0
    """The sum of what those that wait are expected to take, in seconds."""
    is_elsewhere: bool = field(init=False)
    """Its model runs in Ollama's cloud, where this server's slots say nothing."""

    @is_elsewhere.default
    def _is_of_the_cloud(self) -> bool:
        return is_ollama_cloud(self.name)

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

    def ends(self) -> list[tuple[float, float]]:
        """Of each that is served: the seconds that it is expected to take, and when it began."""
        return [(turn.expected, turn.began_at) for turn in self.serving if turn.began_at is not None]

    @property
    def is_idle(self) -> bool:
        return not self.serving and not self.waiting


@define(eq=False)
class Line:
    """The requests for one server. ``slots``: how many it serves at a time for one model; None: nobody says."""

    slots: int | None
    reported_slots: Mapping[str, int] = field(factory=dict)
    """What the server itself says of them, by model, or under ``""`` for each."""
    learns: bool = False
    """Whether they are learned where nobody says; else there is no limit then."""
    models: dict[str, ModelLine] = field(factory=dict)
    """By `ollama_name`."""
    ramp: int | None = None
    """After an outage, how many are served at a time for all models together; else None."""

    def of(self, model: str) -> ModelLine:
        """The line for `model`."""
        line = self.models.get(model)  # as most names are
        return line if line is not None else self._of(ollama_name(model), model)

    def _of(self, name: str, model: str) -> ModelLine:
        line = self.models.get(name)
        if line is None:
            if len(self.models) >= MODELS_LIMIT:
                self._forget()
            line = self.models[name] = ModelLine(model)
        return line

    def limit(self, line: ModelLine) -> int | None:
        """How many requests are served at a time for the model of `line`, as far as is known; None: no limit."""
        if self.slots is not None:
            return self.slots
        if line.reported_slots is not None:
            return line.reported_slots
        if self.reported_slots:
            return self.reported_slots.get(line.name) or self.reported_slots.get("")
        return line.slots.number if self.learns and not line.is_elsewhere else None

    def is_learning(self, line: ModelLine) -> bool:
        """Whether it goes by what it learns of the slots of `line`'s model."""
        if not self.learns or self.slots is not None or line.reported_slots is not None or self.reported_slots:
            return False
        return not line.is_elsewhere

    def enter(self, turn: Turn, now: float) -> None:
        """Serves `turn` at once if there is room; else it waits, last in line."""
        line = turn.line
        if self.ramp is None and turn.on_turn is None and not (line.serving or line.waiting):
            turn.began_at = now  # as below, in short
            line.serving.add(turn)
        elif self.is_open(line, turn.streams, now, turn.until):
            self._serve(line, turn, now)
        else:
            line.add(turn)

    def began(self, turn: Turn, now: float) -> None:
        """The first content of its stream has come. Serves those that have room now."""
        line = turn.line
        if not self.learns or turn.has_signed or turn.ended_at is not None:
            return
        if turn.earlier:
            self._learn(turn, now, None)
        elif turn.began_at is not None and self.is_learning(line):
            turn.has_signed = True
            line.slots.alone(now - turn.began_at, None)
        if line.waiting:
            self._serve_waiting(now)

    def leave(self, turn: Turn, now: float, *, answered: bool, tokens: int = 0) -> None:
        """Takes `turn` out, served or waiting, and serves those that have room now. Harmless when repeated.

        `answered`: its answer was complete, with so many `tokens` (0: not known).
        """
        if turn.ended_at is not None:
            return
        line = turn.line
        if turn.began_at is None:
            line.remove(turn)
        elif answered and self.learns and not turn.has_signed:
            if turn.earlier:
                self._learn(turn, now, tokens)
            elif self.is_learning(line):
                line.slots.alone(now - turn.began_at, tokens)
        if (trial := line.trial) is not None:
            if trial is turn:
                line.trial = None
                line.slots.failed(now)
            elif turn in trial.earlier:
                trial.waits = False
        turn.ended_at = now
        if turn.earlier:
            turn.earlier = ()
        line.serving.discard(turn)
        if self.ramp is not None and answered:
            slots = self.limit(line) or RAMP_LIMIT
            self.ramp = self.ramp + 1 if self.ramp < min(slots, RAMP_LIMIT) else None
            self._serve_waiting(now)
        elif line.waiting or self.ramp is not None:
            self._serve_waiting(now)

    def server_recovered(self) -> None:
        """The server is back after an outage (rule 2)."""
        self.ramp = 1
        for line in self.models.values():
            line.slots.server_recovered()

    def expected_wait(self, line: ModelLine, now: float, streams: bool | None = None) -> float:
        """Seconds that a new request would wait in `line` (rule 3). `streams` None: it is no trial of slots."""
        if self.is_open(line, streams, now):
            return 0.0
        slots = min(each for each in (self.limit(line), self.ramp) if each is not None)
        return wait_for(slots, line.ends(), line.backlog, now)

    def is_open(self, line: ModelLine, streams: bool | None, now: float, until: float | None = None) -> bool:
        """Whether a new request is served at once. `streams` None: not as a trial of slots; `until`: see `Turn`."""
        if line.waiting:
            return False
        if self.ramp is None:
            served = len(line.serving)
            if not served or (limit := self.limit(line)) is None or served < limit:
                return True
        return self.has_room(line, streams, now, until)

    def has_room(self, line: ModelLine, streams: bool | None, now: float, until: float | None = None) -> bool:
        """Whether a request more would be served at once if none waited. Arguments as of `is_open`."""
        if self.ramp is not None and sum(len(each.serving) for each in self.models.values()) >= self.ramp:
            return False
        limit = self.limit(line)
        if limit is None or len(line.serving) < limit:
            return True
        if not self.is_learning(line) or line.trial is not None or streams is None or len(line.serving) > limit:
            return False
        if not streams and until is not None and now + wait_for(limit, line.ends(), 0.0, now) > until:
            return False  # if it waited there nobody would see it
        return line.slots.may_try(streams, now)

    def _serve_waiting(self, now: float) -> None:
        for each in list(self.models.values()):
            while each.waiting:
                turn = each.waiting[0]
                if not self.has_room(each, turn.streams, now, turn.until):
                    break
                each.remove(turn)
                self._serve(each, turn, now)

    def _learn(self, turn: Turn, now: float, tokens: int | None) -> None:
        """From the first content of a stream (`tokens` None), or from the end of a whole answer."""
        turn.has_signed = True
        began, line, earlier = turn.began_at, turn.line, turn.earlier
        assert began is not None
        if line.trial is turn:
            line.trial = None
        for each in earlier:
            if each.ended_at is not None:
                break
        else:
            line.slots.overlapped(len(earlier), now - began, tokens)
            return
        ends = [each.ended_at for each in earlier if each.ended_at is not None]
        still = len(earlier) - len(ends)
        line.slots.shown(Sign(len(earlier), still, now - began, now - min(ends), tokens), now)

    def _serve(self, line: ModelLine, turn: Turn, now: float) -> None:
        turn.began_at, serving = now, line.serving
        if serving and self.is_learning(line):
            turn.earlier = tuple(serving)
            if len(serving) >= line.slots.number:
                line.trial, turn.is_trial, turn.waits = turn, True, True
                turn.trial_timeout = line.slots.trial_timeout()
        serving.add(turn)
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
