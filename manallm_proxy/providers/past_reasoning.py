"""Takes a provider's own reasoning out of a history again, where the provider refuses it.

Kimi and DeepSeek refuse the result of a tool call without what was thought before it, so doors send it back to whoever
thought. Groq's server has refused such members ("property 'reasoning_content' is unsupported").
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import contains, encoder
from manallm_proxy.openai.request import spliced
from manallm_proxy.openai.request_fields import decoded_value
from manallm_proxy.providers.length import is_unknown

MEMBERS: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details"})
_NAMED: Final = re.compile(rb"reasoning_content|reasoning_details|['\"`.\\]reasoning['\"`\\]")
_BEGUN: Final = b'"reasoning'


def refuses_reasoning(refusal: bytes) -> bool:
    """Whether a `refusal` is of a message's member for reasoning."""
    return _NAMED.search(refusal) is not None and is_unknown(refusal)


def without_reasoning(call: Call) -> Call:
    """`call`, which a door has made, without the reasoning of its history; itself if there is none."""
    span = call.summary.spans.get("messages")
    if span is None or not contains(call.body, _BEGUN, *span):
        return call
    messages: list[Any] = decoded_value(call, "messages")
    kept = [
        {key: value for key, value in each.items() if key not in MEMBERS} if MEMBERS & each.keys() else each
        for each in messages
    ]
    if all(one is other for one, other in zip(kept, messages, strict=True)):
        return call
    body, spans = spliced(call.body, call.summary.spans, {"messages": encoder(call.is_large)(kept)})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))
