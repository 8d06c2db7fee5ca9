"""The most that an answer may have, as a request says it under one of two names: as a smaller number, or by the other
name."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.joined import joined_parts
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode, replaced
from manallm_proxy.openai.rows import with_value

OLDER, NEWER = "max_tokens", "max_completion_tokens"
LEAST_BUDGET: Final = 1024
"""Tokens of thinking below which Anthropic's API takes no budget."""


def cut_to(call: Call, most: int) -> Call:
    """`call` with ``max_tokens`` reduced to `most`. All other bytes keep their positions, unless it has a budget of
    thinking, too, which then may be no less."""
    length = call.length
    if length is None or not 0 < most < length:
        return call
    start, end = call.summary.spans[OLDER if OLDER in call.summary.spans else NEWER]
    call.remarks.append(f"max_tokens: {most} instead of {length}, which the target cannot give")
    digits, body = b"%d" % most, memoryview(call.body)
    cut = evolve(call, body=joined_parts([body[:start], digits.ljust(end - start), body[end:]]), most=None)
    return _with_less_thinking(cut, length, most) if call.endpoint is Endpoint.MESSAGES else cut


def _with_less_thinking(call: Call, length: int, most: int) -> Call:
    """`call`, whose answer was cut from `length` to `most`, with a budget of thinking below that, as the API wants it.

    One that was not below `length` is the client's own: a beta allows that.
    """
    span = call.summary.spans.get("thinking")
    try:
        asked = decode(call.body[slice(*span)]) if span is not None else None
    except DecodeErrors:
        return call  # for the provider to refuse
    if not isinstance(asked, dict):
        return call
    budget = asked.get("budget_tokens")
    if type(budget) is not int or not most <= budget < length:
        return call
    less = most // 2
    thinking = {**asked, "budget_tokens": less} if less >= LEAST_BUDGET else {"type": "disabled"}
    call.remarks.append(f"thinking: {less if less >= LEAST_BUDGET else 'no'} tokens instead of {budget}")
    return with_value(call, "thinking", encode(thinking))


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
