"""``encrypted_content``: what a provider wants back with the next turn, in the client's hands.

It is opaque to clients, but no secret: they know all of it already, or may (the reasoning that they were shown,
Gemini's own signature of it). What another server wrote there is left alone.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from attrs import field, frozen

from manallm_proxy.openai.json_object import DecodeErrors, encode

_PREFIX: Final = "manallm1."
EXTRA: Final = "extra_content"
"""Beside a tool call: where OpenAI's format has room for what its provider wants back with it."""
_KEYS: Final = ("reasoning_content", "reasoning")


@frozen
class Carried:
    """``provider`` alone gets it back: others refuse what they do not know.

    ``extras``: by the id of a tool call, the value of its `EXTRA`.
    """

    provider: str = ""
    reasoning: str = field(default="", repr=False)
    key: str = _KEYS[0]
    """See `answers.Delta.reasoning_key`."""
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)


def pack(carried: Carried) -> str:
    """As ``encrypted_content``."""
    return _PREFIX + base64.urlsafe_b64encode(encode(carried)).decode()


def unpack(content: object) -> Carried:
    """What `content` carries; nothing where it is not ours."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return Carried()
    try:
        found = _CARRIED.decode(base64.b64decode(content[len(_PREFIX) :], altchars=b"-_", validate=True))
    except (ValueError, *DecodeErrors):
        return Carried()
    return found if found.provider and found.key in _KEYS else Carried()


_CARRIED: Final = msgspec.json.Decoder(Carried)
