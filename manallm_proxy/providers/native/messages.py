"""Relays the answers of a provider that speaks Anthropic's Messages: only ``model`` is replaced.

A stream ends with ``message_stop``. Tokens are reported in ``message_start``, and again as totals in ``message_delta``.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, EmptyAnswer
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.usage import usage_from_messages
from manallm_proxy.providers.native.plain_events import MESSAGES, PlainEvents
from manallm_proxy.providers.native.relay import NULL, Event, NamedRelay
from manallm_proxy.providers.native.splice import begins, members, with_values
from manallm_proxy.providers.openai import chunks
from manallm_proxy.providers.openai.reply import decoded, refuse_error

_SAYS: Final = ("text", "thinking", "partial_json", "citation", "data")
"""Members of a delta that count as content; a signature does not."""


def message(call: Call, target: Target, body: bytes) -> Answer:
    """A whole message. Raises the error inside of a 200, and BadResponse if it holds no message."""
    values = members(body)
    refuse_error(values)
    if not begins(values.get("content", b""), b"["):
        raise BadResponse("its answer has no 'content'", detail="no content")
    refused = bytes(values.get("stop_reason", b"")) == b'"refusal"'
    if call.waits_for_words and not refused and not any(map(_says, decoded(values["content"]))):
        raise EmptyAnswer(f"{target} ended without a word")
    usage = usage_from_messages(decoded(values["usage"])) if "usage" in values else None
    return Answer(body=with_values(values, {"model": encode(str(target))}), usage=usage)


def counted(body: bytes) -> Answer:
    """The answer to ``count_tokens``."""
    values = members(body)
    refuse_error(values)
    if type(decoded(values.get("input_tokens", b"null"))) is not int:
        raise BadResponse("its answer has no 'input_tokens'", detail="no count")
    return Answer(body=body)


class _Event(Event, gc=False):
    message: msgspec.Raw = NULL
    content_block: msgspec.Raw = NULL


@define
class MessagesRelay(NamedRelay):
    """See `wire.Translator`."""

    marks: ClassVar[tuple[bytes, ...]] = (b"message_",)
    plain: ClassVar[PlainEvents] = MESSAGES
    reads: ClassVar[msgspec.json.Decoder[_Event]] = msgspec.json.Decoder(_Event)

    def _take(self, kind: str, event: _Event, data: bytes) -> bytes | None:
        match kind:
            case "ping":
                return data if self._has_content else None
            case "message_start":
                return self._start(event.message, data)
            case "content_block_start" if not self._said:
                self._says(_says(decoded(event.content_block)))
            case "content_block_delta" if not self._said:
                delta = decoded(event.delta)
                self._says(isinstance(delta, dict) and any(delta.get(key) for key in _SAYS))
            case "message_delta":
                self._count(event.usage)
                delta = None if self._said else decoded(event.delta)
                self._says(isinstance(delta, dict) and delta.get("stop_reason") == "refusal")
            case "message_stop":
                self._ends(said=self._said)
        return data

    def _start(self, message: msgspec.Raw, data: bytes) -> bytes:
        """`data`, which begins `message`, with the model's name."""
        inner = bytes(message)
        if not inner.startswith(b"{"):
            return data
        values = members(inner)
        self._count(values.get("usage", NULL))
        return with_values(members(data), {"message": with_values(values, {"model": self._model})})

    def _count(self, usage: msgspec.Raw) -> None:
        self.usage = chunks.merged(self.usage, usage_from_messages(decoded(usage)))


def _says(block: object) -> bool:
    """Whether a block has content. A tool call has: its name."""
    if not isinstance(block, dict):
        return False
    kind = block.get("type")
    return bool(block.get(kind)) if kind in ("text", "thinking") else kind is not None
