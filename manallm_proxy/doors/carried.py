"""Data that a provider expects back with the next turn, stored by the client.

It is a reasoning item's ``encrypted_content`` in Responses, and a thinking block's ``signature`` in Messages: clients
return both unchanged. It is opaque to clients, but not secret: it holds the reasoning that they were shown, and the
provider's own signatures of it. Content written by other servers is ignored.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.json_object import DecodeErrors, encode

_PREFIX: Final = "manallm1."
EXTRA: Final = "extra_content"
"""The member of a tool call, in OpenAI's format, for data that its provider expects back with it."""
KEPT: Final = "manallm_carried"
"""The member of a stored item for the same data, if the client did not request it or has no place for it."""
KEYS: Final = ("reasoning_content", "reasoning")
"""The members in which a provider may expect its reasoning back."""


@frozen
class Carried:
    """Data that is sent back only to ``provider``, since others refuse unknown fields.

    ``extras``: by the id of a tool call, the value of its `EXTRA`.
    """

    provider: str = ""
    reasoning: str = field(default="", repr=False)
    key: str = KEYS[0]
    """See `answers.Delta.reasoning_key`."""
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)
    details: list[dict[str, Any]] = field(factory=list, repr=False)
    """See `openai.reasoning_details`: they have the text of ``reasoning``, which then is empty."""


def pack(carried: Carried) -> str:
    """The value of ``encrypted_content`` or ``signature``."""
    return _PREFIX + base64.urlsafe_b64encode(encode(carried)).decode()


def of_item(item: Mapping[str, Any]) -> Carried:
    """The data carried by an item."""
    return unpack(item.get("encrypted_content") if KEPT not in item else item[KEPT])


def is_ours(content: object) -> bool:
    """Whether we wrote it, and so no provider can read it."""
    return isinstance(content, str) and content.startswith(_PREFIX)


def unpack(content: object) -> Carried:
    """The data in `content`; an empty `Carried` if it is not one of ours."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return Carried()
    try:
        found = _CARRIED.decode(base64.b64decode(content[len(_PREFIX) :], altchars=b"-_", validate=True))
    except (ValueError, *DecodeErrors):
        return Carried()
    return found if found.provider and found.key in KEYS else Carried()


_CARRIED: Final = msgspec.json.Decoder(Carried)
