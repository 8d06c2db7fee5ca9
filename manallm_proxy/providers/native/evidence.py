"""As `mending.evidence`, of refusals of requests that are a client's own."""

from __future__ import annotations

from typing import Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import holds
from manallm_proxy.providers.mending.evidence import NO_KEY, OF_DEVELOPER, patterns
from manallm_proxy.providers.native import hints
from manallm_proxy.providers.native.history import DEVELOPERS, MISSED, UNSIGNED
from manallm_proxy.providers.native.response_hints import RESPONSE_HINTS

LEARNED: Final = {
    DEVELOPERS: OF_DEVELOPER,
    UNSIGNED: rb"signature\W{1,4}in \W{0,2}thinking|thinking\.signature|(?:corrupted|invalid|missing a) thought"
    rb"|thought[ _]?signature is not",
    MISSED: rb"must be passed back|(?:reasoning_content|thinking)%b[^{}]{0,160}is missing" % NO_KEY,
    hints.BUDGETS: rb"thinking\.type\.enabled",
    hints.ADAPTIVE: rb"adaptive thinking is|thinking\.type\.adaptive|tag 'adaptive'",
    hints.EFFORT: rb"not support (?:the|reasoning) effort|output_config(?:\.effort)?:",
    hints.EDITING: rb"\bcontext_management\b%b" % NO_KEY,
    hints.OF_TOOLS: rb"\b(?:defer_loading|eager_input_streaming|input_examples)\b%b" % NO_KEY,
    **dict.fromkeys((hints.CACHING, hints.HOURS), rb"\bcache_control\b%b" % NO_KEY),
    **dict.fromkeys(RESPONSE_HINTS, rb"unsupported parameter|encrypted content is not"),
}
"""By what may be learned: words of its refusals, as they may be in a text of a request, but not as its keys."""
_PATTERNS: Final = patterns(LEARNED)


def is_for_all(call: Call, what: str) -> bool:
    """Whether `what`, refused of `call`, is refused of all: no text of the caller has the refusal's words."""
    return what in _PATTERNS and not holds(call.body, _PATTERNS[what])
