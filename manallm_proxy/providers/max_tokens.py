"""The most that an answer may have, as a request says it under one of two names: as a smaller number, or by the other
name."""

from __future__ import annotations

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.joined import joined_parts
from manallm_proxy.openai.json_object import replaced

OLDER, NEWER = "max_tokens", "max_completion_tokens"


def cut_to(call: Call, most: int) -> Call:
    """`call` with ``max_tokens`` reduced to `most`. All other bytes keep their positions."""
    length = call.length
    if length is None or not 0 < most < length:
        return call
    start, end = call.summary.spans[OLDER if OLDER in call.summary.spans else NEWER]
    call.remarks.append(f"max_tokens: {most} instead of {length}, which the target cannot give")
    digits, body = b"%d" % most, memoryview(call.body)
    return evolve(call, body=joined_parts([body[:start], digits.ljust(end - start), body[end:]]), most=None)


def named(call: Call, name: str) -> Call:
    """`call`, whose body a door has made, with its length under `name`."""
    spans = call.summary.spans
    old = NEWER if name == OLDER else OLDER
    if old not in spans or name in spans:
        return call
    start = spans[old][0]
    front = b'"%b":' % old.encode()
    if not call.body.startswith(front, start - len(front)):
        return call
    body = replaced(call.body, [((start - len(front), start), b'"%b":' % name.encode())])
    shift = len(name) - len(old)
    moved = {key: (at + shift, end + shift) if at >= start else (at, end) for key, (at, end) in spans.items()}
    moved[name] = moved.pop(old)
    return evolve(call, body=body, summary=evolve(call.summary, spans=moved))
