"""The workers of one proxy, as their supervisor sees them: what it decides, and what it has them told.

1. A worker that ends is started again after 0.1 s, twice that the next time, up to 10 s; one that has lived for a
   minute begins anew. Not while all drain.
2. Each worker's loop answers a beat now and then. One that is silent for ``patience`` is ended, so that it is started
   again: first by SIGABRT, at which faulthandler tells where it hung, then by SIGKILL.
3. A question about all is put to all that can answer, and answered when they have, or after `GATHERING`. Who asks
   meanwhile shares the next answer: however many ask, there is one question on its way.
4. What a worker finds out about a provider is passed to the others, and kept for those that are yet to come.
5. Counters never fall: what a worker had counted when it was last asked stays when it is gone.
6. A question to one worker is passed on to it, and its answer to the process that asked. Nothing of it is kept here.

Nothing here waits, and the time is an argument. What is to be sent is in ``outbox``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, assert_never

import msgspec
from attrs import define, field

from manallm_proxy.observe.metrics_merge import Families, Family, add, merged_health, parse, render
from manallm_proxy.process.worker_messages import (
    Adopt,
    Answer,
    Ask,
    AskOne,
    Beat,
    Drain,
    Farewell,
    FromWorker,
    Leaving,
    Moved,
    Part,
    PartOne,
    Serving,
    Tell,
    TellOne,
    Topic,
    ToWorker,
)
from manallm_proxy.routing.health import SharedState

DELAY: Final = 0.1
DELAY_LONGEST: Final = 10.0
PROVEN: Final = 60.0
"""Seconds behind which a worker's end has nothing to do with how it began."""
GATHERING: Final = 0.5
"""Seconds within which a worker's part of an answer is waited for."""
LAST_CHANCE: Final = 2.0
"""Seconds from SIGABRT to SIGKILL."""
UPDATES_LIMIT: Final = 1000


@define(eq=False)
class Worker:
    """One worker that lives."""

    number: int
    pid: int
    began: float
    silent_since: float | None
    """When it was sent the beat that it has not answered."""
    joined: bool = False
    """It has said something, so it can be asked."""
    serving: bool = False
    leaving: bool = False
    ended_at: float | None = None
    """When it was told to end for its silence."""
    counted: Families = field(factory=dict)
    """Its metrics when it was last asked."""

    @property
    def state(self) -> str:
        """In a word, for people."""
        return "leaving" if self.leaving else "serving" if self.serving else "starting"


Asker = tuple[Worker, int]
"""A worker, and its own id of the question."""


@define(eq=False)
class _Question:
    id: int
    askers: list[Asker]
    until: float
    waiting: set[int]
    parts: dict[int, str] = field(factory=dict)


