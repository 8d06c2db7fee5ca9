"""A worker's end of the connection to its supervisor.

If the connection closes, the supervisor has died. The worker then drains, because nothing would restart it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, assert_never

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.process import box_messages as box
from manallm_proxy.process.box_link import BoxLink
from manallm_proxy.process.worker_messages import (
    TO_WORKER,
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
    LineSplitter,
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
    Watch,
    Watching,
    to_line,
)
from manallm_proxy.routing.circuit import SharedState
from manallm_proxy.routing.ledger import Row

ASK_TIMEOUT: Final = 2.0
"""Seconds to wait for an answer that speaks for all workers; the supervisor takes at most `workers.GATHERING`."""
LAG: Final = 0.2
"""Seconds by which each worker polls a local server later than the previous one, whose result it usually gets first."""
_LONG: Final = 256 * 1024
"""Bytes of an answer from which on it is decoded in a thread: the metrics of 1,500 models have 1.5 MB."""
_ANSWER: Final = to_line(Answer(0, "")).partition(b",")[0] + b","
FAREWELL_TIMEOUT: Final = 1.0
"""Seconds to wait until the last message has been sent."""


class SpendReceiver(Protocol):
    """Keeps the spending of all workers."""

    def receive(self, rows: list[Row], recovered: list[Row] | None) -> None:
        """Adds what other workers have spent, see `Spent`."""


class Duties(Protocol):
    """What a worker does on request of its supervisor."""

    @property
    def spend(self) -> SpendReceiver:
        """The keeper of spending."""

    def merge_update(self, provider: str, model: str | None, update: SharedState) -> None:
        """Applies a health change that another worker reported."""

    async def part(self, topic: Topic) -> Callable[[], bytes]:
        """This worker's part of an answer for all workers; called in a thread for its text."""

    def prepare_pickled(self, number: int, config: bytes, reply: Callable[[tuple[str, ...]], None]) -> None:
        """Opens a configuration while the old one serves on. Calls `reply` with its mistakes, none if it is open."""

    def adopt_prepared(self, number: int) -> None:
        """Serves the configuration that was prepared under `number`."""

    def abandon_prepared(self, number: int) -> None:
        """Closes the configuration that was prepared under `number`."""

    def recall(self, question: str) -> str:
        """Answers another worker's question about responses stored only here."""

    def deliver_event(self, id_: str, kind: str, data: str) -> None:
        """Delivers another worker's live feed event to the readers here."""

    def watch(self, on: bool) -> None:
        """Sets whether another worker has readers of the live feed."""

    def drain(self, hurry: bool) -> None:
        """Drains. `hurry` ends the wait for answers in flight; otherwise a second call changes nothing."""


