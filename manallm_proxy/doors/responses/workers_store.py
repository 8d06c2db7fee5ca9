"""A store across several workers: each stores its own responses, and an id contains the number of its worker.

So storing sends no message, and a client that continues a response at once, over a connection to another worker, finds
it. A worker's responses are lost when it ends; then they count as expired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, Protocol

import msgspec
from attrs import field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.doors.responses.store import LONGEST_ID, MemoryStore, Owner, Stored

_ID: Final = re.compile(r"[a-z]{1,8}_([0-9a-f]{4})[0-9a-f]{44}")


@frozen
class Question:
    """What one worker asks another."""

    what: Literal["response", "items", "drop"]
    owner: Owner
    ids: tuple[str, ...]


@frozen
class Found:
    """The answer to a `Question`. ``items``: JSON by id."""

    response: Stored | None = None
    items: dict[str, bytes] = field(factory=dict, repr=False)
    dropped: bool = False


_QUESTION: Final = msgspec.json.Decoder(Question)
_FOUND: Final = msgspec.json.Decoder(Found)


class OtherWorkers(Protocol):
    """The connection to the other workers."""

    @property
    def count(self) -> int:
        """How many workers there are; they are numbered from 1."""

    async def ask_one(self, worker: int, question: str) -> str | None:
        """The answer of `worker`; None if it is gone or does not answer."""


def answer_question(memory: MemoryStore, question: str) -> str:
    """Answers another worker's `Question` from `memory`; both are JSON."""
    asked = _QUESTION.decode(question)
    match asked.what:
        case "response":
            found = Found(response=memory.find(asked.owner, asked.ids[0]))
        case "items":
            found = Found(items=memory.find_items(asked.owner, asked.ids))
        case "drop":
            found = Found(dropped=memory.forget(asked.owner, asked.ids[0]))
    return msgspec.json.encode(found).decode()


@define(eq=False)
class WorkersStore:
    """See `store.Store`. ``memory``: this worker's own store."""

    memory: MemoryStore
    others: OtherWorkers

    def new_id(self, prefix: str) -> str:
        return self.memory.new_id(prefix)

    def keep(self, owner: Owner, stored: Stored) -> None:
        self.memory.keep(owner, stored)

    async def keep_in_turns(self, owner: Owner, stored: Stored) -> None:
        await self.memory.keep_in_turns(owner, stored)

    async def response(self, owner: Owner, id_: str) -> Stored | None:
        worker = self._keeper(id_)
        if worker is None:
            return self.memory.find(owner, id_)
        return (await self._ask(worker, Question("response", owner, (id_,)))).response

    async def items(self, owner: Owner, ids: Iterable[str]) -> dict[str, bytes]:
        by_worker: dict[int | None, list[str]] = {}
        for id_ in ids:
            by_worker.setdefault(self._keeper(id_), []).append(id_)
        asked = list(by_worker.values())
        found = self.memory.find_items(owner, by_worker.pop(None, ()))
        for worker, theirs in by_worker.items():
            assert worker is not None
            found |= (await self._ask(worker, Question("items", owner, tuple(theirs)))).items
        return found | await self._foreign(owner, [id_ for theirs in asked for id_ in theirs if id_ not in found])

    async def _foreign(self, owner: Owner, ids: list[str]) -> dict[str, bytes]:
        """Items whose ids name no worker: a native provider made them, so any worker may have them."""
        found = self.memory.find_items(owner, ids)
        for worker in range(1, self.others.count + 1):
            missing = tuple(id_ for id_ in ids if id_ not in found)
            if missing and worker != self.memory.worker:
                found |= (await self._ask(worker, Question("items", owner, missing))).items
        return found

    async def drop(self, owner: Owner, id_: str) -> bool:
        worker = self._keeper(id_)
        if worker is None:
            return self.memory.forget(owner, id_)
        return (await self._ask(worker, Question("drop", owner, (id_,)))).dropped

    def _keeper(self, id_: str) -> int | None:
        """The worker to ask; None if it is this one, or the id is not one of ours."""
        match = _ID.fullmatch(id_) if len(id_) <= LONGEST_ID else None
        worker = int(match[1], 16) if match is not None else self.memory.worker
        return None if worker == self.memory.worker else worker

    async def _ask(self, worker: int, question: Question) -> Found:
        answer = await self.others.ask_one(worker, msgspec.json.encode(question).decode())
        return Found() if answer is None else _FOUND.decode(answer)
