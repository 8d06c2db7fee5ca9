"""The ``sequence_number`` of events that a provider wrote itself.

The first two events are ours, and so are heartbeats among the provider's. Each takes a number, so what comes after it
is counted on from there, also where the provider has begun with fewer events. Else two had the same one, and a client
that takes a number that it has seen for a repetition would lose the provider's.
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
_USUAL: Final = re.compile(rb'event: [\w.]+\ndata: \{"type": ?"[\w.]+", ?"sequence_number": ?(\d{1,10})[,}]')
"""The beginning of an event as OpenAI writes it."""
_OBJECT: Final[msgspec.json.Decoder[dict[str, msgspec.Raw]]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def first(events: bytes) -> int | None:
    """The first sequence number in `events`."""
    frames = sse.whole_frames(events) if KEY in events else ()
    return next((found[1] for frame in frames if (found := _members(frame)) is not None), None)


def after(events: bytes, known: int) -> int:
    """The sequence number after that of the last of `events` that has one; at least `known`."""
    usual = _USUAL.match(events)
    if usual is not None and events.find(b"\n\n") == len(events) - 2:  # one event, which may be megabytes
        return max(known, int(usual[1]) + 1)
    for frame in reversed(sse.whole_frames(events)):
        if (found := _members(frame)) is not None:
            return max(known, found[1] + 1)
    return known


def shifted(events: bytes, by: int) -> bytes:
    """Whole `events` with `by` added to the number of each that has one. All other members keep their bytes."""
    return b"".join([_shifted(frame, by) for frame in sse.whole_frames(events)])


def _shifted(frame: sse.Frame, by: int) -> bytes:
    """An event that cannot be read, or whose data has several lines, stays as it is."""
    raw, data = frame.raw, frame.data or b""
    at = raw.rfind(data)
    if at < 0 or (found := _members(frame)) is None:
        return raw
    members, number = found
    members["sequence_number"] = msgspec.Raw(b"%d" % (number + by))
    new = encode(members) if len(data) <= LARGE_BYTES else encode_whole(members)
    return raw[:at] + new + raw[at + len(data) :]


def _members(frame: sse.Frame) -> tuple[dict[str, msgspec.Raw], int] | None:
    """What an event says, and its number; None if it has none of its own."""
    data = frame.data or b""
    if KEY not in data:
        return None
    try:
        members = _OBJECT.decode(data)
    except (msgspec.ValidationError, *DecodeErrors):
        return None
    number = _DIGITS.fullmatch(bytes(members.get("sequence_number", msgspec.Raw(b""))))
    return (members, int(number[0])) if number is not None else None
