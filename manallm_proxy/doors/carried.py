"""Data that a provider expects back with the next turn, stored by the client.

It is a reasoning item's ``encrypted_content`` in Responses, and a thinking block's ``signature`` in Messages: clients
return both unchanged. It is opaque to clients, but not secret: it holds the reasoning that they were shown, and the
provider's own signatures of it. Content written by other servers is ignored.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import msgspec
from attrs import asdict, evolve, field

from manallm_proxy.contract.answers import AnswerLimits
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.openai.bounds import count_structure
from manallm_proxy.openai.joined import joined_ascii, joined_bytes
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently, encode, encode_whole
from manallm_proxy.openai.json_structure import TooMuch
from manallm_proxy.openai.large import LARGE_BYTES

_PREFIX: Final = "manallm1."
_PIECE: Final = 3 * 4 * 8192
"""Bytes or characters of base64 that one call works on."""
EXTRA: Final = "extra_content"
"""The member of a tool call, in OpenAI's format, for data that its provider expects back with it."""
KEPT: Final = "manallm_carried"
"""The member of a stored item for the same data, if the client did not request it or has no place for it."""
SHOWN: Final = "\0shown"
"""As ``reasoning`` in a stored item: it is the item's own text, which would be stored twice."""
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
    if len(carried.reasoning) <= LARGE_BYTES:
        return _PREFIX + base64.urlsafe_b64encode(encode(carried)).decode()
    data = encode_whole(asdict(carried))
    pieces = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    size = len(_PREFIX) + -(-len(data) // 3) * 4
    return joined_ascii(size, chain((_PREFIX,), (base64.urlsafe_b64encode(piece).decode() for piece in pieces)))


def of_item(item: Mapping[str, Any], unpacker: Unpacker | None = None) -> Carried:
    """The data carried by an item."""
    return unpack(item.get("encrypted_content") if KEPT not in item else item[KEPT], unpacker)


def is_ours(content: object) -> bool:
    """Whether we wrote it, and so no provider can read it."""
    return isinstance(content, str) and content.startswith(_PREFIX)


@define
class Unpacker:
    """Bounds what is made of all that one request carries: packed, it is a text, whose structure nobody has counted."""

    left: int = 200_000
    """Objects and lists that may still come."""

    def count(self, data: bytes) -> None:
        """Raises TooMuch."""
        self.left -= count_structure(data, evolve(_BOUNDS, parts=min(_BOUNDS.parts, self.left)), "limits")


def unpack(content: object, unpacker: Unpacker | None = None) -> Carried:
    """The data in `content`; an empty `Carried` if it is not one of ours, or too much to have been."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return Carried()
    try:
        starts = range(len(_PREFIX), len(content), _PIECE)
        pieces = (base64.b64decode(content[at : at + _PIECE], altchars=b"-_", validate=True) for at in starts)
        data = joined_bytes(pieces)
        (unpacker or Unpacker()).count(data)
        large = len(data) > LARGE_BYTES
        found = msgspec.convert(decode_leniently(data), Carried) if large else _CARRIED.decode(data)
    except (ValueError, TooMuch, *DecodeErrors):
        return Carried()
    return found if found.provider and found.key in KEYS else Carried()


_CARRIED: Final = msgspec.json.Decoder(Carried)
_BOUNDS: Final = AnswerLimits(parts=20_000, elements=200_000, depth=64)
"""Of one such text, which is decoded in one call: more than any answer within the default limits leads to."""
