"""The queue in front of one local server: which requests it serves now, which wait, and for how long.

1. At most `slots` requests for one model are served at a time; the others wait here, first come, first served, so
   that the server's own queue, which we cannot see, stays empty. If neither the configuration nor the server gives the
   number, it is learned (`slots`), or there is no limit.
2. After an outage the server gets one request at a time, whichever model it is for, and one more for each answer:
   1, 2, 4, ... round by round, so that a server that has just come back is not flooded.
3. A request's expected wait: until the first slot becomes free, plus the time of the requests that wait before it.

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
"""Max models whose pace is remembered. Clients choose their names, so the oldest idle one is dropped."""
RAMP_LIMIT: Final = 32
"""Once so many requests are allowed at a time, the ramp after an outage ends."""
OVERDUE: Final = 0.1
"""A request that is overdue is expected to need this fraction of its expected time more."""


class Turn(Struct, eq=False):  # made in half the time of attrs' classes
    """One request's place in the queue. ``began_at`` None: it is waiting; ``number``: see `shared_line`."""

    line: ModelLine
    """Its model's line."""
    expected: float
    """Expected seconds from when it is served to its end."""
    streams: bool = False
    size: int = 0
    """Bytes of the request without its pictures."""
    pictures: Pictures | None = None
    until: float | None = None
    """When it stops waiting and moves on, monotonic; None: never."""
    again: bool = False
    """It was taken back from the server, where it waited: it goes before all that wait here."""
    began_at: float | None = None
    first_at: float | None = None
    """When a stream's first content arrived."""
    on_turn: Callable[[], None] | None = None
    """Called when a request that had to wait is served."""
    number: int = 0
    ended_at: float | None = None
    earlier: tuple[Turn, ...] = ()
    """Requests that were being served when it began to be."""
    is_trial: bool = False
    """It was sent to learn whether the server has one more slot, and may have to wait there."""
    trial_timeout: float = 0.0
    """For a trial: seconds within which its first content is due if it does not have to wait."""
    waits: bool = False
    """For a trial: all earlier requests are still at the server, so it may be waiting there."""
    has_signed: bool = False
    """Its first sign of life has been used to learn the number of slots, see `slots.Sign`."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    __repr__ = object.__repr__  # the line knows its turns


@define(eq=False)
class ModelLine:
    """The requests for one model: at the server, and waiting here."""

    name: str
    pace: Pace = field(factory=Pace)
    reported_slots: int | None = None
    """Slots of this model, if reported for it alone."""
    slots: Slots = field(factory=Slots)
    """The learned number of slots."""
    trial: Turn | None = None
    """The request that was sent to learn whether the server has one more slot."""
    serving: set[Turn] = field(factory=set)
    waiting: deque[Turn] = field(factory=deque)
    is_published: bool = False
    """Whether other workers know that it has a limit."""
    backlog: float = 0.0
    """Sum of the expected seconds of all waiting requests."""
    is_elsewhere: bool = field(init=False)
    """Its model runs in Ollama's cloud, where this server's slots say nothing."""

    @is_elsewhere.default
    def _is_of_the_cloud(self) -> bool:
        return is_ollama_cloud(self.name)

    def add(self, turn: Turn) -> None:
        """Adds `turn` to the waiting requests."""
        if turn.again:
            self.waiting.appendleft(turn)
        else:
            self.waiting.append(turn)
        self.backlog += turn.expected

    def remove(self, turn: Turn) -> None:
        """Removes `turn` from the waiting requests."""
        if self.waiting[0] is turn:
            self.waiting.popleft()
        else:
            self.waiting.remove(turn)
        self.backlog = self.backlog - turn.expected if self.waiting else 0.0

    def ends(self) -> list[tuple[float, float]]:
        """For each request being served: its expected seconds, and when it began."""
        return [(turn.expected, turn.began_at) for turn in self.serving if turn.began_at is not None]

    @property
    def is_idle(self) -> bool:
        return not self.serving and not self.waiting


@define(eq=False)
class Line:
    """The requests for one server. ``slots``: configured number that it serves at a time per model; None: not given."""

    slots: int | None
    reported_slots: Mapping[str, int] = field(factory=dict)
    """Slots that the server reports, by model; under ``""`` for every model."""
    learns: bool = False
    """Whether slots are learned if neither source gives them; if not, there is no limit then."""
    models: dict[str, ModelLine] = field(factory=dict)
    """By `ollama_name`."""
    ramp: int | None = None
    """After an outage: max requests at a time for all models together; else None."""

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
        """Max requests served at a time for `line`'s model, as far as is known; None: no limit."""
        if self.slots is not None:
            return self.slots
        if line.reported_slots is not None:
            return line.reported_slots
        if self.reported_slots:
            return self.reported_slots.get(line.name) or self.reported_slots.get("")
        return line.slots.number if self.learns and not line.is_elsewhere else None

    def is_learning(self, line: ModelLine) -> bool:
        """Whether the slots of `line`'s model are learned."""
        if not self.learns or self.slots is not None or line.reported_slots is not None or self.reported_slots:
            return False
        return not line.is_elsewhere

    def enter(self, turn: Turn, now: float) -> None:
        """Serves `turn` at once if there is room, else adds it to the waiting requests."""
        line = turn.line
        if self.ramp is None and turn.on_turn is None and not (line.serving or line.waiting):
            turn.began_at = now  # fast path; the same as below
            line.serving.add(turn)
        elif self.is_open(line, turn.streams, now, turn.until):
            self._serve(line, turn, now)
        else:
            line.add(turn)

    def began(self, turn: Turn, now: float) -> None:
        """The first content of its stream has arrived. Serves waiting requests that now have room."""
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
        """Removes `turn`, served or waiting, and serves waiting requests that now have room. Harmless when repeated.

        `answered`: its answer was complete; `tokens`: of that answer, 0: unknown.
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

    def configure(self, slots: int | None, now: float) -> None:
        """Takes over the configured ``slots``. Serves waiting requests that now have room."""
        if slots != self.slots:
            self.slots = slots
            self._limits_changed(now)

    def report(self, slots: Mapping[str, int], now: float) -> None:
        """Takes over ``reported_slots``. Serves waiting requests that now have room."""
        if slots != self.reported_slots:
            self.reported_slots = slots
            self._limits_changed(now)

    def limit_model(self, model: str, slots: int | None, now: float) -> None:
        """Takes over `ModelLine.reported_slots`. Serves waiting requests that now have room."""
        self.of(model).reported_slots = slots
        self._limits_changed(now)

    def _limits_changed(self, now: float) -> None:
        self._serve_waiting(now)

    def server_recovered(self) -> None:
        """The server is back after an outage (rule 2)."""
        self.ramp = 1
        for line in self.models.values():
            line.slots.server_recovered()

    def expected_wait(self, line: ModelLine, now: float, streams: bool | None = None) -> float:
        """Seconds that a new request would wait in `line` (rule 3). `streams` None: it must not be a trial."""
        if self.is_open(line, streams, now):
            return 0.0
        slots = min(each for each in (self.limit(line), self.ramp) if each is not None)
        return wait_for(slots, line.ends(), line.backlog, now)

    def is_open(self, line: ModelLine, streams: bool | None, now: float, until: float | None = None) -> bool:
        """Whether a new request would be served at once. `streams` None: it must be no trial; `until`: see `Turn`."""
        if line.waiting:
            return False
        if self.ramp is None:
            served = len(line.serving)
            if not served or (limit := self.limit(line)) is None or served < limit:
                return True
        return self.has_room(line, streams, now, until)

    def has_room(self, line: ModelLine, streams: bool | None, now: float, until: float | None = None) -> bool:
        """Whether one more request would be served at once if none were waiting. Arguments as for `is_open`."""
        if self.ramp is not None and sum(len(each.serving) for each in self.models.values()) >= self.ramp:
            return False
        limit = self.limit(line)
        if limit is None or len(line.serving) < limit:
            return True
        if not self.is_learning(line) or line.trial is not None or streams is None or len(line.serving) > limit:
            return False
        if not streams and until is not None and now + wait_for(limit, line.ends(), 0.0, now) > until:
            return False  # nobody would notice it waiting there
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
        """Learns slots, at the first content of a stream (`tokens` None) or at the end of a whole answer."""
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
    """Seconds until a new request has a slot (rule 3). `served`: (expected seconds, begin) of each served request;
    `backlog`: see `ModelLine`."""
    first = 0.0
    if len(served) >= slots:
        first = min([max(expected - (now - began), OVERDUE * expected) for expected, began in served])
    return first + backlog / slots
