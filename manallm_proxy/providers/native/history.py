"""Takes out of a history what another model or account wrote for itself, once the provider has refused it.

A client sends back all that it was given, and relayed reasoning does not say whose it is: OpenAI answers "The encrypted
content could not be verified", Anthropic "Invalid `signature` in `thinking` block". The ids of other providers' calls
may be too long for the one, and have characters that the other refuses ("functions.Bash:0"). Anthropic's models do not
go on thinking after a call of another model that did not ("Expected `thinking` or `redacted_thinking`").
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import DecodeErrors, contains, encoder
from manallm_proxy.openai.request import spliced
from manallm_proxy.openai.request_fields import decoded_value
from manallm_proxy.openai.thinking_blocks import without_thinking
from manallm_proxy.providers.history import (
    decoded_rows,
    note_changes,
    refuses_ids,
    refuses_signatures,
    short_id,
    shortened,
)
from manallm_proxy.providers.turns import Row

_SEALED: Final = re.compile(
    rb"invalid_encrypted_content|encrypted[ _]content.{0,200}could not be (?:verified|decrypted)", re.DOTALL
)
_UNTHOUGHT: Final = re.compile(rb"expected \W{0,2}thinking\W{1,4}or \W{0,2}redacted_thinking", re.IGNORECASE)
_REASONING: Final = b'"reasoning"'
_TOOL_IDS: Final = {"tool_use": "id", "tool_result": "tool_use_id"}
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECTS: Final = msgspec.json.Decoder(list[Row])


class _Item(msgspec.Struct):
    type: Any = None


_ITEM: Final = msgspec.json.Decoder(_Item)


def without_foreign(call: Call, refusal: bytes) -> Call:
    """`call` without the reasoning of its history, if the `refusal` is of that, with other ids of its calls, or without
    thinking in this turn; itself if there is nothing to change. Raises InvalidRequest."""
    is_response = call.endpoint is Endpoint.RESPONSES
    if refuses_ids(refusal):
        changed, what = (_with_short_call_ids if is_response else _with_short_tool_ids)(call), "ids of calls shortened"
    elif is_response:
        changed, what = _without_reasoning(call) if _SEALED.search(refusal) else call, "reasoning left out"
    elif _UNTHOUGHT.search(refusal):
        changed, what = _unthinking(call), "no thinking in a turn that began without"
    else:
        is_foreign = refuses_signatures(refusal)
        changed, what = without_thinking(call, lambda block: True) if is_foreign else call, "reasoning left out"
    if changed is not call:
        note_changes(call, what)
    return changed


def _unthinking(call: Call) -> Call:
    asked = call.body[slice(*call.summary.spans.get("thinking", (0, 0)))]
    thinks = b'"type"' in asked and b'"disabled"' not in asked
    return _replaced(call, "thinking", b'{"type":"disabled"}') if thinks else call


def _with_short_call_ids(call: Call) -> Call:
    """A request of Responses."""
    span = call.summary.spans.get("input")
    try:
        rows = decoded_rows(_OBJECTS, call.body[slice(*span)]) if span is not None else []
        kept = [shortened(row, "call_id") for row in rows]
    except DecodeErrors:
        return call
    if all(one is other for one, other in zip(kept, rows, strict=True)):
        return call
    return _replaced(call, "input", encoder(call.is_large)(kept))


def _with_short_tool_ids(call: Call) -> Call:
    """A request of Messages."""
    turns = decoded_value(call, "messages")
    is_changed = False
    for block in (block for turn in turns if isinstance(turn, dict) for block in _blocks(turn.get("content"))):
        key = _TOOL_IDS.get(str(block.get("type")), "")
        if isinstance(id_ := block.get(key), str) and (short := short_id(id_)) != id_:
            block[key], is_changed = short, True
    return _replaced(call, "messages", encoder(call.is_large)(turns)) if is_changed else call


def _blocks(content: object) -> list[dict[str, Any]]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _replaced(call: Call, key: str, value: bytes) -> Call:
    body, spans = spliced(call.body, call.summary.spans, {key: value})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))


def _without_reasoning(call: Call) -> Call:
    span = call.summary.spans.get("input")
    if span is None or not contains(call.body, _REASONING, *span):
        return call
    try:
        rows = decoded_rows(_ROWS, call.body[slice(*span)])
    except DecodeErrors:  # a string
        return call
    kept = [row for row in rows if not _is_reasoning(row)]
    if len(kept) == len(rows):
        return call
    return _replaced(call, "input", encoder(call.is_large)(kept))


def _is_reasoning(item: msgspec.Raw) -> bool:
    try:
        return bool(_ITEM.decode(item).type == "reasoning")
    except DecodeErrors:
        return False
