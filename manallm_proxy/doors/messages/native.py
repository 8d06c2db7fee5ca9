"""A request for a provider that natively accepts Messages: the client's own bytes.

Thinking blocks signed by this proxy, or without a signature, are left out: the provider refuses signatures that are not
its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec
from attrs import evolve, field

from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import is_ours
from manallm_proxy.doors.messages.request import ThreadsUnsupported
from manallm_proxy.openai.json_object import contains, encoder, holds
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request import read_summary, spliced
from manallm_proxy.openai.request_fields import Fields, decoded_value

_PASSED: Final = ("anthropic-version", "anthropic-beta")
"""The client's headers that affect how its request is interpreted."""
_LONGEST: Final = 4096
_IMAGE: Final = re.compile(rb'"image"\s*,\s*"source"|"media_type"\s*:\s*"image/')
"""Identifies an image block. Its type alone is not enough: a tool's input may have it too."""
_THOUGHT: Final = b'"thinking"'


def read_native(body: bytes, headers: Mapping[str, str], request_id: str, endpoint: Endpoint) -> Call:
    """The call, for routing. Raises InvalidRequest for malformed requests, and ThreadsUnsupported."""
    summary = read_summary(body, ("messages", list), has_images=_has_images)
    thread = summary.spans.get("thread")
    if thread is not None and body[slice(*thread)] != b"null":
        raise ThreadsUnsupported
    passed = {name: value for name in _PASSED if (value := _header(headers, name))}
    return Call(endpoint, summary, body, request_id, headers=passed)


@define
class NativeForm:
    """One request, see `provider.Native`. It does not refer to its call: freeing a cycle takes the garbage collector,
    which blocks all clients."""

    dialect: ClassVar[Endpoint] = Endpoint.MESSAGES
    summary: RequestSummary
    body: bytes = field(repr=False)
    request_id: str
    headers: Mapping[str, str] = field(repr=False)
    to_chat: Callable[[], Call] = field(repr=False)
    """Translates it to a chat. Raises Untranslatable if that is not possible."""

    @property
    def is_fixed(self) -> bool:
        return not contains(self.body, _THOUGHT)

    def write(self, provider: str) -> Call:
        return native_call(
            Call(self.dialect, self.summary, self.body, self.request_id, headers=self.headers, cuts_length=True)
        )

    def translate(self, *, for_all: bool) -> Call:
        try:
            return self.to_chat()
        except Untranslatable as refusal:
            return Call(self.dialect, self.summary, self.body, self.request_id, refusal=refusal)

    def forget(self) -> list[Any]:
        self.summary.forget()
        return []


def native_call(call: Call) -> Call:
    """The call for a provider that accepts Messages. Raises InvalidRequest."""
    if not contains(call.body, _THOUGHT):
        return call
    turns = decoded_value(call, "messages")
    kept = [_readable(turn) for turn in turns]
    if all(one is other for one, other in zip(kept, turns, strict=True)):
        return call
    left = [one for one, turn in zip(kept, turns, strict=True) if one is turn or one["content"]]
    values = {"messages": encoder(is_large(call.body))(left)}
    if _lacks_thought(turns, kept):
        values["thinking"] = b'{"type":"disabled"}'
    body, spans = spliced(call.body, call.summary.spans, values)
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans), is_large=is_large(body))


def _has_images(body: bytes, messages: msgspec.Raw) -> bool:
    return contains(body, b'"image') and holds(messages, _IMAGE)


def _header(headers: Mapping[str, str], name: str) -> str:
    """The header's values joined to one line; empty if it cannot be forwarded."""
    if name not in headers:
        return ""
    lines = headers.getall(name, []) if hasattr(headers, "getall") else [headers.get(name, "")]
    value = ",".join(filter(None, lines))
    return value if len(value) <= _LONGEST and value.isascii() and value.isprintable() else ""


def _readable(turn: Any) -> Any:
    """`turn` without thinking that its provider did not sign. A malformed turn is left for the provider to refuse."""
    blocks = turn.get("content") if isinstance(turn, dict) and turn.get("role") == "assistant" else None
    if not isinstance(blocks, list):
        return turn
    kept = [block for block in blocks if not (isinstance(block, dict) and _is_unsigned(block))]
    return turn if len(kept) == len(blocks) else {**turn, "content": kept}


def _lacks_thought(turns: list[Any], kept: list[Any]) -> bool:
    """Whether the model's latest turn has lost thinking before a call: then Anthropic refuses to continue thinking."""
    said = [n for n, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "assistant"]
    if not said or kept[said[-1]] is turns[said[-1]]:
        return False
    turn = kept[said[-1]]
    kinds = [block.get("type") for block in turn["content"] if isinstance(block, dict)]
    return "tool_use" in kinds and kinds[0] not in ("thinking", "redacted_thinking")


def _is_unsigned(block: Fields) -> bool:
    if block.get("type") != "thinking":
        return False
    signed = block.get("signature")
    return not signed or is_ours(signed)
