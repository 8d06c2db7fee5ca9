"""Reads the max length of an answer from a provider's refusal, if the request allowed more.

The numbers are in the refusal's message: OpenAI ("supports at most 4096 completion tokens"), vLLM ("maximum
context length is 64001 tokens and your request has 24235 input tokens"), Anthropic ("max_tokens: 9 > 8, which is the
maximum"), DeepSeek ("the valid range of max_tokens is [1, 8192]"), Groq ("must be less than or equal to `8192`").
"""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.providers.classify import envelope

_NAMED: Final = re.compile(r"max_(?:completion_|output_)?tokens|completion tokens|in the completion")
_WINDOW: Final = re.compile(
    r"maximum context length is (\d{1,9}) tokens.{1,200}?(?:(\d{1,9}) input tokens|\((\d{1,9}) in the messages)",
    re.DOTALL,
)
_MOST: Final = re.compile(
    r"at most (\d{1,9}) (?:completion|output) tokens|\[\d, ?(\d{1,9})\]"
    r"|(?:less than or equal to|<=|at most) [`'\"]?(\d{1,9})|\d > (\d{1,9}), which is the maximum"
)


def clamp_max_tokens(call: Call, refusal: bytes) -> Call | None:
    """`call` with the ``max_tokens`` that its `refusal` allows; None if the refusal is about something else."""
    words = envelope(refusal).message
    length = call.length
    if length is None or not _NAMED.search(words):
        return None
    if window := _WINDOW.search(words):
        most = int(window[1]) - int(window[2] or window[3])
    elif limit := _MOST.search(words):
        most = int(next(filter(None, limit.groups())))
    else:
        return None
    return call.cut_to(most) if 0 < most < length else None
