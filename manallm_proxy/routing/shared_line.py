"""The line in front of a local server as one of several workers has it: all of them stand in one line, which is kept
elsewhere (`Keeper`; the supervisor has it).

A request enters and leaves by a message, and is served when one says so. How long another one would wait is known from
the keeper's latest word on the line (`Busy`), and may be out of date by as long as a message travels. Without a keeper
(it has died, and so this worker drains) each worker has a line of its own, as a single process does.

Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from attrs import field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import ollama_name
from manallm_proxy.routing.line import MODELS_LIMIT, Line, ModelLine, Turn, wait_for
from manallm_proxy.routing.residency import Outcome


@frozen
class Busy:
    """One model's line. Times are seconds of CLOCK_MONOTONIC, which all workers share."""

    slots: int | None = None
    """Served at a time, as far as is known; None: no limit."""
    ramp: int | None = None
    """Served at a time for all models, after an outage."""
    room: bool = True
    """Another one would be served at once."""
    served: tuple[tuple[float, float], ...] = ()
    """Of each that is served: the seconds that it is expected to take, and when it began."""
    backlog: float = 0.0
    """Seconds, see `ModelLine`."""
    trial_from: tuple[float | None, float | None] = (None, None)
    """When a whole answer, or a stream, may be sent as a trial of slots, see `slots`; None: not known."""


@frozen
class Entered:
    """A request that stands in the line of ``server``. ``slots``, ``learns``: see `Line`, as its worker knows them."""

    server: str
    number: int
    model: str
    expected: float
    streams: bool
    slots: int | None
    learns: bool
    until: float | None = None


@frozen
class LoadEnd:
    """How another worker's load ended, and why it failed."""

    outcome: Outcome
    detail: str | None = None


OnSeen = Callable[[float, tuple[Resident, ...]], None]
"""Takes what another worker has seen loaded when it asked at that time."""


class Loads(Protocol):
    """Sees to it that of all workers one loads a model, and one looks. `server`: as in `Entered`."""

    @property
    def lag(self) -> float:
        """Seconds by which this worker looks later than the first would, so that it hears of that instead."""

    async def claim(self, server: str, model: str, *, alone: bool = False) -> LoadEnd | None:
        """None: this worker loads it, and calls `loaded`; else another one has. `alone`: not while the server loads
        another model, since it would end that load to make room."""

    def loaded(self, server: str, model: str, end: LoadEnd | None) -> None:
        """How the load that was claimed has ended; None: it was given up."""

    def report_residents(self, server: str, asked_at: float, residents: tuple[Resident, ...]) -> None:
        """Tells the others what is loaded."""

    def listen(self, server: str, on_seen: OnSeen) -> None:
        """Calls `on_seen` whenever another worker has looked, until `forget`."""

    def forget(self, server: str, on_seen: OnSeen) -> None:
        """Ends `listen`. Harmless when repeated."""


class Keeper(Protocol):
    """Keeps the lines of all workers."""

    def entered(self, entered: Entered) -> None:
        """A request of this worker has come; `SharedLines.served` says when it is its turn."""

    def began(self, number: int) -> None:
        """See `Line.began`."""

    def left(self, number: int, answered: bool, tokens: int) -> None:
        """See `Line.leave`."""

    def server_recovered(self, server: str) -> None:
        """See `Line.server_recovered`."""


class AllWorkers(Loads, Protocol):
    """What this worker shares with the others."""

    @property
    def lines(self) -> SharedLines:
        """Where it stands in line."""


