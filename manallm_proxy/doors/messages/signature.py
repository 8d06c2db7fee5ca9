"""Carries data that a provider expects back with a tool call in the signature of a thinking block.

A tool_use block has no field for it, and clients return thinking blocks unchanged. Gemini signs the thought that
led to a call; in OpenAI's format that signature is in the call's ``extra_content``.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from msgspec import Struct

from manallm_proxy.openai.json_object import DecodeErrors, encode

_PREFIX: Final = "manallm1."


class _Carried(Struct):
    id: str
    extra: dict[str, Any]


_DECODER: Final = msgspec.json.Decoder(_Carried)


def write(call_id: str, extra: dict[str, Any]) -> str:
    """The signature that carries `extra` of one tool call."""
    return _PREFIX + base64.b64encode(encode(_Carried(call_id, extra))).decode()


def read(signature: object) -> dict[str, dict[str, Any]]:
    """The data in `signature`, by the call's id; empty if it is not one of ours."""
    if not isinstance(signature, str) or not signature.startswith(_PREFIX):
        return {}
    try:
        carried = _DECODER.decode(base64.b64decode(signature.removeprefix(_PREFIX), validate=True))
    except (ValueError, *DecodeErrors):
        return {}
    return {carried.id: carried.extra}
