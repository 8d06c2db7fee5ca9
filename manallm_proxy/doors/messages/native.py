"""A request as it goes to a provider that speaks Messages itself: the client's own bytes.

Thinking blocks that this proxy signed, or that came without a signature, are left out: the provider would refuse a
signature that is not its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.doors.messages import signature
from manallm_proxy.openai.json_object import decode_leniently, encode
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request import read_summary, spliced
from manallm_proxy.openai.request_fields import Fields

_PASSED: Final = ("anthropic-version", "anthropic-beta")
"""Headers of the client's that say how its request is to be read."""
_LONGEST: Final = 4096


def native_call(body: bytes, headers: Mapping[str, str], request_id: str, endpoint: Endpoint) -> Call:
    """The call, for any provider that speaks this. Raises InvalidRequest for what is no request at all."""
    summary = read_summary(body, ("messages", list))
    if b'"thinking"' in body:
        span = summary.spans["messages"]
        turns = decode_leniently(body[slice(*span)])
        kept = [_readable(turn) for turn in turns]
        if any(one is not other for one, other in zip(kept, turns, strict=True)):
            body = spliced(body, summary.spans, {"messages": encode([turn for turn in kept if turn is not None])})
            summary = read_summary(body, ("messages", list))
    passed = {name: value for name in _PASSED if (value := _header(headers, name))}
    return Call(endpoint, summary, body, request_id, headers=passed, is_large=is_large(body))


def _header(headers: Mapping[str, str], name: str) -> str:
    """The header's value as one line, all of its lines together; empty if it could not be sent on."""
    lines = headers.getall(name, []) if hasattr(headers, "getall") else [headers.get(name, "")]
    value = ",".join(filter(None, lines))
    return value if len(value) <= _LONGEST and value.isascii() and value.isprintable() else ""


def _readable(turn: Any) -> Fields | None:
    """`turn` without thoughts that its provider did not sign; None if that was all."""
    blocks = turn.get("content") if isinstance(turn, dict) and turn.get("role") == "assistant" else None
    if not isinstance(blocks, list):
        return turn  # type: ignore[no-any-return]  # whatever it is, its provider will say so
    kept = [block for block in blocks if not (isinstance(block, dict) and _is_unsigned(block))]
    if len(kept) == len(blocks):
        return turn  # type: ignore[no-any-return]
    return {**turn, "content": kept} if kept else None


def _is_unsigned(block: Fields) -> bool:
    if block.get("type") != "thinking":
        return False
    signed = block.get("signature")
    return not signed or bool(signature.read(signed))
