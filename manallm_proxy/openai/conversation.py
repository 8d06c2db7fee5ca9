"""The common beginning of all requests of one conversation, by which ``sticky`` tiers recognise it."""

from __future__ import annotations

from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors

PREFIX: Final = 4096
"""Max bytes of a beginning: enough to distinguish conversations."""
PARSED: Final = 2**20
"""Max bytes of messages that are parsed; of longer ones the first ``PREFIX`` bytes are used."""


class _Message(msgspec.Struct):
    role: str = ""


_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGE: Final = msgspec.json.Decoder(_Message)


def conversation_prefix(call: Call) -> bytes:
    """The messages up to the first user message, or the beginning of the prompt: what a prompt cache can reuse."""
    for key in ("messages", "input", "prompt"):
        if (span := call.summary.spans.get(key)) is not None:
            value = memoryview(call.body)[span[0] : span[1]]
            is_list = bytes(value[:1]) == b"[" and len(value) <= PARSED
            return _first_turn(value) if is_list else bytes(value[:PREFIX])
    return b""


def _first_turn(messages: memoryview) -> bytes:
    found = bytearray()
    try:
        for message in _LIST.decode(messages):
            found += message
            if _MESSAGE.decode(message).role == "user" or len(found) >= PREFIX:
                break
    except DecodeErrors:  # a list of texts
        return bytes(messages[:PREFIX])
    return bytes(found[:PREFIX])
