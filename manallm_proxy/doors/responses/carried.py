"""``encrypted_content``: what a provider wants back with the next turn, in the client's hands.

It is opaque to clients, but no secret: they know all of it already, or may (the reasoning that they were shown,
Gemini's own signature of it). What another server wrote there is left alone.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from attrs import field, frozen

from manallm_proxy.openai.json_object import DecodeErrors, decode, encode

_PREFIX: Final = "manallm1."


@frozen
class Carried:
    """``extras``: by the id of a tool call, what goes back beside it (see `answers.ToolCall.extra`)."""

    reasoning: str = field(default="", repr=False)
    extras: dict[str, dict[str, Any]] = field(factory=dict, repr=False)


def pack(carried: Carried) -> str:
    """As ``encrypted_content``."""
    inner: dict[str, Any] = {"reasoning": carried.reasoning, "extras": carried.extras}
    return _PREFIX + base64.urlsafe_b64encode(encode(inner)).decode()


def unpack(content: object) -> Carried:
    """What `content` carries; nothing where it is not ours."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return Carried()
    try:
        inner = decode(base64.b64decode(content[len(_PREFIX) :], altchars=b"-_", validate=True))
    except (ValueError, *DecodeErrors):
        return Carried()
    if not isinstance(inner, dict):
        return Carried()
    reasoning, extras = inner.get("reasoning"), inner.get("extras")
    rows = extras.items() if isinstance(extras, dict) else ()
    return Carried(
        reasoning if isinstance(reasoning, str) else "",
        {id_: extra for id_, extra in rows if isinstance(extra, dict)},
    )
