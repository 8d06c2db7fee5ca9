"""A worker's end of the line to its supervisor.

When the line is cut the supervisor has died: the worker drains, as nobody is left to start another.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol, assert_never

from attrs import define, field

from manallm_proxy.process.worker_messages import (
    TO_WORKER,
    Adopt,
    Answer,
    Ask,
    AskOne,
    Beat,
    Drain,
    Farewell,
    FromWorker,
    Leaving,
    Lines,
    Moved,
    Part,
    PartOne,
    Serving,
    Tell,
    TellOne,
    Topic,
    to_line,
)
from manallm_proxy.routing.health import SharedState

PATIENCE: Final = 2.0
"""Seconds to wait for what all workers have to say: the supervisor needs half of it at most."""
LAST_WORDS: Final = 1.0


class Duties(Protocol):
    """What a worker does when its supervisor says so."""

    def heard(self, provider: str, model: str | None, update: SharedState) -> None:
        """Another worker's finding."""

    def part(self, topic: Topic) -> str:
        """This worker's part of an answer."""

    def recall(self, question: str) -> str:
        """What this worker alone knows."""

    def adopt_pickled(self, config: bytes) -> None:
        """The configuration from now on."""

    def drain(self, hurry: bool) -> None:
        """Ends. Called twice, it changes nothing but the hurry."""


@define(eq=False)
class WorkerLink(asyncio.Protocol):
    """Worker ``number``, which listens at ``sockets``. Before `join` what it is told waits in the line."""

    number: int
    sockets: list[socket.socket]
    _line: socket.socket
    _duties: Duties | None = None
    _transport: asyncio.WriteTransport | None = None
    _lines: Lines = field(factory=Lines)
    _asked: dict[int, asyncio.Future[str]] = field(factory=dict)
    _last_id: int = 0
    _lost: asyncio.Event = field(factory=asyncio.Event)

    async def join(self, duties: Duties) -> None:
        """From now on the supervisor is heard."""
        self._duties = duties
        self._line.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=self._line)
        self._say(Beat())

    def serving(self, summary: str, banner: str) -> None:
        self._say(Serving(summary, banner))

    def leaving(self) -> None:
        self._say(Leaving())

    def moved(self, provider: str, model: str | None, update: SharedState) -> None:
        """Tells the others; see `registry.Tell`."""
        self._say(Moved(provider, model, update))

    async def ask(self, topic: Topic) -> str | None:
        """What all workers together have to say; None where the supervisor does not answer in time."""
        return await self._answer_to(lambda id_: Ask(id_, topic))

    async def ask_one(self, worker: int, question: str) -> str | None:
        """What another worker has to say; None where it is gone, or does not answer in time."""
        return await self._answer_to(lambda id_: AskOne(id_, worker, question))

    async def _answer_to(self, question: Callable[[int], FromWorker]) -> str | None:
        self._last_id = id_ = self._last_id + 1
        answer = self._asked[id_] = asyncio.get_running_loop().create_future()
        self._say(question(id_))
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer or None
        except TimeoutError:
            return None
        finally:
            del self._asked[id_]

    async def leave(self, metrics: str) -> None:
        """The last words, once they are on their way."""
        self._duties = None
        if self._transport is not None:
            self._say(Farewell(metrics))
            self._transport.close()
            try:
                async with asyncio.timeout(LAST_WORDS):
                    await self._lost.wait()
            except TimeoutError:
                self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            if self._duties is not None:
                self._obey(line, self._duties)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        if self._duties is not None:
            self._duties.drain(False)

    def _obey(self, line: bytes, duties: Duties) -> None:
        message = TO_WORKER.decode(line)
        match message:
            case Moved():
                duties.heard(message.provider, message.model, message.update)
            case Tell():
                self._say(Part(message.id, duties.part(message.topic)))
            case TellOne():
                self._say(PartOne(message.id, message.asker, duties.recall(message.question)))
            case Answer():
                answer = self._asked.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message.body)
            case Beat():
                self._say(message)
            case Adopt():
                duties.adopt_pickled(message.config)
            case Drain():
                duties.drain(message.hurry)
            case _:
                assert_never(message)

    def _say(self, message: FromWorker) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(to_line(message))
