"""Anthropic's answers: a message, whole or as events.

The rules that clients rely on (seen with anthropic 2.14 for Python and 1.14 for Node, and @ai-sdk/anthropic 4): every
event has an ``event:`` line, ``message_start`` comes first and has ``usage`` and an empty ``content``, a block's start
has its text as an empty string, blocks do not interleave, ``message_delta`` has ``usage``. Python's SDK takes a stream
that just ends for a short answer, so a broken one ends with an ``error`` event.
"""

from __future__ import annotations

from collections.abc import Callable
from os import urandom
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import Answer, StreamBatch, Texts, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages.block import Block, Kind
from manallm_proxy.doors.messages.blocks import Blocks
from manallm_proxy.doors.messages.errors import in_band
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.joined import joined_bytes
from manallm_proxy.openai.json_object import encode, encode_whole
from manallm_proxy.openai.plain_text import MARK, Splice, splice

_DELTAS: Final = {
    Kind.TEXT: ("text_delta", "text"),
    Kind.THINKING: ("thinking_delta", "thinking"),
    Kind.TOOL_USE: ("input_json_delta", "partial_json"),
}
"""By kind of block: the type of its deltas, and the member that holds their text."""


def event(body: dict[str, Any]) -> bytes:
    """The bytes of one event. The SDKs drop events without an ``event:`` line."""
    return f"event: {body['type']}".encode() + b"\ndata: " + encode(body) + b"\n\n"


def _long_event(body: dict[str, Any]) -> bytes:
    """As `event`, in short calls."""
    return joined_bytes((f"event: {body['type']}\ndata: ".encode(), encode_whole(body), b"\n\n"))


Write = Callable[[dict[str, Any]], bytes]
PING: Final = event({"type": "ping"})


@define
class MessagesReply:
    """See `door.Reply`."""

    request_id: str
    blocks: Blocks
    content_type: str = "text/event-stream"
    _model: str = ""
    _started: bool = False
    _relays: bool = False
    """Whether the events are the provider's own, relayed."""
    _next_index: int = 0
    _index: int | None = None
    _splice: Splice | None = field(default=None, repr=False)
    """The bytes around the text in deltas of the block with that index."""
    _id: str = ""

    def whole(self, target: Target, answer: Answer) -> bytes:
        if answer.body is not None:
            return answer.body
        self.start(target)
        for choice in answer.choices:
            self.blocks.add(choice)
        content = [block.whole() for block, _ in self.blocks.ready(all_of_them=True)]
        usage = usage_to_json(answer.usage or Usage())
        free_later(content)
        write = encode_whole if answer.is_large else encode
        return write(self._message(content, self.blocks.stop_reason, usage))

    @property
    def ends_long(self) -> bool:
        return self.blocks.wait_long

    def start(self, target: Target) -> None:
        self._model, self.blocks.provider = str(target), target.provider

    def events(self, batch: StreamBatch) -> bytes:
        if batch.frames:
            self._relays = True
            return batch.frames
        deltas = batch.deltas
        if not deltas:
            return b""
        if len(deltas) == 1 and isinstance(delta := deltas[0], Texts) and (around := self._around(delta)) is not None:
            return around.write((b"".join(delta.texts),))  # one event per read, as for other texts
        for delta in deltas:
            self.blocks.add(delta)
        begin = self._begin()
        return self._advance(begin, event=_long_event) if batch.is_large else begin + self._advance()

    def _around(self, texts: Texts) -> Splice | None:
        """The bytes around `texts`, if they continue the last written block; else None."""
        block = self.blocks.continued_by(texts)
        if block is None:
            return None
        if block.index != self._index:
            self._index = block.index
            type_, name = _DELTAS[block.kind]
            self._splice = splice(_delta(block, {"type": type_, name: MARK}))
        assert self._splice is not None  # nothing else in the event can contain the mark
        return self._splice

    def end(self, usage: Usage | None) -> bytes:
        if self._relays:
            return b""
        write = _long_event if self.ends_long else event
        delta = {"stop_reason": self.blocks.stop_reason, "stop_sequence": self.blocks.stop_sequence}
        return b"".join(
            (
                self._begin(),
                self._advance(all_of_them=True, event=write),
                event({"type": "message_delta", "delta": delta, "usage": usage_to_json(usage or Usage())}),
                event({"type": "message_stop"}),
            )
        )

    def error(self, error: ProxyError) -> bytes:
        return event(in_band(error, self.request_id, committed=bool(self._model)))

    def heartbeat(self) -> bytes:
        return PING

    def _begin(self) -> bytes:
        """``message_start``, the first time. Its usage is zero, since prompt tokens are known only at the end."""
        if self._started:
            return b""
        self._started = True
        return event({"type": "message_start", "message": self._message([], None, usage_to_json(Usage()))})

    def _message(self, content: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        self._id = self._id or f"msg_{urandom(12).hex()}"
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": self.blocks.stop_sequence if stop_reason is not None else None,
            "usage": usage,
        }

    def _advance(self, begin: bytes = b"", *, all_of_them: bool = False, event: Write = event) -> bytes:
        """`begin`, and the events of all blocks that may be sent now, each written by `event`."""
        out = [begin]
        for block, ends in self.blocks.ready(all_of_them=all_of_them):
            self._write(block, out, event)
            if ends:
                if block.signature:
                    out.append(_delta(block, {"type": "signature_delta", "signature": block.signature}))
                out.append(event({"type": "content_block_stop", "index": block.index}))
        return b"".join(out) if event is not _long_event else joined_bytes(out)

    def _write(self, block: Block, out: list[bytes], event: Write) -> None:
        if block.index is None:
            block.index = self._next_index
            self._next_index += 1
            out.append(event({"type": "content_block_start", "index": block.index, "content_block": block.empty()}))
        if text := block.unsent():
            type_, name = _DELTAS[block.kind]
            out.append(_delta(block, {"type": type_, name: text}, event))


def _delta(block: Block, delta: dict[str, Any], event: Write = event) -> bytes:
    return event({"type": "content_block_delta", "index": block.index, "delta": delta})


def usage_to_json(usage: Usage) -> dict[str, Any]:
    """Anthropic's ``usage``, in which ``input_tokens`` are those neither read from a cache nor written to one."""
    counted: dict[str, Any] = {
        "input_tokens": max(0, usage.prompt - usage.cached - usage.written),
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
    if usage.reasoning:
        counted["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return counted
