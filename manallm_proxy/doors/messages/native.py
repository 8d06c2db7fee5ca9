"""A request for a provider that natively accepts Messages: the client's own bytes.

Thinking blocks signed by this proxy are left out: they are another provider's. Its wire leaves out what else a provider
refuses of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec
from attrs import field

from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.doors.carried import is_ours
from manallm_proxy.doors.messages.request import ThreadsUnsupported
from manallm_proxy.openai.json_object import contains, holds
from manallm_proxy.openai.request import read_summary
from manallm_proxy.openai.request_fields import Fields
from manallm_proxy.openai.thinking_blocks import without_thinking

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
    """The call for a provider that accepts Messages."""
    return without_thinking(call, _is_signed_here)


def _has_images(body: bytes, messages: msgspec.Raw) -> bool:
    return contains(body, b'"image') and holds(messages, _IMAGE)


def _header(headers: Mapping[str, str], name: str) -> str:
    """The header's values joined to one line; empty if it cannot be forwarded."""
    if name not in headers:
        return ""
    lines = headers.getall(name, []) if hasattr(headers, "getall") else [headers.get(name, "")]
    value = ",".join(filter(None, lines))
    return value if len(value) <= _LONGEST and value.isascii() and value.isprintable() else ""


def _is_signed_here(block: Fields) -> bool:
    return block.get("type") == "thinking" and is_ours(block.get("signature"))
