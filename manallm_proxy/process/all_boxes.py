"""The supervisor's state of local servers, shared by all workers: a line per server, and the loads of models.

1. The requests of all workers for one server stand in one line (`routing.line`), first come, first served.
2. Every change of a line is sent to all workers, so that each can estimate how long a request would wait.
3. If several workers want to load the same model, one does, and the outcome is sent to the others. If that worker ends
   first, the next one loads. On servers that would abort a load to make room, loads run one at a time.
4. When a worker ends, its requests leave their lines.
5. What one worker has found loaded is sent to the others, so that they need not poll.

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
"""Max servers whose lines are kept. Reloads may name ever new ones, so an empty line is dropped."""

ONE_OUTAGE: Final = 60.0
"""Reports of several workers that a server is back, within this many seconds, mean the same outage."""

Outbox = list[tuple[int, box.ToWorker]]


@define(eq=False)
class Load:
    """The load of one model by worker ``holder``; None: it must be ``alone``, and waits for the server's other load.

    ``waiting``: who else wants the same model. A worker is there once for each of its boxes that does: after a reload
    there may be two of one server."""

    holder: int | None
    waiting: list[int]
    alone: bool


@define(eq=False)
class AllBoxes:
    """State of all local servers. Workers are identified by number."""

    _lines: dict[str, Line] = field(factory=dict)
    _turns: dict[tuple[int, int], tuple[str, Turn]] = field(factory=dict)
    """Turns by worker, and by the worker's number for the request."""
    _loads: dict[tuple[str, str], Load] = field(factory=dict)
    """Loads by server, and by `ollama_name`."""
    _back: dict[str, float] = field(factory=dict)
    """By server: when its last outage ended."""
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
            case box.Limited():
                if (line := self._lines.get(message.server)) is not None:
                    line.limit_model(message.model, message.slots, now)
                    self._tell(message.server, message.model, workers, now)
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
        """A worker has started: sends it the state of all lines."""
        for server, line in self._lines.items():
            for each in line.models.values():
                self._out.append((worker, box.Line(server, each.name, _busy(line, each.name, now))))
        return self._take()

    def ended(self, worker: int, workers: Collection[int], now: float) -> Outbox:
        """A worker has ended (rules 3 and 4). `workers`: those that are left."""
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
        """Each worker reports it with its next request for the server; only the first report counts."""
        if now - self._back.get(server, -math.inf) >= ONE_OUTAGE:
            self._line(server).server_recovered()
            self._back[server] = now

    def _enter(self, worker: int, entered: Entered, workers: Collection[int], now: float) -> None:
        line = self._line(entered.server)
        line.learns = entered.learns
        each = line.of(entered.model)
        each.reported_slots = entered.slots
        turn = Turn(each, entered.expected, entered.streams, until=entered.until, number=entered.number)
        turn.again = entered.again
        turn.on_turn = partial(self._served, worker, turn)
        self._turns[worker, entered.number] = entered.server, turn
        line.enter(turn, now)
        self._tell(entered.server, entered.model, workers, now)

    def _leave(self, server: str, turn: Turn, now: float, *, answered: bool, tokens: int = 0) -> None:
        trial = turn.line.trial
        waited = trial is not None and trial.waits
        self._lines[server].leave(turn, now, answered=answered, tokens=tokens)
        if trial is not None and trial.on_turn is not None and waited != trial.waits:
            trial.on_turn()  # sent again: it no longer waits

    def _served(self, worker: int, turn: Turn) -> None:
        self._out.append((worker, box.Served(turn.number, turn.is_trial, turn.trial_timeout, turn.waits)))

    def _tell(self, server: str, model: str, workers: Collection[int], now: float) -> None:
        """Sends the changed lines. After an outage all models share the server's ramp, so all of them have changed."""
        line = self._lines[server]
        names = [model] if line.ramp is None else [each.name for each in line.models.values()]
        for name in names:
            each, busy = line.of(name), _busy(line, name, now)
            limited = busy.slots is not None or busy.ramp is not None
            if limited or each.is_published:  # without a limit there is always room
                each.is_published = limited
                self._out += [(number, box.Line(server, name, busy)) for number in workers]

    def _line(self, server: str) -> Line:
        """The line of `server`; creates it, and drops an empty one, if needed."""
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
        else:
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
        """Makes the next waiting worker load the model."""
        load.holder = None
        if not load.waiting:
            del self._loads[server, model]
        self._grant(server)

    def _grant(self, server: str) -> None:
        """Starts the loads that may start, in the order in which they were claimed."""
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
