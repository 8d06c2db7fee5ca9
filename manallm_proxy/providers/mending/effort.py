"""Reads from a provider's refusal which reasoning efforts a model knows, and gives it the nearest one, or none.

Anthropic's clients choose among their own API's efforts, and Ollama's disable thinking by default, whatever the model:
OpenAI ("Supported values are: 'low', 'medium', and 'high'."), Groq ("must be one of `low`, `medium`, or `high`"), xAI
("does not support parameter reasoningEffort"). OpenAI's newest models take tools in a chat only if they do not think
("To use function tools, use /v1/responses or set reasoning_effort to 'none'"), also where no effort was given.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.request import TOOLS, spliced
from manallm_proxy.openai.rows import with_value
from manallm_proxy.providers.classify import envelope
from manallm_proxy.providers.mending.unknown_names import is_unknown

FIELD: Final = "reasoning_effort"
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""From the least to the most."""
_LISTED: Final = re.compile(r"(?:supported values|one of|valid values|allowed values)\W{1,20}(.{1,200})", re.IGNORECASE)
_WORD: Final = re.compile(r"[a-z]+")
BESIDE_TOOLS: Final = "effort beside tools"
"""What may be refused, and is learned then, as `FIELD`."""
_NAMED: Final = re.compile(rb"reasoning_?effort", re.IGNORECASE)
_BESIDE_TOOLS: Final = re.compile(
    rb"tools with reasoning_effort are not supported|set reasoning_effort to \W{0,2}none", re.IGNORECASE
)
_NOTHING: Final = (b"[]", b"null")
_NONE: Final = b'"none"'


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


def refuses_effort(refusal: bytes) -> bool:
    """Whether a `refusal` says that there is no effort to choose."""
    return _NAMED.search(refusal) is not None and (is_unknown(refusal) or b"not support" in refusal)


def refuses_beside_tools(refusal: bytes) -> bool:
    """Whether a `refusal` is of an effort beside tools."""
    return _BESIDE_TOOLS.search(refusal) is not None


def is_wish(call: Call) -> bool:
    """Whether the effort is the wish of a client that knows the model: of a chat's, or of Ollama's with ``think``.
    Those of other APIs set one for all models alike."""
    return FIELD in call.summary.spans and (call.relays or bool(call.ollama.get("think")))


def unthinking_with_tools(call: Call) -> Call:
    """`call` with no effort beside its tools; itself if it has none, or if an effort is a wish."""
    spans = call.summary.spans
    has_tools = TOOLS in spans and call.body[slice(*spans[TOOLS])] not in _NOTHING
    if not has_tools or is_wish(call) or (FIELD in spans and call.body[slice(*spans[FIELD])] == _NONE):
        return call
    call.remarks.append(f"{FIELD}: none, since the target takes no tools beside another")
    return with_value(call, FIELD, _NONE)
