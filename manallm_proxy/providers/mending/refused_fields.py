"""Leaves out of a translated chat the settings that its model takes no value for.

Clients of other APIs set them whatever the model: Claude Code an effort and now and then a temperature, Ollama's all
kinds of sampling. OpenAI's chats have no ``top_k``, its models that think no temperature ("Only the default (1) value
is supported") and no ``top_p``, and newer models of Anthropic's not both of these.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import replaced
from manallm_proxy.providers.mending.effort import FIELD, is_wish, refuses_effort
from manallm_proxy.providers.mending.unknown_names import is_unknown

TOP_K, TOP_P, TEMPERATURE = "top_k", "top_p", "temperature"
BESIDE_TEMPERATURE: Final = "top_p beside temperature"
LEFT_OUT: Final = (TOP_K, TEMPERATURE, TOP_P, BESIDE_TEMPERATURE, FIELD)
"""What may be refused, and is learned then."""
_TEMPERATURE: Final = re.compile(
    rb"\btemperature\b[^{}]{0,60}(?:not support|only \d(?:\.\d)? is allowed|deprecated for this model)", re.IGNORECASE
)
_TOP_P: Final = re.compile(
    rb"\btop_p\b[^{}]{0,60}(?:not support|deprecated for this model)|\btop_p\W{1,4}is unsupported", re.IGNORECASE
)
_BOTH: Final = re.compile(rb"\btop_p\b[^{}]{0,60}cannot both", re.IGNORECASE)


def refused_field(call: Call, refusal: bytes) -> str:
    """Which of ``LEFT_OUT`` of `call` a `refusal` is about; empty: none."""
    spans = call.summary.spans
    if TOP_K in spans and TOP_K.encode() in refusal and is_unknown(refusal):
        return TOP_K
    if TOP_P in spans and TEMPERATURE in spans and _BOTH.search(refusal):
        return BESIDE_TEMPERATURE
    if TOP_P in spans and _TOP_P.search(refusal):
        return TOP_P
    if TEMPERATURE in spans and _TEMPERATURE.search(refusal):
        return TEMPERATURE
    is_none = FIELD in spans and FIELD.encode() in refusal and call.body[slice(*spans[FIELD])] == b'"none"'
    return FIELD if is_none or (FIELD in spans and refuses_effort(refusal)) else ""


def without_refused(call: Call, field: str) -> Call:
    """`call`, whose body a door has made, without that `field`; itself if it has none, or if it is a wish."""
    if field == BESIDE_TEMPERATURE and TEMPERATURE in call.summary.spans:
        field = TOP_P
    if field not in call.summary.spans or (field == FIELD and is_wish(call)):
        return call
    call.remarks.append(f"not sent on: {field}, which the target does not take")
    return without_field(call, field)


def without_field(call: Call, key: str) -> Call:
    """`call`, whose body a door has made, without one of its fields but the first."""
    spans = call.summary.spans
    start, end = spans[key]
    front = b',"%b":' % key.encode()
    first = start - len(front)
    if not call.body.startswith(front, first):
        return call
    body = replaced(call.body, [((first, end), b"")])
    moved = {
        name: (at - end + first, stop - end + first) if at > start else (at, stop)
        for name, (at, stop) in spans.items()
        if name != key
    }
    return evolve(call, body=body, summary=evolve(call.summary, spans=moved))
