"""Decides for the supervisor what happens to its workers, and what it sends them.

1. A worker that ends is restarted after 0.1 s; the delay doubles with each restart, up to 10 s, and resets after a
   minute of uptime. Nothing is restarted during a drain.
2. Each worker's loop answers a ping every quarter of ``stall_timeout``. A worker that is silent for all of it is ended
   and restarted: first by SIGABRT, on which faulthandler prints where it hung, then by SIGKILL.
3. A question about all workers goes to every worker that can answer. The reply is sent when all have answered, or after
   `GATHERING`. Further questions meanwhile share the next round, so only one round is ever under way.
4. A health change that one worker reports is sent to the others, and kept for workers that start later. One of a
   provider that has changed is dropped if the worker has yet to adopt that change.
5. Counters never decrease: when a worker is gone, its last reported counts stay.
6. A new configuration is prepared by every worker before any adopts it, see `rollout`.
7. What one worker has spent is sent to the others, and to those that start later. ``ledger`` has the totals.
8. A question to one worker is forwarded to it, and its answer to the process that asked; nothing is kept here.
9. All workers share one line in front of each local server, see `all_boxes`.

Nothing here waits, and the time is an argument. Messages to be sent are in ``outbox``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, assert_never

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.observe.metrics_merge import Families, add, parse
from manallm_proxy.process import box_messages as box
from manallm_proxy.process.all_boxes import AllBoxes
from manallm_proxy.process.all_workers import Worker, all_health, all_metrics
from manallm_proxy.process.feed_readers import FeedReaders
from manallm_proxy.process.questions import Asker, Question
from manallm_proxy.process.rollout import PREPARING, Rollout
from manallm_proxy.process.worker_messages import (
    Abandon,
    Adopt,
    Answer,
    Ask,
    AskOne,
    AskPart,
    Drain,
    FinalMetrics,
    ForwardedQuestion,
    FromWorker,
    HealthUpdate,
    Leaving,
    LiveEvent,
    Part,
    PartOne,
    Ping,
    Prepare,
    Prepared,
    Serving,
    Spent,
    Topic,
    ToWorker,
    Watching,
)
from manallm_proxy.routing.circuit import SharedState
from manallm_proxy.routing.ledger import Ledger

DELAY: Final = 0.1
DELAY_LONGEST: Final = 10.0
PROVEN: Final = 60.0
"""Uptime in seconds after which the restart delay resets."""
GATHERING: Final = 0.5
"""Max seconds to wait for the workers' parts of an answer."""
LAST_CHANCE: Final = 2.0
"""Seconds from SIGABRT to SIGKILL."""
UPDATES_LIMIT: Final = 1000
"""Max health changes kept for workers that start later; the oldest is dropped."""


