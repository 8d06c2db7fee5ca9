"""Writes one answer of the Responses API. See `door.Reply`.

The order of a stream, different parts of which different clients rely on: ``response.created``,
``response.in_progress``, then the items, each from ``output_item.added`` to ``output_item.done``, then exactly one of
``response.completed``, ``response.incomplete`` and ``response.failed`` (followed by ``error``). There is no ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from attrs import define, field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import StreamInterrupted
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.output import Event, Item
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.openai.json_object import decode, encode

Keep = Callable[[dict[str, Any], list[Item]], None]
"""Stores a finished response: the object with an empty ``output``, and its items."""


def _failed_midway() -> ProxyError:
    """The error for a finish reason by which some providers report that they failed."""
    return StreamInterrupted("the provider ended its answer with an error")


@define
class ResponsesReply:
    """See `door.Reply`. ``keep`` is called before the client learns that the response is complete."""

    _shell: Shell
    _answer: AnswerItems
    _keep: Keep | None = field(default=None, repr=False)
    _knows: Callable[[str], Awaitable[bool]] | None = field(default=None, repr=False)
    """Whether a response of that id is still stored; None where this one is not to be."""
    content_type: str = "text/event-stream"
    _sequence: int = 0
    _begun: bool = False

    def whole(self, target: Target, answer: Answer) -> bytes:
        self.start(target)
        for delta in answer.choices[:1]:
            for _ in self._answer.take(delta):
                pass  # the events of a stream
        if self._answer.failed:
            return encode(self._failed(_failed_midway()))
        for _ in self._answer.end():
            pass
        return encode(self._ended(answer.usage)[1])

    async def is_known(self, whole: bytes) -> bool:
        """See `door.Remembers`."""
        return self._knows is None or await self._knows(decode(whole)["id"])

    def start(self, target: Target) -> None:
        self._shell.model, self._answer.provider = str(target), target.provider

    def events(self, batch: StreamBatch) -> bytes:
        begin = self._begin()
        said = [self._write(self._answer.take(delta)) for delta in batch.deltas if delta.index == 0]
        return begin + b"".join(said)

    def end(self, usage: Usage | None) -> bytes:
        if self._answer.failed:
            return self.error(_failed_midway())
        begin, last = self._begin(), self._write(self._answer.end())
        kind, response = self._ended(usage)
        return begin + last + self._write([(kind, {"response": response})])

    def error(self, error: ProxyError) -> bytes:
        """Two events: some clients read one, some the other, and in this order all of them show the message."""
        begin, response = self._begin(), self._failed(error)
        inner = {**response["error"], "param": error.param}
        flat = {**inner, "error": {"type": error.type, **inner}}
        return begin + self._write([("response.failed", {"response": response}), ("error", flat)])

    def heartbeat(self) -> bytes:
        """An event, since codex gives up on a stream of comments."""
        return self._begin() or self._write([("response.in_progress", {"response": self._in_progress()})])

    def _begin(self) -> bytes:
        """The first two events, once."""
        if self._begun:
            return b""
        self._begun = True
        response = self._in_progress()
        kinds = ("response.created", "response.in_progress")
        return self._write([(kind, {"response": response}) for kind in kinds])

    def _in_progress(self) -> dict[str, Any]:
        return self._shell.render("in_progress", [])

    def _ended(self, usage: Usage | None) -> tuple[str, dict[str, Any]]:
        """Stores the response; returns the last event's type and its response. Unknown usage is zero."""
        cut, usage = self._answer.incomplete, usage or Usage()
        status = "completed" if cut is None else "incomplete"
        if self._keep is not None:
            self._keep(self._shell.render(status, [], usage=usage, incomplete=cut), self._answer.items)
        return f"response.{status}", self._shell.render(status, self._answer.views(), usage=usage, incomplete=cut)

    def _failed(self, error: ProxyError) -> dict[str, Any]:
        """The failed response, with its output so far."""
        self._answer.break_off()
        reported = {"code": error.code or error.type, "message": error.message}
        return self._shell.render("failed", self._answer.views(), error=reported)

    def _write(self, events: Iterable[Event]) -> bytes:
        frames: list[bytes] = []
        for kind, fields in events:
            data = encode({"type": kind, "sequence_number": self._sequence, **fields})
            frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
            self._sequence += 1
        return b"".join(frames)
