"""A store across several workers: each stores its own responses, and an id contains the number of its worker.

So storing sends no message, and a client that continues a response at once, over a connection to another worker, finds
it. A worker's responses are lost when it ends; then they count as expired.

Long ones are fetched in parts: a picture of 8 MB in one message would hold up both workers, and the supervisor between
them, for a quarter of a second, and one of 24 MB would not come in time.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Literal, Protocol

import msgspec
from attrs import evolve, field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.doors.responses.not_found import NotLookedUp
from manallm_proxy.doors.responses.store import LONGEST_ID, MemoryStore, Owner, Stored
from manallm_proxy.openai.joined import joined_parts

PART: Final = 128 * 1024
"""Max bytes of one part."""
_KEEPER: Final = "another worker process"
_ID: Final = re.compile(r"[a-z]{1,8}_([0-9a-f]{4})[0-9a-f]{44}")


@frozen
class Question:
    """What one worker asks another."""

    what: Literal["response", "items", "drop"]
    owner: Owner
    ids: tuple[str, ...]
    at: tuple[int, int] | None = None
    """Where the part begins that is wanted of a long answer: its row, and the byte in that."""


@frozen
class Found:
    """The answer to a `Question`. ``items``: JSON by id."""

    response: Stored | None = None
    items: dict[str, bytes] = field(factory=dict, repr=False)
    dropped: bool = False
    sizes: tuple[int, ...] = ()
    """Of a long answer: bytes of what is left out of it, and follows in parts: the shell, all input, all output; or the
    items. Of a part: bytes of all that it is a part of."""
    inputs: int = 0
    """How many of these are input."""
    part: bytes = field(default=b"", repr=False)


_QUESTION: Final = msgspec.json.Decoder(Question)
_FOUND: Final = msgspec.json.Decoder(Found)


class OtherWorkers(Protocol):
    """The connection to the other workers."""

    @property
    def count(self) -> int:
        """How many workers there are; they are numbered from 1."""

    async def ask_one(self, worker: int, question: str) -> str | None:
        """The answer of `worker`; empty if it is gone, None if it does not answer in time."""


def answer_question(memory: MemoryStore, question: str) -> str:
    """Answers another worker's `Question` from `memory`; both are JSON."""
    asked = _QUESTION.decode(question)
    match asked.what:
        case "response":
            response = memory.find(asked.owner, asked.ids[0])
            found = Found() if response is None else _found_response(response, asked.at)
        case "items":
            found = _found_items(memory.find_items(asked.owner, asked.ids), asked.at)
        case "drop":
            found = Found(dropped=memory.forget(asked.owner, asked.ids[0]))
    return msgspec.json.encode(found).decode()


def _found_response(response: Stored, at: tuple[int, int] | None) -> Found:
    rows = (response.shell, *response.input, *response.output)
    size = sum(map(len, rows))
    if at is not None:
        return Found(part=_part(rows, *at), sizes=(size,))
    if size <= PART:
        return Found(response)
    sizes = tuple(map(len, rows))
    return Found(evolve(response, shell=b"", input=(), output=()), sizes=sizes, inputs=len(response.input))


def _found_items(items: dict[str, bytes], at: tuple[int, int] | None) -> Found:
    rows = tuple(items.values())
    size = sum(map(len, rows))
    if at is not None:
        return Found(part=_part(rows, *at), sizes=(size,))
    return Found(items=items) if size <= PART else Found(items=dict.fromkeys(items, b""), sizes=tuple(map(len, rows)))


