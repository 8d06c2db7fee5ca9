"""Relays the answers of a provider that speaks Anthropic's Messages: only ``model`` is replaced.

In a stream the message's end is ``message_stop``. Tokens are counted in ``message_start`` and again, as sums so far,
in ``message_delta``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, EmptyAnswer
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.usage import usage_from_messages
from manallm_proxy.providers.native.plain_events import MESSAGES, PlainEvents
from manallm_proxy.providers.native.relay import NamedRelay
from manallm_proxy.providers.native.splice import members, with_values, within
from manallm_proxy.providers.openai import chunks
from manallm_proxy.providers.openai.reply import decoded, refuse_error

_SAYS: Final = ("text", "thinking", "partial_json", "citation", "data")
"""Members of a delta that count as content; a signature does not."""


def message(call: Call, target: Target, body: bytes) -> Answer:
    """A whole message. Raises the error inside of a 200, and BadResponse if it holds no message."""
    values = members(body)
    refuse_error(values)
    if bytes(values.get("content", b""))[:1] != b"[":
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


@define
class MessagesRelay(NamedRelay):
    """See `wire.Translator`."""

    marks: ClassVar[tuple[bytes, ...]] = (b"message_",)
    plain: ClassVar[PlainEvents] = MESSAGES

    def _take(self, kind: str, event: dict[str, Any], data: bytes) -> bytes | None:
        match kind:
            case "ping":
                return data if self._has_content else None
            case "message_start":
                told = event.get("message")
                self._count(told.get("usage") if isinstance(told, dict) else None)
                return within(data, "message", {"model": self._model})[0]
            case "content_block_start":
                self._says(_says(event.get("content_block")))
            case "content_block_delta":
                delta = event.get("delta")
                self._says(isinstance(delta, dict) and any(delta.get(key) for key in _SAYS))
            case "message_delta":
                self._count(event.get("usage"))
                delta = event.get("delta")
                stopped = delta.get("stop_reason") if isinstance(delta, dict) else None
                self._says(stopped == "refusal")
            case "message_stop":
                self._ends(said=self._said)
        return data

    def _count(self, usage: object) -> None:
        self.usage = chunks.merged(self.usage, usage_from_messages(usage))


def _says(block: object) -> bool:
    """Whether a block has content. A tool call has, by its name."""
    if not isinstance(block, dict):
        return False
    kind = block.get("type")
    return bool(block.get(kind)) if kind in ("text", "thinking") else kind is not None
