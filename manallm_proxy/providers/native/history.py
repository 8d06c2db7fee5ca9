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

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import DecodeErrors, encoder
from manallm_proxy.openai.request_fields import decoded_value
from manallm_proxy.openai.rows import Row, read_rows, with_rows, with_value
from manallm_proxy.openai.thinking_blocks import without_thinking
from manallm_proxy.providers.history import (
    note_changes,
    refuses_ids,
    refuses_signatures,
    short_id,
    shortened,
)

_SEALED: Final = re.compile(
    rb"invalid_encrypted_content|encrypted[ _]content.{0,200}could not be (?:verified|decrypted)", re.DOTALL
)
_UNTHOUGHT: Final = re.compile(rb"expected \W{0,2}thinking\W{1,4}or \W{0,2}redacted_thinking", re.IGNORECASE)
_REASONING: Final = msgspec.Raw(b'"reasoning"')
_TOOL_IDS: Final = {"tool_use": "id", "tool_result": "tool_use_id"}


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
    return with_value(call, "thinking", b'{"type":"disabled"}') if thinks else call


def _with_short_call_ids(call: Call) -> Call:
    """A request of Responses."""
    rows = _items(call)
    kept = [shortened(row, "call_id") for row in rows]
    return _with_items(call, rows, kept)


def _with_short_tool_ids(call: Call) -> Call:
    """A request of Messages."""
    turns = decoded_value(call, "messages")
    is_changed = False
    for block in (block for turn in turns if isinstance(turn, dict) for block in _blocks(turn.get("content"))):
        key = _TOOL_IDS.get(str(block.get("type")), "")
        if isinstance(id_ := block.get(key), str) and (short := short_id(id_)) != id_:
            block[key], is_changed = short, True
    return with_value(call, "messages", encoder(call.is_large)(turns)) if is_changed else call


def _blocks(content: object) -> list[dict[str, Any]]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _without_reasoning(call: Call) -> Call:
    rows = _items(call)
    return _with_items(call, rows, [row for row in rows if row.get("type") != _REASONING])


def _items(call: Call) -> list[Row]:
    """The history of a request of Responses; none if it is malformed, or a text."""
    try:
        return read_rows(call.body, call.summary.spans["input"]) if "input" in call.summary.spans else []
    except DecodeErrors:
        return []


def _with_items(call: Call, rows: list[Row], kept: list[Row]) -> Call:
    """`call` with what is `kept` of its `rows`; itself if that is all."""
    if len(kept) == len(rows) and all(one is other for one, other in zip(kept, rows, strict=True)):
        return call
    rows.clear()
    return with_rows(call, "input", kept)
