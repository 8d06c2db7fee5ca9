"""Reads from a provider's refusal what it wants of an answer's max length: another number, or another name.

OpenAI's newer models refuse ``max_tokens``, and Mistral and other strict servers ``max_completion_tokens``. The numbers
are in the refusal's message: OpenAI ("supports at most 4096 completion tokens"), vLLM ("maximum context length is 64001
tokens and your request has 24235 input tokens"), SGLang ("7000 tokens from the input messages"), Anthropic
("max_tokens: 9 > 8, which is the maximum"), DeepSeek ("the valid range of max_tokens is [1, 8192]"), Groq ("must be
less than or equal to `8192`"), Gemini ("the supported range is from 1 (inclusive) to 8193 (exclusive)").
"""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.providers.classify import envelope
from manallm_proxy.providers.max_tokens import NEWER, OLDER, cut_to
from manallm_proxy.providers.mending.unknown_names import is_unknown

_WORDS: Final = {name: re.compile(rb"\b%b\b" % name.encode()) for name in (OLDER, NEWER)}
_NAMED: Final = re.compile(
    r"max_(?:completion_|output_)?tokens|maxOutputTokens|completion tokens|(?:in|for) the completion"
)
_WINDOW: Final = re.compile(
    r"maximum context length (?:is|of) (\d{1,9}) tokens.{1,200}?"
    r"(?:(\d{1,9}) input tokens|\((\d{1,9}) in the messages|(\d{1,9}) tokens from the input messages)",
    re.DOTALL,
)
_END: Final = re.compile(r"range is from \d \(inclusive\) to (\d{1,9}) \(exclusive\)")
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
        most = int(window[1]) - int(next(filter(None, window.groups()[1:])))
    elif end := _END.search(words):
        most = int(end[1]) - 1
    elif limit := _MOST.search(words):
        most = int(next(filter(None, limit.groups())))
    else:
        return None
    return cut_to(call, most) if 0 < most < length else None


def wanted_name(call: Call, refusal: bytes) -> str | None:
    """The other name for the length, if `call` has one under a name that its `refusal` does not know."""
    for name, other in ((OLDER, NEWER), (NEWER, OLDER)):
        if name in call.summary.spans and _WORDS[name].search(refusal) and is_unknown(refusal):
            return other
    return None