@define(eq=False)
class SharedLines:
    """All lines of one worker. ``keeper`` None: it has died."""

    keeper: Keeper | None
    _lines: WeakSet[SharedLine] = field(factory=WeakSet)
    """Of all generations of the configuration; whoever stands in one keeps it."""
    _turns: dict[int, tuple[SharedLine, Turn]] = field(factory=dict)
    _last: int = 0

    def line(self, server: str, slots: int | None, *, learns: bool) -> SharedLine:
        """A new one. `server`: the same in all workers for the same server, and for no other."""
        line = SharedLine(slots, learns=learns, server=server, lines=self)
        self._lines.add(line)
        return line

    def add(self, line: SharedLine, turn: Turn) -> None:
        """Gives `turn` its number."""
        self._last = turn.number = self._last + 1
        self._turns[turn.number] = line, turn

    def remove(self, turn: Turn) -> None:
        """Harmless when repeated."""
        self._turns.pop(turn.number, None)

    def served(self, number: int, now: float, *, is_trial: bool, trial_timeout: float, waits: bool) -> None:
        """It is the turn of request `number`; repeated with what has become known of a trial (`Turn.waits`). One that
        has left meanwhile is forgotten: the keeper knows."""
        line, turn = self._turns.get(number, (None, None))
        if line is None or turn is None:
            return
        turn.is_trial, turn.trial_timeout, turn.waits = is_trial, trial_timeout, waits
        if turn.began_at is None:
            line.serve(turn, now)

    def update(self, server: str, model: str, busy: Busy) -> None:
        """The keeper's word on the line of `model`."""
        for line in self._lines:
            if line.server == server:
                line.update(model, busy)

    def lost(self, now: float) -> None:
        """The keeper has died: from now on each line is the worker's own."""
        self.keeper = None
        for line in {*self._lines, *(line for line, _ in self._turns.values())}:
            line.serve_waiting(now)


@define(eq=False)
class SharedLine(Line):
    """This worker's part of one server's line. Its `ModelLine`s hold this worker's requests only."""

    server: str = ""
    lines: SharedLines = field(factory=lambda: SharedLines(None))
    _busy: dict[str, Busy] = field(factory=dict)

    def limit(self, line: ModelLine) -> int | None:
        busy = self._busy.get(ollama_name(line.name)) if self.lines.keeper is not None else None
        return super().limit(line) if busy is None else busy.slots

    def enter(self, turn: Turn, now: float) -> None:
        keeper = self.lines.keeper
        if keeper is None:
            super().enter(turn, now)
            return
        line = turn.line
        line.add(turn)
        self.lines.add(self, turn)
        slots = super().limit(line) if not self.is_learning(line) else None
        keeper.entered(
            Entered(self.server, turn.number, line.name, turn.expected, turn.streams, slots, self.learns, turn.until)
        )

    def began(self, turn: Turn, now: float) -> None:
        if self.lines.keeper is None:
            super().began(turn, now)
        elif self.is_learning(turn.line) and not turn.ended:
            self.lines.keeper.began(turn.number)

    def leave(self, turn: Turn, now: float, *, answered: bool, tokens: int = 0) -> None:
        keeper = self.lines.keeper
        if turn.ended:
            return
        self.lines.remove(turn)
        if keeper is None:
            super().leave(turn, now, answered=answered, tokens=tokens)
            return
        line = turn.line
        if turn.began_at is None:
            line.remove(turn)
        line.serving.discard(turn)
        turn.ended_at = now
        keeper.left(turn.number, answered, tokens)

    def server_recovered(self) -> None:
        if self.lines.keeper is None:
            super().server_recovered()
        else:
            self.lines.keeper.server_recovered(self.server)

    def is_open(self, line: ModelLine, streams: bool | None, now: float, until: float | None = None) -> bool:
        if self.lines.keeper is None:
            return super().is_open(line, streams, now, until)
        return self.expected_wait(line, now, streams) <= 0

    def expected_wait(self, line: ModelLine, now: float, streams: bool | None = None) -> float:
        if self.lines.keeper is None:
            return super().expected_wait(line, now, streams)
        busy = self._busy.get(ollama_name(line.name))
        slots = [each for each in (busy.slots, busy.ramp) if each is not None] if busy is not None else []
        if busy is None or busy.room or not slots:
            return 0.0
        since = busy.trial_from[streams] if streams is not None else None
        if since is not None and now >= since:
            return 0.0
        return wait_for(min(slots), busy.served, busy.backlog, now)

    def update(self, model: str, busy: Busy) -> None:
        """The keeper's word on the line of `model`; the oldest makes room."""
        name = ollama_name(model)
        self._busy.pop(name, None)
        if len(self._busy) >= MODELS_LIMIT:
            del self._busy[next(iter(self._busy))]
        self._busy[name] = busy

    def serve(self, turn: Turn, now: float) -> None:
        """It is the turn of `turn`, says the keeper."""
        line = turn.line
        line.remove(turn)
        turn.began_at = now
        line.serving.add(turn)
        if turn.on_turn is not None:
            turn.on_turn()

    def serve_waiting(self, now: float) -> None:
        """Serves those that have room by this worker's own requests."""
        self._serve_waiting(now)
