"""Writes one answer of the Responses API. See `door.Reply`.

The order of a stream, different parts of which different clients rely on: ``response.created``,
``response.in_progress``, then the items, each from ``output_item.added`` to ``output_item.done``, then exactly one of
``response.completed``, ``response.incomplete`` and ``response.failed`` (followed by ``error``). There is no ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Answer, ResponseBatch, StreamBatch, Texts, Usage, steps
from manallm_proxy.contract.door import TakesLong
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import BadResponse, StreamInterrupted
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses import numbering
from manallm_proxy.doors.responses.answer import AnswerItems, Growing
from manallm_proxy.doors.responses.native import stored_items
from manallm_proxy.doors.responses.output import Event
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.openai import joined
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.json_object import DecodeErrors, decode, decode_leniently, encode, encoder
from manallm_proxy.openai.plain_text import MARK, Splice, splice
from manallm_proxy.openai.request_fields import Fields
from manallm_proxy.openai.sliced_writer import encoded_pieces

_COUNTED: Final = b"\n"
"""In place of relayed events that were looked at: they may be megabytes, and the next heartbeat is one of many."""
Keep = Callable[[dict[str, Any], list[Fields]], None]
"""Stores a finished response: the object with an empty ``output``, and its items in stored form."""


class _Identified(msgspec.Struct):
    """A response of which only the id is decoded."""

    id: str


def _failed_midway() -> ProxyError:
    """The error for a finish reason by which some providers report a failure."""
    return StreamInterrupted("the provider ended its answer with an error")


@define
class ResponsesReply:
    """See `door.Reply`. ``keep`` is called before the client learns that the response is complete."""

    _shell: Shell
    _new_answer: Callable[[], AnswerItems] = field(repr=False)
    _keep: Keep | None = field(default=None, repr=False)
    _knows: Callable[[str], Awaitable[bool]] | None = field(default=None, repr=False)
    """Whether a response of that id is still stored; None where this one is not to be."""
    keeps_long: bool = False
    """What led to the answer has so many items that to keep it takes milliseconds."""
    content_type: str = "text/event-stream"
    _made: AnswerItems | None = None
    _provider: str = ""
    """The name of the one that answers."""
    _sequence: int = 0
    _refused: BadResponse | None = None
    """The answer has too many items."""
    _growing: Growing | None = field(default=None, repr=False)
    """The part or item for whose text events the next two fields hold the bytes before the number, and the rest."""
    _numbered: bytes = field(default=b"", repr=False)
    _around: Splice | None = field(default=None, repr=False)
    _begun: bool = False
    _empty: bytes = field(default=b"", repr=False)
    """The response as a native provider began it."""
    _native: tuple[bytes, ...] = field(default=(), repr=False)
    """The items of its output so far."""
    _relayed: bytes = field(default=b"", repr=False)
    """The latest relayed events; of a provider that numbers its events, the latest with a number."""
    _shift: int | None = None
    """By how much a provider's own numbers are raised, since events of ours took some; None before its first one."""
    _failure: bytes = field(default=b"", repr=False)
    """The end of a stream that broke: the same for all clients of a shared one."""

    @property
    def _answer(self) -> AnswerItems:
        """Of words that are written here: a provider that speaks this API writes its own."""
        if self._made is None:
            self._made = self._new_answer()
            self._made.provider = self._provider
        return self._made

    def whole(self, target: Target, answer: Answer) -> bytes:
        self.start(target)
        if answer.body is not None:
            self._keep_native(answer.body)
            return answer.body
        self._answer.take_whole(answer.choices)
        if self._answer.failed:
            return encode(self._failed(_failed_midway()))
        write = encoder(answer.is_large or self._shell.is_long)
        return write(self._ended(answer.usage)[1])

    async def is_known(self, whole: bytes) -> bool:
        """See `door.StatefulReply`."""
        return self._knows is None or await self._knows(decode(whole, type=_Identified).id)

    def start(self, target: Target) -> None:
        self._shell.model, self._provider = str(target), target.provider

    def events(self, batch: StreamBatch) -> bytes:
        if batch.frames or type(batch) is ResponseBatch:
            return self._relay(batch)
        deltas = batch.deltas
        if not deltas:
            return b""
        if len(deltas) == 1 and isinstance(delta := deltas[0], Texts):
            return self._say(delta, is_large=batch.is_large)
        if not batch.is_large and self._answer.closes_long(deltas):
            raise TakesLong
        begin = self._begin()
        mine = (delta for delta in deltas if delta.index == 0)
        if batch.is_large:
            return self._long(begin, chain.from_iterable(map(self._answer.take, mine)))
        said = [begin]
        for each in mine:
            said.append(self._say(each) if isinstance(each, Texts) else self._write(self._answer.take(each)))
            if self._refused is not None:  # what comes now would raise it, and lose what was said
                break
        return b"".join(said)

    def events_in_parts(self, batch: StreamBatch) -> Iterator[bytes]:
        """See `door.PartedReply`."""
        deltas = batch.deltas
        if batch.frames or type(batch) is ResponseBatch or not self._answer.closes_long(deltas):
            yield self.events(batch)
            return
        begin = self._begin()
        mine = (delta for delta in deltas if delta.index == 0)
        yield from self._parts(begin, chain.from_iterable(map(self._answer.take, mine)))

    def _say(self, texts: Texts, *, is_large: bool = True) -> bytes:
        """The events of `texts`. Raises TakesLong unless `is_large`: they may end what was said before."""
        if (growing := self._answer.continued_by(texts)) is not None:
            return self._spliced(texts.texts, growing)
        if self._answer.closes_long((texts,)):
            if not is_large:
                raise TakesLong
            return self._long(self._begin(), self._answer.take(texts))
        begin, (first, *others) = self._begin(), steps((texts,))
        begin += self._write(self._answer.take(first))
        return begin + b"".join([self._say(step) for step in others if isinstance(step, Texts)])

    def _spliced(self, texts: Sequence[bytes], growing: Growing) -> bytes:
        """An event for each of `texts`, which continue `growing`."""
        if growing is not self._growing:
            step = self._answer.text_event(growing, MARK)
            if step is None:
                return b""
            kind, fields = step
            event = b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, "sequence_number": 0, **fields}))
            front, number, rest = event.partition(numbering.KEY)
            self._growing, self._numbered, self._around = growing, front + number, splice(rest[1:])
        around, front = self._around, self._numbered
        assert around is not None  # our generated ids contain no mark
        numbered = enumerate(texts, self._sequence)
        self._sequence += len(texts)
        return b"".join([b"%b%d%b%b%b" % (front, number, around.front, text, around.tail) for number, text in numbered])

    def _relay(self, batch: StreamBatch) -> bytes:
        """A provider's own events, without the first two, which may have been sent before it was asked."""
        if type(batch) is ResponseBatch:
            self._empty = self._empty or batch.begun
            self._native += batch.items
            if batch.done and batch.response:
                self._keep_native(batch.response)
        begin, frames = self._begin(), batch.frames
        if self._shift is None and (first := numbering.first(frames)) is not None:
            self._shift = max(0, self._sequence - first)
        if self._shift:
            frames = numbering.shifted(frames, self._shift)
        if numbering.KEY in frames or not self._relayed:
            self._relayed = frames or begin
        return begin + frames if begin else frames

    def _keep_native(self, response: bytes) -> None:
        """Stores a provider's own response, unless it cannot be decoded, which then is left to the client."""
        if self._keep is not None and (decoded := _decoded(response)):
            output = decoded.get("output")
            items = stored_items(output if isinstance(output, list) else [], self._provider)
            self._keep({**decoded, "output": []}, items)

    @property
    def ends_long(self) -> bool:
        return self.keeps_long or self._shell.is_long or (self._begun and not self._relayed and self._answer.is_long)

    def end(self, usage: Usage | None) -> bytes:
        if self._relayed:
            return b""
        if self._answer.failed or self._refused is not None:
            return self.error(self._refused or _failed_midway())
        begin = self._begin()
        if self._answer.is_long or self._shell.is_long:
            return self._long(begin, chain(self._answer.end(), self._completed(usage)))
        last = self._write(self._answer.end())
        return begin + last + self._write(self._completed(usage))

    def end_in_parts(self, usage: Usage | None) -> Iterator[bytes]:
        """See `door.PartedReply`."""
        is_long = self._answer.is_long or self._shell.is_long
        if self._relayed or self._answer.failed or self._refused is not None or not is_long:
            yield self.end(usage)
            return
        yield from self._parts(self._begin(), chain(self._answer.end(), self._completed(usage)))

    def _completed(self, usage: Usage | None) -> Iterator[Event]:
        kind, response = self._ended(usage)
        yield kind, {"response": response}

    def error(self, error: ProxyError) -> bytes:
        """Two events: some clients read one, some the other; in this order all of them show the message."""
        if self._failure:
            return self._failure
        begin, response = self._begin(), self._failed(error)
        self._refused = None  # these two are the last
        inner = {**response["error"], "param": error.param}
        flat = {**inner, "error": {"type": error.type, **inner}}
        self._failure = begin + self._write([("response.failed", {"response": response}), ("error", flat)])
        return self._failure

    def heartbeat(self) -> bytes:
        """An event, since codex gives up on a stream of comments."""
        begin = self._begin()
        if begin:
            return begin
        if self._shift is not None:
            self._shift += 1
        return self._write([("response.in_progress", {"response": self._in_progress()})])

    def _begin(self) -> bytes:
        """The first two events, the first time."""
        if self._begun:
            return b""
        self._begun = True
        response = self._in_progress()
        kinds = ("response.created", "response.in_progress")
        return self._write([(kind, {"response": response}) for kind in kinds])

    def _in_progress(self) -> Any:
        return msgspec.Raw(self._empty) if self._empty else self._shell.render("in_progress", [])

    def _ended(self, usage: Usage | None) -> tuple[str, dict[str, Any]]:
        """Stores the response; returns the last event's type and its response. Unknown usage is zero."""
        cut, usage = self._answer.incomplete, usage or Usage()
        status = "completed" if cut is None else "incomplete"
        if self._keep is not None:
            items = [item.stored() for item in self._answer.items]
            self._keep(self._shell.render(status, [], usage=usage, incomplete=cut), items)
            free_later(items)
        free_later(views := self._answer.views())
        return f"response.{status}", self._shell.render(status, views, usage=usage, incomplete=cut)

    def _failed(self, error: ProxyError) -> dict[str, Any]:
        """The failed response, with its output so far."""
        self._answer.break_off()
        reported = {"code": error.code or error.type, "message": error.message}
        if decoded := _decoded(self._empty):
            output = {"output": list(map(msgspec.Raw, self._native))} if self._native else {}
            return {**decoded, **output, "status": "failed", "error": reported}
        return self._shell.render("failed", self._answer.views(), error=reported)

    def _write(self, events: Iterable[Event]) -> bytes:
        frames: list[bytes] = []
        if self._relayed:
            self._sequence = numbering.after(self._relayed, self._sequence)
            self._relayed = _COUNTED
        for kind, fields in self._told(events):
            data = encode({"type": kind, "sequence_number": self._sequence, **fields})
            frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
            self._sequence += 1
        return b"".join(frames)

    def _told(self, events: Iterable[Event]) -> Iterator[Event]:
        """`events`, up to where the answer is refused; what comes after that raises why."""
        if self._refused is not None:
            raise self._refused
        try:
            yield from events
        except BadResponse as refused:
            self._refused = refused

    def _long(self, begin: bytes, events: Iterable[Event]) -> bytes:
        """`begin` and `events` of a translated answer, encoded in short calls."""
        return joined.joined_bytes(self._parts(begin, events))

    def _parts(self, begin: bytes, events: Iterable[Event]) -> Iterator[bytes]:
        """The same in parts: each is one long event, or many short ones."""
        written, size = joined.Growing(), 0
        written.add(begin)
        for kind, fields in self._told(events):
            data = encoded_pieces({"type": kind, "sequence_number": self._sequence, **fields}, encode)
            self._sequence += 1
            for piece in chain((b"event: %b\ndata: " % kind.encode(),), data, (b"\n\n",)):
                written.add(piece)
                size += len(piece)
            if size > joined.SMALL:
                yield written.take()
                size = 0
        yield written.take()


def _decoded(response: bytes) -> dict[str, Any]:
    """A provider's own response; empty if it cannot be decoded, for instance for a number out of range."""
    try:
        decoded = decode_leniently(response) if response else None
    except DecodeErrors:
        return {}
    return decoded if isinstance(decoded, dict) else {}