@define(eq=False)
class WorkerLink(asyncio.Protocol):
    """Worker ``number``, which listens on ``sockets``. Messages wait in the socket until `join`."""

    number: int
    count: int
    """How many workers there are."""
    sockets: list[socket.socket]
    _line: socket.socket
    _duties: Duties | None = None
    _transport: asyncio.WriteTransport | None = None
    _lines: LineSplitter = field(factory=LineSplitter)
    _asked: dict[int, asyncio.Future[str]] = field(factory=dict)
    _last_id: int = 0
    _lost: asyncio.Event = field(factory=asyncio.Event)
    _early: list[FromWorker] = field(factory=list)
    """Messages sent before `join`."""
    _parts: set[asyncio.Task[None]] = field(factory=set)
    """Parts of answers for all workers that are being written, and answers that are being read."""
    boxes: BoxLink = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.boxes = BoxLink(self._send, lambda: asyncio.get_running_loop().time(), LAG * (self.number - 1))

    async def join(self, duties: Duties) -> None:
        """Starts to handle messages from the supervisor."""
        self._duties = duties
        self._line.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=self._line)
        for message in (Ping(), *self._early):
            self._send(message)
        self._early.clear()

    def serving(self, summary: str, banner: str) -> None:
        self._send(Serving(summary, banner))

    def leaving(self) -> None:
        self._send(Leaving())

    def publish(self, provider: str, model: str | None, update: SharedState) -> None:
        """Reports a health change to the other workers."""
        self._send(HealthUpdate(provider, model, update))

    def watching(self, on: bool) -> None:
        """Reports whether there are readers of the live feed here."""
        self._send(Watching(on))

    def happened(self, id_: str, kind: str, data: str) -> None:
        """Sends an event of the live feed to the other workers."""
        self._send(LiveEvent(id_, kind, data))

    def spent(self, rows: list[Row]) -> None:
        """Sends what was spent here to the other workers."""
        self._send(Spent(rows))

    async def ask(self, topic: Topic) -> str | None:
        """The merged answer of all workers about `topic`; None if the supervisor does not reply in time."""
        return await self._answer_to(lambda id_: Ask(id_, topic)) or None

    async def ask_one(self, worker: int, question: str) -> str | None:
        """The answer of one other worker; empty if it is gone, None if it does not reply in time."""
        return await self._answer_to(lambda id_: AskOne(id_, worker, question))

    async def _answer_to(self, question: Callable[[int], FromWorker]) -> str | None:
        self._last_id = id_ = self._last_id + 1
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[id_] = answer
        self._send(question(id_))
        try:
            async with asyncio.timeout(ASK_TIMEOUT):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[id_]

    async def leave(self, metrics: str) -> None:
        """Sends the final counts and closes the connection."""
        self._duties = None
        if self._transport is not None:
            self._send(FinalMetrics(metrics))
            self._transport.close()
            try:
                async with asyncio.timeout(FAREWELL_TIMEOUT):
                    await self._lost.wait()
            except TimeoutError:
                self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            if len(line) > _LONG and line.startswith(_ANSWER):
                self._later(self._take_long(line))
            elif self._duties is not None:
                self._handle(TO_WORKER.decode(line), self._duties)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        self.boxes.lost()
        if self._duties is not None:
            self._duties.drain(False)

    async def _take_long(self, line: bytes) -> None:
        """Takes an answer of megabytes, which a thread decodes. Of all messages only these may be overtaken."""
        message = await asyncio.to_thread(TO_WORKER.decode, line)
        if self._duties is not None:
            self._handle(message, self._duties)

    def _handle(self, message: ToWorker, duties: Duties) -> None:
        match message:
            case HealthUpdate():
                duties.merge_update(message.provider, message.model, message.update)
            case AskPart():
                self._later(self._answer_part(message.id, duties.part(message.topic)))
            case ForwardedQuestion():
                self._send(PartOne(message.id, message.asker, duties.recall(message.question)))
            case Answer():
                answer = self._asked.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message.body)
            case Watch():
                duties.watch(message.on)
            case LiveEvent():
                duties.deliver_event(message.id, message.kind, message.data)
            case Spent():
                duties.spend.receive(message.rows, message.recovered)
            case Ping():
                self._send(message)
            case Prepare():
                duties.prepare_pickled(message.number, message.config, partial(self._prepared, message.number))
            case Adopt():
                duties.adopt_prepared(message.number)
            case Abandon():
                duties.abandon_prepared(message.number)
            case Drain():
                duties.drain(message.hurry)
            case box.Served() | box.Line() | box.Granted() | box.Loaded() | box.Seen():
                self.boxes.handle(message)
            case _:
                assert_never(message)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._parts.add(task)
        task.add_done_callback(self._parts.discard)

    async def _answer_part(self, id_: int, part: Coroutine[Any, Any, Callable[[], bytes]]) -> None:
        """Sends this worker's part, which may be megabytes: in a thread it is written, and becomes a message."""
        write = await part
        self._put(await asyncio.to_thread(lambda: to_line(Part(id_, write().decode()))))

    def _prepared(self, number: int, mistakes: tuple[str, ...]) -> None:
        self._send(Prepared(number, mistakes))

    def _send(self, message: FromWorker) -> None:
        if self._transport is None:
            self._early.append(message)
        else:
            self._put(to_line(message))

    def _put(self, line: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)