@define(eq=False)
class WorkerManager:
    """``own`` gives the supervisor's own metrics. Workers are numbered from 1 to ``size``."""

    size: int
    patience: float
    own: Callable[[], str]
    draining: bool = False
    workers: dict[int, Worker] = field(factory=dict)
    outbox: list[tuple[int, ToWorker]] = field(factory=list)
    summary: str = ""
    banner: str = ""
    """What the last worker said that began to serve."""
    _start_at: dict[int, float] = field(factory=dict)
    _delays: dict[int, float] = field(factory=dict)
    _beat_at: float = 0.0
    _updates: dict[tuple[str, str | None], SharedState] = field(factory=dict)
    _past: Families = field(factory=dict)
    _questions: dict[Topic, _Question] = field(factory=dict)
    _queued: dict[Topic, list[Asker]] = field(factory=dict)
    _last_id: int = 0

    def __attrs_post_init__(self) -> None:
        self._start_at = dict.fromkeys(range(1, self.size + 1), 0.0)

    @property
    def all_serve(self) -> bool:
        return len(self.workers) == self.size and all(worker.serving for worker in self.workers.values())

    @property
    def all_answer(self) -> bool:
        """No worker hangs."""
        return all(worker.ended_at is None for worker in self.workers.values())

    def next_at(self) -> float:
        """When `to_start`, `to_end` or `due` may have something to do."""
        ending = (worker.ended_at + LAST_CHANCE for worker in self.workers.values() if worker.ended_at is not None)
        questions = (question.until for question in self._questions.values())
        return min([self._beat_at, *self._start_at.values(), *questions, *ending])

    # 1

    def to_start(self, now: float) -> list[int]:
        """Numbers of workers whose time has come."""
        return [number for number, when in self._start_at.items() if now >= when]

    def started(self, number: int, pid: int, now: float) -> None:
        del self._start_at[number]
        self.workers[number] = Worker(number, pid, now, silent_since=now)
        for (provider, model), update in self._updates.items():
            self.outbox.append((number, Moved(provider, model, update)))

    def ended(self, number: int, now: float) -> float | None:
        """A worker is gone, or could not be started. Seconds until it is started again; None: never."""
        worker = self.workers.pop(number, None)
        self._start_at.pop(number, None)
        if worker is not None:
            add(self._past, worker.counted, counted_only=True)
            for topic in list(self._questions):
                self._settle(topic, number, now)
            if now - worker.began >= PROVEN:
                self._delays.pop(number, None)
        if self.draining:
            return None
        delay = self._delays.get(number, DELAY)
        self._delays[number] = min(2 * delay, DELAY_LONGEST)
        self._start_at[number] = now + delay
        return delay

    def drain(self, *, hurry: bool) -> None:
        """All are to end, and nobody is started any more."""
        self.draining = True
        self._start_at.clear()
        self._tell_all(Drain(hurry))

    def adopt(self, config: bytes, changed: Collection[str]) -> None:
        """All are to serve a new configuration. What was found out about providers that `changed` is void."""
        self._updates = {key: found for key, found in self._updates.items() if key[0] not in changed}
        for worker in self.workers.values():
            worker.serving = False
        self._tell_all(Adopt(config))

    # 2

    def due(self, now: float) -> None:
        """What time brings: beats, and the end of patience with those who do not answer a question."""
        if now >= self._beat_at:
            self._beat_at = now + self.patience / 4
            for worker in self.workers.values():
                if worker.silent_since is None:
                    worker.silent_since = now
                    self.outbox.append((worker.number, Beat()))
        for topic, question in list(self._questions.items()):
            if now >= question.until:
                self._answer(topic, now)

    def to_end(self, now: float) -> list[tuple[Worker, bool]]:
        """Workers that have been silent for too long, each with whether it has had its last chance."""
        found: list[tuple[Worker, bool]] = []
        for worker in self.workers.values():
            if worker.ended_at is not None:
                if now - worker.ended_at >= LAST_CHANCE:
                    worker.ended_at = now
                    found.append((worker, True))
            elif worker.silent_since is not None and now - worker.silent_since >= self.patience:
                worker.ended_at = now
                found.append((worker, False))
        return found

    def received(self, number: int, message: FromWorker, now: float) -> None:
        """A worker has said something."""
        worker = self.workers[number]
        worker.silent_since, worker.joined = None, True
        match message:
            case Moved():
                self._found(number, message)
            case Serving():
                worker.serving = True
                self.summary, self.banner = message.summary, message.banner
            case Leaving():
                worker.leaving = True
            case Farewell():
                worker.counted = parse(message.metrics)
            case Ask():
                self._ask(message.topic, (worker, message.id), now)
            case Part():
                for topic, question in list(self._questions.items()):
                    if question.id == message.id:
                        question.parts[number] = message.body
                        self._settle(topic, number, now)
            case AskOne():
                self._pass_on(worker, message)
            case PartOne():
                asker = next((each for each in self.workers.values() if each.pid == message.asker), None)
                if asker is not None:
                    self.outbox.append((asker.number, Answer(message.id, message.body)))
            case Beat():
                pass
            case _:
                assert_never(message)

    # 6

    def _pass_on(self, asker: Worker, message: AskOne) -> None:
        keeper = self.workers.get(message.worker)
        if keeper is not None and keeper.joined:
            self.outbox.append((keeper.number, TellOne(message.id, asker.pid, message.question)))
        else:
            self.outbox.append((asker.number, Answer(message.id, "")))

    # 3

    def _ask(self, topic: Topic, asker: Asker, now: float) -> None:
        if topic in self._questions:
            self._queued.setdefault(topic, []).append(asker)
        else:
            self._put(topic, [asker], now)

    def _put(self, topic: Topic, askers: list[Asker], now: float) -> None:
        self._last_id += 1
        asked = {number for number, worker in self.workers.items() if worker.joined}
        self._questions[topic] = _Question(self._last_id, askers, now + GATHERING, asked)
        self.outbox += [(number, Tell(self._last_id, topic)) for number in asked]

    def _settle(self, topic: Topic, number: int, now: float) -> None:
        question = self._questions[topic]
        question.waiting.discard(number)
        if not question.waiting:
            self._answer(topic, now)

    def _answer(self, topic: Topic, now: float) -> None:
        question = self._questions.pop(topic)
        body = self._metrics(question.parts) if topic == "metrics" else self._health(question.parts)
        for worker, id_ in question.askers:
            if self.workers.get(worker.number) is worker:
                self.outbox.append((worker.number, Answer(id_, body)))
        if queued := self._queued.pop(topic, None):
            self._put(topic, queued, now)

    def _metrics(self, parts: dict[int, str]) -> str:
        total = parse(self.own())
        for number, worker in self.workers.items():
            if number in parts:
                worker.counted = parse(parts[number])
            add(total, worker.counted, counted_only=number not in parts)
        add(total, self._past, counted_only=True)
        up = {f'mana_llm_worker_up{{worker="{number}"}}': float(number in parts) for number in self._numbers}
        head = ["# HELP mana_llm_worker_up Whether the worker answers", "# TYPE mana_llm_worker_up gauge"]
        total["mana_llm_worker_up"] = Family("gauge", head, up)
        total["mana_llm_worker_restarts_total"].samples.setdefault("mana_llm_worker_restarts_total", 0.0)
        return render(total)

    def _health(self, parts: dict[int, str]) -> str:
        report = merged_health(msgspec.json.decode(part) for part in parts.values())
        report["workers"] = {str(number): self._state(number, number in parts) for number in self._numbers}
        return msgspec.json.encode(report).decode()

    def _state(self, number: int, answered: bool) -> dict[str, Any]:
        worker = self.workers.get(number)
        if worker is None:
            return {"status": "down", "pid": None}
        return {"status": worker.state if answered or not worker.joined else "silent", "pid": worker.pid}

    @property
    def _numbers(self) -> range:
        return range(1, self.size + 1)

    # 4

    def _found(self, number: int, moved: Moved) -> None:
        key, update = (moved.provider, moved.model), moved.update
        known = self._updates.get(key)
        if known is None or update.rank > known.rank:
            self._updates.pop(key, None)
            if not update.is_clear:
                if len(self._updates) >= UPDATES_LIMIT:
                    del self._updates[next(iter(self._updates))]
                self._updates[key] = update
        self._tell_all(moved, but=number)

    def _tell_all(self, message: ToWorker, but: int | None = None) -> None:
        self.outbox += [(number, message) for number in self.workers if number != but]
