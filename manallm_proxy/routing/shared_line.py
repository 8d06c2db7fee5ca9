"""One worker's view of the line in front of a local server. All workers share one line, which the supervisor keeps
(`Keeper`).

A request enters and leaves by a message, and is served when a message says so. The expected wait comes from the
keeper's latest update (`Busy`), which may be stale by one message delay. Without a keeper (the supervisor has died, so
this worker drains) each worker has a line of its own, like a single process.

Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """State of one model's line. Times are seconds of CLOCK_MONOTONIC, which all workers share."""

    slots: int | None = None
    """Max requests served at a time, as far as is known; None: no limit."""
    ramp: int | None = None
    """After an outage: max requests at a time for all models together; else None."""
    room: bool = True
    """Whether one more request would be served at once."""
    served: tuple[tuple[float, float], ...] = ()
    """For each request being served: its expected seconds, and when it began."""
    backlog: float = 0.0
    """Seconds, see `ModelLine`."""
    trial_from: tuple[float | None, float | None] = (None, None)
    """When a whole answer, or a stream, may be sent as a trial, see `slots`; None: unknown."""


@frozen
class Entered:
    """A request in the line of ``server``. ``slots``, ``learns``: see `Line`, as its worker knows them."""

    server: str
    number: int
    model: str
    expected: float
    streams: bool
    slots: int | None
    learns: bool
    until: float | None = None
    again: bool = False


@frozen
class LoadEnd:
    """How another worker's load ended, and why it failed."""

    outcome: Outcome
    detail: str | None = None
    slots: Mapping[str, int] | None = None
    """See `Loads.report_residents`."""


OnSeen = Callable[[float, tuple[Resident, ...], Mapping[str, int] | None], None]
"""Called with what another worker has found, see `Loads.report_residents`."""


class Loads(Protocol):
    """Makes one worker load each model, and one poll each server. `server`: as in `Entered`."""

    @property
    def lag(self) -> float:
        """Seconds by which this worker polls later than the first one, whose result it then gets instead."""

    async def claim(self, server: str, model: str, *, alone: bool = False) -> LoadEnd | None:
        """None: this worker loads it, then calls `loaded`; else how another worker's load ended.

        `alone`: waits until the server loads no other model, since it would abort that load to make room."""

    def loaded(self, server: str, model: str, end: LoadEnd | None) -> None:
        """Reports how the claimed load ended; None: it was given up."""

    def report_residents(
        self, server: str, asked_at: float, residents: tuple[Resident, ...], slots: Mapping[str, int] | None
    ) -> None:
        """Sends what is loaded to the other workers, and the slots that the server reports; None: it could not."""

    def listen(self, server: str, on_seen: OnSeen) -> None:
        """Calls `on_seen` whenever another worker has polled, until `forget`."""

    def forget(self, server: str, on_seen: OnSeen) -> None:
        """Ends `listen`. Harmless when repeated."""


class Keeper(Protocol):
    """Keeps the lines of all workers."""

    def entered(self, entered: Entered) -> None:
        """A request of this worker has entered; `SharedLines.served` is called when it is its turn."""

    def began(self, number: int) -> None:
        """See `Line.began`."""

    def left(self, number: int, answered: bool, tokens: int) -> None:
        """See `Line.leave`."""

    def server_recovered(self, server: str) -> None:
        """See `Line.server_recovered`."""

    def limited(self, server: str, model: str, slots: int | None) -> None:
        """The limit of one model's requests has changed; see `Entered.slots`."""


class AllWorkers(Loads, Protocol):
    """What this worker shares with the others."""

    @property
    def lines(self) -> SharedLines:
        """This worker's lines."""


@define(eq=False)
class SharedLines:
    """All lines of one worker. ``keeper`` None: the supervisor has died."""

    keeper: Keeper | None
    _lines: WeakSet[SharedLine] = field(factory=WeakSet)
    """The lines of all generations of the configuration; a request in a line keeps it alive."""
    _turns: dict[int, tuple[SharedLine, Turn]] = field(factory=dict)
    _last: int = 0

    def line(self, server: str, slots: int | None, *, learns: bool) -> SharedLine:
        """A new line. `server`: an id of the server that is the same in all workers."""
        line = SharedLine(slots, learns=learns, server=server, lines=self)
        self._lines.add(line)
        return line

    def add(self, line: SharedLine, turn: Turn) -> None:
        """Registers `turn`, and assigns its number."""
        self._last = turn.number = self._last + 1
        self._turns[turn.number] = line, turn

    def remove(self, turn: Turn) -> None:
        """Harmless when repeated."""
        self._turns.pop(turn.number, None)

    def served(self, number: int, now: float, *, is_trial: bool, trial_timeout: float, waits: bool) -> None:
        """It is the turn of request `number`. Repeated if ``Turn.waits`` of a trial changes. A request that has left
        meanwhile is ignored: the keeper knows."""
        line, turn = self._turns.get(number, (None, None))
        if line is None or turn is None:
            return
        turn.is_trial, turn.trial_timeout, turn.waits = is_trial, trial_timeout, waits
        if turn.began_at is None:
            line.serve(turn, now)

    def update(self, server: str, model: str, busy: Busy) -> None:
        """The keeper's new state of the line of `model`."""
        for line in self._lines:
            if line.server == server:
                line.update(model, busy)

    def lost(self, now: float) -> None:
        """The supervisor has died: from now on each line is local to this worker."""
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
        wanted = turn.number, line.name, turn.expected, turn.streams
        keeper.entered(Entered(self.server, *wanted, self._own_limit(line), self.learns, turn.until, turn.again))

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

    def _limits_changed(self, now: float) -> None:
        if (keeper := self.lines.keeper) is None:
            super()._limits_changed(now)
            return
        for line in self.models.values():
            if not line.is_idle:
                keeper.limited(self.server, line.name, self._own_limit(line))

    def _own_limit(self, line: ModelLine) -> int | None:
        """The limit as far as this worker knows; None also if it is learned."""
        return super().limit(line) if not self.is_learning(line) else None

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
        """The keeper's new state of the line of `model`; the oldest one is dropped if there are too many."""
        name = ollama_name(model)
        self._busy.pop(name, None)
        if len(self._busy) >= MODELS_LIMIT:
            del self._busy[next(iter(self._busy))]
        self._busy[name] = busy

    def serve(self, turn: Turn, now: float) -> None:
        """The keeper has decided that it is `turn`'s turn."""
        line = turn.line
        line.remove(turn)
        turn.began_at = now
        line.serving.add(turn)
        if turn.on_turn is not None:
            turn.on_turn()

    def serve_waiting(self, now: float) -> None:
        """Serves waiting requests that have room, counting only this worker's own requests."""
        self._serve_waiting(now)
