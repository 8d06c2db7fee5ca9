"""Has a model not think, where it has refused to make a call that it must make while it thinks.

Clients force a call to get an answer of one form, Claude Code for its searches, and these models think unless told not
to: DeepSeek ("Thinking mode does not support this tool_choice"), Kimi ("incompatible with thinking enabled"), Qwen at
Alibaba ("in thinking mode").
"""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.rows import with_value
from manallm_proxy.providers.mending.effort import FIELD, is_wish
from manallm_proxy.providers.mending.refused_fields import without_field

_REFUSED: Final = re.compile(
    rb"does not support this tool_choice|\btool_choice\b[^{}]{0,80}(?:incompatible with thinking|in (thinking) mode)"
    rb"|thinking may not be enabled when tool_choice",
    re.IGNORECASE,
)
_OFF: Final = b'{"type":"disabled"}'
_QWENS: Final = "enable_thinking"


def unthinking_for_choice(call: Call, refusal: bytes) -> Call:
    """`call` without thinking, if the `refusal` is of a forced call beside it; itself if it is not, or if a chat's
    client asks for thinking itself."""
    refused = _REFUSED.search(refusal)
    spans = call.summary.spans
    if refused is None or "tool_choice" not in spans:
        return call
    key, value = (_QWENS, b"false") if refused[1] else ("thinking", _OFF)
    if call.endpoint is Endpoint.CHAT:
        if key in spans or is_wish(call):
            return call
        changed = without_field(call, FIELD) if FIELD in spans else call
    elif call.body[slice(*spans.get("thinking", (0, 0)))] == _OFF:
        return call
    else:
        key, value, changed = "thinking", _OFF, call
    call.remarks.append("thinking: disabled, since the target makes no forced call beside it")
    return with_value(changed, key, value)