@define(eq=False)
class WorkerManager:
    """Workers are numbered from 1 to ``size``. ``stall_timeout`` is in seconds."""

    size: int
    stall_timeout: float
    own: Callable[[], str]
    """Returns the supervisor's own metrics."""
    ledger: Ledger = field(factory=Ledger)
    draining: bool = False
    workers: dict[int, Worker] = field(factory=dict)
    outbox: list[tuple[int, ToWorker]] = field(factory=list)
    summary: str = ""
    banner: str = ""
    """As reported by the latest worker that became ready."""
    _start_at: dict[int, float] = field(factory=dict)
    _delays: dict[int, float] = field(factory=dict)
    _beat_at: float = 0.0
    _updates: dict[tuple[str, str | None], SharedState] = field(factory=dict)
    _past: Families = field(factory=dict)
    _questions: dict[Topic, Question] = field(factory=dict)
    _queued: dict[Topic, list[Asker]] = field(factory=dict)
    _feed_readers: FeedReaders = field(factory=FeedReaders)
    _boxes: AllBoxes = field(factory=AllBoxes)
    _last_id: int = 0
    _rollout: Rollout | None = None
    _outcome: tuple[str, ...] | None = None

    def __attrs_post_init__(self) -> None:
        self._start_at = dict.fromkeys(range(1, self.size + 1), 0.0)

    @property
    def all_serve(self) -> bool:
        return len(self.workers) == self.size and all(worker.serving for worker in self.workers.values())

    @property
    def all_answer(self) -> bool:
        """Whether every worker answers its pings."""
        return all(worker.ended_at is None for worker in self.workers.values())

    def next_at(self) -> float:
        """The next time at which `to_start`, `to_end` or `due` may have something to do."""
        ending = (worker.ended_at + LAST_CHANCE for worker in self.workers.values() if worker.ended_at is not None)
        questions = (question.until for question in self._questions.values())
        rollout = [self._rollout.until] if self._rollout is not None else []
        return min([self._beat_at, *self._start_at.values(), *questions, *ending, *rollout])

    # 1

    def to_start(self, now: float) -> list[int]:
        """Numbers of the workers to start now."""
        return [number for number, when in self._start_at.items() if now >= when]

    def started(self, number: int, pid: int, now: float) -> None:
        del self._start_at[number]
        self.workers[number] = Worker(number, pid, now, silent_since=now)
        self.outbox += self._feed_readers.started(number)
        self.outbox += self._boxes.started(number, now)
        for (provider, model), update in self._updates.items():
            self.outbox.append((number, HealthUpdate(provider, model, update)))
        if rows := self.ledger.rows():
            self.outbox.append((number, Spent(rows, self.ledger.recovered)))
        if self._rollout is not None:
            self._rollout.started(number)
            self.outbox.append((number, self._rollout.prepare))

    def ended(self, number: int, now: float) -> float | None:
        """Records that a worker has ended, or could not be started. Returns the restart delay; None during a drain."""
        worker = self.workers.pop(number, None)
        self._start_at.pop(number, None)
        self.outbox += self._feed_readers.set(number, False, self.workers)
        self.outbox += self._boxes.ended(number, self.workers, now)
        if worker is not None:
            add(self._past, worker.counted, counted_only=True)
            for topic in list(self._questions):
                self._reply(topic, number, now)
            if now - worker.began >= PROVEN:
                self._delays.pop(number, None)
            self._wait_no_longer(number)
        if self.draining:
            return None
        delay = self._delays.get(number, DELAY)
        self._delays[number] = min(2 * delay, DELAY_LONGEST)
        self._start_at[number] = now + delay
        return delay

    def drain(self, *, hurry: bool) -> None:
        """Tells all workers to drain, and starts no more."""
        self.draining = True
        self._start_at.clear()
        self._rollout = None
        self._tell_all(Drain(hurry))

    # 2

    def due(self, now: float) -> None:
        """Sends pings, and ends overdue waits for answers and for a rollout."""
        if now >= self._beat_at:
            self._beat_at = now + self.stall_timeout / 4
            for worker in self.workers.values():
                if worker.silent_since is None:
                    worker.silent_since = now
                    self.outbox.append((worker.number, Ping()))
        for topic, question in list(self._questions.items()):
            if now >= question.until:
                self._answer(topic, now)
        if self._rollout is not None:
            self._rollout.due(now)
            self._finish_rollout()

    def to_end(self, now: float) -> list[tuple[Worker, bool]]:
        """Workers that have stalled; True with each that is to be killed, False if it gets SIGABRT first."""
        found: list[tuple[Worker, bool]] = []
        for worker in self.workers.values():
            if worker.ended_at is not None:
                if now - worker.ended_at >= LAST_CHANCE:
                    worker.ended_at = now
                    found.append((worker, True))
            elif worker.silent_since is not None and now - worker.silent_since >= self.stall_timeout:
                worker.ended_at = now
                found.append((worker, False))
        return found

    def received(self, number: int, message: FromWorker, now: float) -> None:
        """Handles a message from a worker."""
        worker = self.workers[number]
        worker.silent_since, worker.joined = None, True
        match message:
            case HealthUpdate():
                if message.provider not in worker.outdated:
                    self._share_update(number, message)
            case Serving():
                worker.serving, worker.outdated = True, ()
                self.summary, self.banner = message.summary, message.banner
            case Leaving():
                worker.leaving = True
                self._wait_no_longer(number)
            case FinalMetrics():
                worker.counted = parse(message.metrics)
            case Ask():
                self._ask(message.topic, (worker, message.id), now)
            case Part():
                for topic, question in list(self._questions.items()):
                    if question.id == message.id:
                        question.parts[number] = message.body
                        self._reply(topic, number, now)
            case Prepared():
                if self._rollout is not None:
                    self._rollout.answered(number, message)
                    self._finish_rollout()
            case AskOne():
                self._pass_on(worker, message)
            case PartOne():
                asker = next((each for each in self.workers.values() if each.pid == message.asker), None)
                if asker is not None:
                    self.outbox.append((asker.number, Answer(message.id, message.body)))
            case Watching():
                self.outbox += self._feed_readers.set(number, message.on, self.workers)
            case LiveEvent():
                self.tell(message, but=number)
            case Spent():
                self.ledger.merge(message.rows)
                self._tell_all(message, but=number)
            case Ping():
                pass
            case box.Enter() | box.Began() | box.Left() | box.Limited() | box.Recovered() | box.Claim():
                self.outbox += self._boxes.received(number, message, self.workers, now)
            case box.Loaded() | box.Seen():
                self.outbox += self._boxes.received(number, message, self.workers, now)
            case _:
                assert_never(message)

    def tell(self, event: LiveEvent, but: int | None = None) -> None:
        """Sends an event of the live feed to all workers while any has readers, so that one may reconnect to any."""
        if self._feed_readers.watching:
            self._tell_all(event, but)

    # 8

    def _pass_on(self, asker: Worker, message: AskOne) -> None:
        keeper = self.workers.get(message.worker)
        if keeper is not None and keeper.joined:
            self.outbox.append((keeper.number, ForwardedQuestion(message.id, asker.pid, message.question)))
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
        self._questions[topic] = Question(self._last_id, askers, now + GATHERING, asked)
        self.outbox += [(number, AskPart(self._last_id, topic)) for number in asked]

    def _reply(self, topic: Topic, number: int, now: float) -> None:
        question = self._questions[topic]
        question.waiting.discard(number)
        if not question.waiting:
            self._answer(topic, now)

    def _answer(self, topic: Topic, now: float) -> None:
        question = self._questions.pop(topic)
        body = self._merged(topic, question.parts)
        for worker, id_ in question.askers:
            if self.workers.get(worker.number) is worker:
                self.outbox.append((worker.number, Answer(id_, body)))
        if queued := self._queued.pop(topic, None):
            self._put(topic, queued, now)

    def _merged(self, topic: Topic, parts: dict[int, str]) -> str:
        numbers = range(1, self.size + 1)
        match topic:
            case "metrics":
                return all_metrics(self.own(), self._past, self.workers, numbers, parts)
            case "health":
                return all_health(self.workers, numbers, parts)
            case "requests":
                return f"[{','.join(parts.values())}]"  # the worker that asked merges them: the supervisor never waits
            case _:
                assert_never(topic)

    # 4

    def _share_update(self, number: int, moved: HealthUpdate) -> None:
        key, update = (moved.provider, moved.model), moved.update
        known = self._updates.get(key)
        if known is None or update.rank > known.rank:
            self._updates.pop(key, None)
            if not update.is_clear:
                if len(self._updates) >= UPDATES_LIMIT:
                    del self._updates[next(iter(self._updates))]
                self._updates[key] = update
        self._tell_all(moved, but=number)

    # 6

    def prepare(self, config: bytes, changed: Collection[str], now: float) -> None:
        """Starts the rollout of a pickled configuration. `changed`: providers that differ from the current one."""
        self._last_id += 1
        waiting = {number for number, worker in self.workers.items() if not worker.leaving}
        self._rollout = Rollout(Prepare(self._last_id, config), changed, waiting, now + PREPARING)
        self.outbox += [(number, self._rollout.prepare) for number in waiting]
        self._finish_rollout()

    def take_outcome(self) -> tuple[str, ...] | None:
        """The result of the rollout, once: mistakes if it was refused, empty if all adopt it. None: it is under way."""
        outcome, self._outcome = self._outcome, None
        return outcome

    def _wait_no_longer(self, number: int) -> None:
        if self._rollout is not None:
            self._rollout.left(number)
            self._finish_rollout()

    def _finish_rollout(self) -> None:
        rollout = self._rollout
        if rollout is None or not rollout.over:
            return
        self._rollout, self._outcome = None, rollout.mistakes
        if rollout.mistakes:
            self._tell_all(Abandon(rollout.prepare.number))
            return
        # what is known about the health of providers that have changed no longer holds
        self._updates = {key: found for key, found in self._updates.items() if key[0] not in rollout.changed}
        for worker in self.workers.values():
            worker.serving, worker.outdated = False, rollout.changed
        self._tell_all(Adopt(rollout.prepare.number))

    def _tell_all(self, message: ToWorker, but: int | None = None) -> None:
        self.outbox += [(number, message) for number in self.workers if number != but]
