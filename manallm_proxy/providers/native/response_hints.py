"""Leaves out of a request of Responses what its client sends to all models alike, once a model has refused it.

Codex sends the effort of its settings, and asks for reasoning in encrypted form; models that do not think refuse both
("Unsupported parameter: 'reasoning.effort'", "Encrypted content is not supported with this model").
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode
from manallm_proxy.openai.rows import with_value

EFFORT, SUMMARY, VERBOSITY = "reasoning.effort", "reasoning.summary", "text.verbosity"
ENCRYPTED: Final = "reasoning.encrypted_content"
RESPONSE_HINTS: Final = frozenset({EFFORT, SUMMARY, VERBOSITY, ENCRYPTED})
"""What may be refused, and is learned then."""
_MEMBER: Final = re.compile(
    rb"unsupported parameter\W{1,4}(reasoning\.effort|reasoning\.summary|text\.verbosity)\b", re.IGNORECASE
)
_ENCRYPTED: Final = re.compile(rb"encrypted content is not supported", re.IGNORECASE)


def refused_response_hint(refusal: bytes) -> str:
    """Which of them a `refusal` is about; empty: none."""
    if _ENCRYPTED.search(refusal):
        return ENCRYPTED
    named = _MEMBER.search(refusal)
    return named[1].decode().lower() if named is not None else ""


def without_response_hints(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused`; itself if there is nothing to change, or if it is malformed."""
    changed = call
    for what in sorted(RESPONSE_HINTS.intersection(refused)):
        try:
            before, changed = changed, _without(changed, what)
        except DecodeErrors:
            return call
        if changed is not before:
            call.remarks.append(f"not sent on: {what}, which the target refuses")
    return changed


def _without(call: Call, refused: str) -> Call:
    if refused == ENCRYPTED:
        wanted = _value(call, "include")
        if not isinstance(wanted, list) or ENCRYPTED not in wanted:
            return call
        return with_value(call, "include", encode([each for each in wanted if each != ENCRYPTED]))
    key, _, member = refused.partition(".")
    asked = _value(call, key)
    if not isinstance(asked, dict) or member not in asked:
        return call
    left = {name: value for name, value in asked.items() if name != member}
    return with_value(call, key, encode(left) if left else b"null")


def _value(call: Call, key: str) -> Any:
    span = call.summary.spans.get(key)
    return None if span is None else decode(call.body[slice(*span)])
