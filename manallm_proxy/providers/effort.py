"""Reads from a provider's refusal which reasoning efforts a model knows, and gives it the nearest one.

Anthropic's clients choose among their own API's efforts, and Ollama's disable thinking by default, whatever the model:
OpenAI ("Supported values are: 'low', 'medium', and 'high'."), Groq ("must be one of `low`, `medium`, or `high`").
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.request import spliced
from manallm_proxy.providers.classify import envelope

FIELD: Final = "reasoning_effort"
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""From the least to the most."""
_LISTED: Final = re.compile(r"(?:supported values|one of|valid values|allowed values)\W{1,20}(.{1,200})", re.IGNORECASE)
_WORD: Final = re.compile(r"[a-z]+")


def nearest_effort(call: Call, refusal: bytes) -> Call | None:
    """`call` with the nearest effort that its `refusal` lists, the lower of two; None if it lists none."""
    span = call.summary.spans.get(FIELD)
    words = envelope(refusal).message
    listed = _LISTED.search(words) if span is not None and FIELD in words else None
    if span is None or listed is None:
        return None
    asked = call.body[slice(*span)].decode(errors="replace").strip('"')
    known = [effort for effort in _EFFORTS if effort in _WORD.findall(listed[1])]
    if asked not in _EFFORTS or asked in known or not known:
        return None
    effort = min(known, key=lambda each: abs(_EFFORTS.index(each) - _EFFORTS.index(asked)))
    call.remarks.append(f"{FIELD}: {effort} instead of {asked}, which the target does not know")
    body, spans = spliced(call.body, call.summary.spans, {FIELD: b'"%b"' % effort.encode()})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))