def _part(rows: Sequence[bytes], first: int, at: int) -> bytes:
    """The part of `rows`, one after the other, that begins `at` so many bytes of the `first`."""
    found, room = [], PART
    for n in range(first, len(rows)):
        found.append(rows[n][at : at + room])
        room, at = room - len(found[-1]), 0
        if not room:
            break
    return b"".join(found)


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
        return (await self._sure(worker, Question("response", owner, (id_,)))).response

    async def items(self, owner: Owner, ids: Iterable[str], required: Collection[str] = ()) -> dict[str, bytes]:
        by_worker: dict[int | None, list[str]] = {}
        for id_ in ids:
            by_worker.setdefault(self._keeper(id_), []).append(id_)
        asked = list(by_worker.values())
        found = self.memory.find_items(owner, by_worker.pop(None, ()))
        silent = False
        for worker, theirs in by_worker.items():
            assert worker is not None
            answer = await self._ask(worker, Question("items", owner, tuple(theirs)))
            found |= answer.items if answer is not None else {}
            silent = silent or answer is None
        missing = [id_ for theirs in asked for id_ in theirs if id_ not in found]
        others, all_answered = await self._foreign(owner, missing)
        if not (all_answered and not silent) and any(id_ in required and id_ not in others for id_ in missing):
            raise NotLookedUp(_KEEPER)
        return found | others

    async def _foreign(self, owner: Owner, ids: list[str]) -> tuple[dict[str, bytes], bool]:
        """Items whose ids name no worker: a native provider made them, so any worker may have them. And whether all
        that were asked have answered."""
        found, all_answered = self.memory.find_items(owner, ids), True
        for worker in range(1, self.others.count + 1):
            missing = tuple(id_ for id_ in ids if id_ not in found)
            if missing and worker != self.memory.worker:
                answer = await self._ask(worker, Question("items", owner, missing))
                found |= answer.items if answer is not None else {}
                all_answered = all_answered and answer is not None
        return found, all_answered

    async def drop(self, owner: Owner, id_: str) -> bool:
        worker = self._keeper(id_)
        if worker is None:
            return self.memory.forget(owner, id_)
        return (await self._sure(worker, Question("drop", owner, (id_,)))).dropped

    def _keeper(self, id_: str) -> int | None:
        """The worker to ask; None if it is this one, or the id is not one of ours."""
        match = _ID.fullmatch(id_) if len(id_) <= LONGEST_ID else None
        worker = int(match[1], 16) if match is not None else self.memory.worker
        return None if worker == self.memory.worker else worker

    async def _sure(self, worker: int, question: Question) -> Found:
        """As `_ask`. Raises NotLookedUp where that worker does not answer."""
        found = await self._ask(worker, question)
        if found is None:
            raise NotLookedUp(_KEEPER)
        return found

    async def _ask(self, worker: int, question: Question) -> Found | None:
        """What `worker` answers, in whole; None if it does not answer in time."""
        found = await self._ask_once(worker, question)
        if found is None or not found.sizes:
            return found
        if len(found.items) > 1:  # one by one: each may be removed meanwhile
            items: dict[str, bytes] = {}
            for id_ in found.items:
                one = await self._ask(worker, evolve(question, ids=(id_,)))
                if one is None:
                    return None
                items |= one.items
            return Found(items=items)
        parts: list[bytes] = []
        ends = list(accumulate(found.sizes))
        at, size = 0, ends[-1]
        while at < size:
            row = bisect_right(ends, at)
            answer = await self._ask_once(worker, evolve(question, at=(row, at - ends[row] + found.sizes[row])))
            if answer is None or not answer.part or answer.sizes != (size,):  # it was removed, or replaced
                return None if answer is None else Found()
            parts.append(answer.part)
            at += len(answer.part)
        rows = list(_cut(parts, found.sizes))
        if found.response is None:
            return Found(items=dict(zip(found.items, rows, strict=True)))
        shell, *rest = rows
        input_, output = tuple(rest[: found.inputs]), tuple(rest[found.inputs :])
        return Found(evolve(found.response, shell=shell, input=input_, output=output))

    async def _ask_once(self, worker: int, question: Question) -> Found | None:
        answer = await self.others.ask_one(worker, msgspec.json.encode(question).decode())
        if not answer:
            return None if answer is None else Found()
        return _FOUND.decode(answer)


def _cut(parts: Iterable[bytes], sizes: Iterable[int]) -> Iterator[bytes]:
    """`parts`, one after the other, as rows of those `sizes`."""
    more, rest = iter(parts), memoryview(b"")
    for size in sizes:
        pieces = []
        while size:
            rest = rest or memoryview(next(more))
            pieces.append(rest[:size])
            rest, size = rest[size:], size - len(pieces[-1])
        yield joined_parts(pieces)
