"""The ``sequence_number`` of events that a provider wrote itself.

A heartbeat of ours among them takes a number, as all events do; so those after it are counted on from there. Else two
events had the same one, and a client that takes a number that it has seen for a repetition would lose the provider's.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import DecodeErrors, encode, encode_whole
from manallm_proxy.openai.large import LARGE_BYTES

KEY: Final = b'"sequence_number":'
_DIGITS: Final = re.compile(rb"\d{1,10}")
_OBJECT: Final[msgspec.json.Decoder[dict[str, msgspec.Raw]]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def after(events: bytes, known: int) -> int:
    """The sequence number after those of `events`; at least `known`."""
    digits = events[events.rfind(KEY) + len(KEY) :].lstrip()[:10] if KEY in events else b""
    number = _DIGITS.match(digits)
    return max(known, int(number[0]) + 1) if number is not None else known


def shifted(events: bytes, by: int) -> bytes:
    """Whole `events` with `by` added to the number of each that has one. All other members keep their bytes."""
    return b"".join([_shifted(frame, by) for frame in sse.Decoder().feed(events)])


def _shifted(frame: sse.Frame, by: int) -> bytes:
    """An event that cannot be read, or whose data has several lines, stays as it is."""
    raw, data = frame.raw, frame.data or b""
    at = raw.rfind(data)
    if KEY not in data or at < 0:
        return raw
    try:
        members = _OBJECT.decode(data)
    except (msgspec.ValidationError, *DecodeErrors):
        return raw
    number = _DIGITS.fullmatch(bytes(members.get("sequence_number", msgspec.Raw(b""))))
    if number is None:
        return raw
    members["sequence_number"] = msgspec.Raw(b"%d" % (int(number[0]) + by))
    new = encode(members) if len(data) <= LARGE_BYTES else encode_whole(members)
    return raw[:at] + new + raw[at + len(data) :]
