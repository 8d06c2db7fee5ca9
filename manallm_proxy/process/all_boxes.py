"""What all workers share of local servers, as their supervisor keeps it: a line for each server, a load for each model.

1. The requests of all workers for one server stand in one line (`routing.line`), first come first served.
2. Every worker hears how long a line is whenever that changes, so that each can tell how long a request would wait.
3. Of the workers that would load the same model one does, and the others hear how it ended. If it ends before that, the
   next one does. Where a server would end a load to make room for the next, there is one at a time.
4. With a worker its requests leave their lines.
5. What one has seen loaded the others hear, so that they need not look.

Nothing here waits, and the time is an argument. Its methods return the messages to send, and to whom.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Final, assert_never

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import ollama_name
from manallm_proxy.process import box_messages as box
from manallm_proxy.routing.line import Line, Turn
from manallm_proxy.routing.shared_line import Busy, Entered

LINES_LIMIT: Final = 100
"""Servers whose lines are remembered; reloads may name ever new ones, so one for which nobody stands makes room."""

ONE_OUTAGE: Final = 60.0
"""Seconds within which workers that say that a server has come back mean the same outage."""

Outbox = list[tuple[int, box.ToWorker]]


@define(eq=False)
class Load:
    """The load of one model, by worker ``holder``; None: it waits for the end of the server's other load, since it is
    to be ``alone``. ``waiting``: the workers that would load it as well."""

    holder: int | None
    waiting: list[int]
    alone: bool


@define(eq=False)
class AllBoxes:
    """See the module. Workers by number."""

    _lines: dict[str, Line] = field(factory=dict)
    _turns: dict[tuple[int, int], tuple[str, Turn]] = field(factory=dict)
    """By worker, and by the number that it gave the request."""
    _loads: dict[tuple[str, str], Load] = field(factory=dict)
    """By server, and by `ollama_name`."""
    _back: dict[str, float] = field(factory=dict)
    """When a server last came back after an outage."""
    _out: Outbox = field(factory=list)

    def received(self, worker: int, message: box.FromWorker, workers: Collection[int], now: float) -> Outbox:
        """Handles what `worker` has sent. `workers`: all of them."""
        match message:
            case box.Enter():
                self._enter(worker, message.entered, workers, now)
            case box.Began():
                if (found := self._turns.get((worker, message.number))) is not None:
                    server, turn = found
                    self._lines[server].began(turn, now)
                    self._tell(server, turn.line.name, workers, now)
            case box.Left():
                if (found := self._turns.pop((worker, message.number), None)) is not None:
                    server, turn = found
                    self._leave(server, turn, now, answered=message.answered, tokens=message.tokens)
                    self._tell(server, turn.line.name, workers, now)
            case box.Recovered():
                self._server_recovered(message.server, now)
            case box.Claim():
                self._claim(worker, message)
            case box.Loaded():
                self._loaded(worker, message, workers)
            case box.Seen():
                self._out += [(number, message) for number in workers if number != worker]
            case _:
                assert_never(message)
        return self._take()

    def started(self, worker: int, now: float) -> Outbox:
        """A worker is new: it hears of the lines that there are."""
        for server, line in self._lines.items():
            for each in line.models.values():
                self._out.append((worker, box.Line(server, each.name, _busy(line, each.name, now))))
        return self._take()

    def ended(self, worker: int, workers: Collection[int], now: float) -> Outbox:
        """Rules 3 and 4. `workers`: those that are left."""
        for key in [key for key in self._turns if key[0] == worker]:
            server, turn = self._turns.pop(key)
            turn.on_turn = None
            self._leave(server, turn, now, answered=False)
            self._tell(server, turn.line.name, workers, now)
        for (server, model), load in list(self._loads.items()):
            load.waiting = [each for each in load.waiting if each != worker]
            if load.holder == worker or (load.holder is None and not load.waiting):
                self._next(server, model, load)
        return [(number, message) for number, message in self._take() if number != worker]

    # 1, 2

    def _server_recovered(self, server: str, now: float) -> None:
        """Each worker says so, when it has its next request for it."""
        if now - self._back.get(server, -math.inf) >= ONE_OUTAGE:
            self._line(server).server_recovered()
            self._back[server] = now

    def _enter(self, worker: int, entered: Entered, workers: Collection[int], now: float) -> None:
        line = self._line(entered.server)
        line.learns = entered.learns
        each = line.of(entered.model)
        each.reported_slots = entered.slots
        turn = Turn(each, entered.expected, entered.streams, until=entered.until, number=entered.number)
        turn.on_turn = partial(self._served, worker, turn)
        self._turns[worker, entered.number] = entered.server, turn
        line.enter(turn, now)
        self._tell(entered.server, entered.model, workers, now)

    def _leave(self, server: str, turn: Turn, now: float, *, answered: bool, tokens: int = 0) -> None:
        trial = turn.line.trial
        waited = trial is not None and trial.waits
        self._lines[server].leave(turn, now, answered=answered, tokens=tokens)
        if trial is not None and trial.on_turn is not None and waited != trial.waits:
            trial.on_turn()  # once more: it waits no longer

    def _served(self, worker: int, turn: Turn) -> None:
        self._out.append((worker, box.Served(turn.number, turn.is_trial, turn.trial_timeout, turn.waits)))

    def _tell(self, server: str, model: str, workers: Collection[int], now: float) -> None:
        """After an outage all models share what is left of the server, so all have changed."""
        line = self._lines[server]
        names = [model] if line.ramp is None else [each.name for each in line.models.values()]
        for name in names:
            each, busy = line.of(name), _busy(line, name, now)
            limited = busy.slots is not None or busy.ramp is not None
            if limited or each.is_published:  # without a limit there is always room
                each.is_published = limited
                self._out += [(number, box.Line(server, name, busy)) for number in workers]

    def _line(self, server: str) -> Line:
        """That of `server`; makes one, and room for it."""
        line = self._lines.get(server)
        if line is not None:
            return line
        if len(self._lines) >= LINES_LIMIT:
            used = {each for each, _ in self._turns.values()}
            idle = next((each for each in self._lines if each not in used), None)
            if idle is not None:
                del self._lines[idle]
                self._back.pop(idle, None)
        line = self._lines[server] = Line(None)
        return line

    # 3

    def _claim(self, worker: int, claim: box.Claim) -> None:
        key = claim.server, ollama_name(claim.model)
        load = self._loads.get(key)
        if load is None:
            self._loads[key] = Load(None, [worker], claim.alone)
            self._grant(claim.server)
        elif worker not in load.waiting:
            load.waiting.append(worker)

    def _loaded(self, worker: int, loaded: box.Loaded, workers: Collection[int]) -> None:
        key = loaded.server, ollama_name(loaded.model)
        load = self._loads.get(key)
        if load is None or load.holder != worker:
            return
        if loaded.end is None:
            self._next(*key, load)
            return
        del self._loads[key]
        self._out += [(number, loaded) for number in workers if number != worker or worker in load.waiting]
        self._grant(loaded.server)

    def _next(self, server: str, model: str, load: Load) -> None:
        """The next of those that wait loads it."""
        load.holder = None
        if not load.waiting:
            del self._loads[server, model]
        self._grant(server)

    def _grant(self, server: str) -> None:
        """Begins the loads that may begin, in the order in which they were claimed."""
        loads = [(model, load) for (where, model), load in self._loads.items() if where == server]
        for model, load in loads:
            is_free = not load.alone or all(each.holder is None for _, each in loads)
            if load.holder is None and is_free:
                load.holder = load.waiting.pop(0)
                self._out.append((load.holder, box.Granted(server, model)))

    def _take(self) -> Outbox:
        out, self._out = self._out, []
        return out


def _busy(line: Line, model: str, now: float) -> Busy:
    each = line.of(model)
    room = not each.waiting and line.has_room(each, None, now)
    served = tuple((turn.expected, turn.began_at) for turn in each.serving if turn.began_at is not None)
    slots, is_free = line.limit(each), each.trial is None and not each.waiting and line.is_learning(each)
    trials = (each.slots.trial_from(False), each.slots.trial_from(True)) if is_free else (None, None)
    return Busy(slots, line.ramp, room, served, each.backlog, trials)
