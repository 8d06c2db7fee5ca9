"""Tells a request that a provider of this API gets as it is, where nothing of it is to be kept, without decoding it.

Most requests are such: their fields have the right types, they refer to nothing that was kept, and nothing in them was
meant for one provider alone. One walk of a decoder checks all of that, and makes none of what they hold.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from manallm_proxy.doors.carried import KEPT
from manallm_proxy.openai.json_object import DecodeErrors
from manallm_proxy.openai.large import is_large


class _Object(msgspec.Struct, gc=False):
    """Any object."""


class _Item(msgspec.Struct, gc=False):
    """An item that every provider can read, whoever made it; a member that is ``UnsetType`` may not be there."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] | (
        None
    ) = None
    id: Any = UNSET
    encrypted_content: UnsetType = UNSET
    carried: UnsetType = msgspec.field(default=UNSET, name=KEPT)


class Plain(msgspec.Struct):
    """Such a request, and what of it is asked about."""

    input: str | list[_Item]
    store: bool | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    instructions: str | None = None
    metadata: _Object | None = None
    prompt_cache_key: str | None = None
    reasoning: _Object | None = None
    safety_identifier: str | None = None
    text: _Object | None = None
    truncation: str | None = None
    max_tool_calls: None = None
    background: None = None
    conversation: None = None
    prompt: None = None


_DECODER: Final = msgspec.json.Decoder(Plain)


def plain_request(body: bytes) -> Plain | None:
    """`body`, which is known to be valid JSON; None if it has to be looked at more closely, or takes too long."""
    if is_large(body):
        return None
    try:
        plain = _DECODER.decode(body)
    except (msgspec.ValidationError, *DecodeErrors):
        return None
    if type(plain.input) is list and [item for item in plain.input if item.type is None and item.id is not UNSET]:
        return None  # a reference, perhaps: some clients leave its type out
    return plain
