"""Writes one answer of the Responses API. See `door.Reply`.

The order of a stream (what its clients need, each of them something else): ``response.created``,
``response.in_progress``, then the items, each from ``output_item.added`` to ``output_item.done``, then exactly one of
``response.completed``, ``response.incomplete`` and ``response.failed``. The body ends there, without ``[DONE]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import StreamInterrupted
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.output import Event, Item
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.openai.json_object import encode

Keep = Callable[[dict[str, Any], list[Item]], None]
"""Takes a response that is over, without its output, and its items."""


def _given_up() -> ProxyError:
    """Some providers say by a finish reason that they could not go on."""
    return StreamInterrupted("the provider ended its answer with an error")


@define
class ResponsesReply:
    """``keep`` is called before a client can know that the response is complete."""

    _shell: Shell
    _answer: AnswerItems
    _keep: Keep | None = field(default=None, repr=False)
    content_type: str = "text/event-stream"
    _sequence: int = 0
    _begun: bool = False

    def whole(self, target: Target, answer: Answer) -> bytes:
        self.start(target)
        for delta in answer.choices[:1]:
            for _ in self._answer.take(delta):
                pass  # the events of a stream
        if self._answer.failed:
            return encode(self._failed(_given_up()))
        for _ in self._answer.end():
            pass
        return encode(self._ended(answer.usage)[1])

    def start(self, target: Target) -> None:
        self._shell.model, self._answer.provider = str(target), target.provider

    def events(self, batch: StreamBatch) -> bytes:
        begin = self._begin()
        said = [self._write(self._answer.take(delta)) for delta in batch.deltas if delta.index == 0]
        return begin + b"".join(said)

    def end(self, usage: Usage | None) -> bytes:
        if self._answer.failed:
            return self.error(_given_up())
        begin, last = self._begin(), self._write(self._answer.end())
        kind, response = self._ended(usage)
        return begin + last + self._write([(kind, {"response": response})])

    def error(self, error: ProxyError) -> bytes:
        """Two events: some clients read the one, some the other, and this is the order in which all show the text."""
        begin, response = self._begin(), self._failed(error)
        told = {**response["error"], "param": error.param}
        flat = {**told, "error": {"type": error.type, **told}}
        return begin + self._write([("response.failed", {"response": response}), ("error", flat)])

    def heartbeat(self) -> bytes:
        """An event: codex gives up on a stream of comments."""
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
        """The last event's type, and the response as it is told; it is kept by then. Nothing counted is zero."""
        cut, usage = self._answer.incomplete, usage or Usage()
        status = "completed" if cut is None else "incomplete"
        if self._keep is not None:
            self._keep(self._shell.render(status, [], usage=usage, incomplete=cut), self._answer.items)
        return f"response.{status}", self._shell.render(status, self._answer.views(), usage=usage, incomplete=cut)

    def _failed(self, error: ProxyError) -> dict[str, Any]:
        """The response, with what was said so far."""
        self._answer.break_off()
        told = {"code": error.code or error.type, "message": error.message}
        return self._shell.render("failed", self._answer.views(), error=told)

    def _write(self, events: Iterable[Event]) -> bytes:
        frames: list[bytes] = []
        for kind, fields in events:
            data = encode({"type": kind, "sequence_number": self._sequence, **fields})
            frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
            self._sequence += 1
        return b"".join(frames)
