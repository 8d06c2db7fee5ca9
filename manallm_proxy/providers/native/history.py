"""Takes out of a history what another model or account wrote for itself, once the provider has refused it.

A client sends back all that it was given, and relayed reasoning does not say whose it is: OpenAI answers "The encrypted
content could not be verified", Anthropic "Invalid `signature` in `thinking` block". The ids of other providers' calls
may be too long for the one, and have characters that the other refuses ("functions.Bash:0"). Anthropic's models do not
go on thinking after a call of another model that did not ("Expected `thinking` or `redacted_thinking`"). Servers that
sign nothing want their thinking back, and Anthropic refuses it; DeepSeek, Kimi and Xiaomi refuse calls without any
("must be passed back").
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import encode_whole
from manallm_proxy.openai.rows import Row, are_same, changed_rows, read_rows, with_value
from manallm_proxy.openai.thinking_blocks import is_unsigned, with_blank_thinking, without_thinking
from manallm_proxy.providers.mending.history import (
    note_changes,
    refuses_ids,
    refuses_signatures,
    shortened,
)
from manallm_proxy.providers.mending.turns import DEVELOPER, ORDERS, refused_order, without_developer

_SEALED: Final = re.compile(
    rb"invalid_encrypted_content|encrypted[ _]content.{0,200}could not be (?:verified|decrypted)", re.DOTALL
)
_UNTHOUGHT: Final = re.compile(rb"expected \W{0,2}thinking\W{1,4}or \W{0,2}redacted_thinking", re.IGNORECASE)
_MISSED: Final = re.compile(
    rb"\b(?:reasoning_content|thinking)\b[^{}]{0,80}?(?:must be passed back|is missing)", re.IGNORECASE
)
UNSIGNED, MISSED = "unsigned", "missed thinking"
"""What may be refused of thinking blocks, and is learned then: those without a signature, or that there are none."""
CONTRARY: Final = {UNSIGNED: (MISSED,), MISSED: (UNSIGNED,)}
DEVELOPERS: Final = "developer of input"
"""Likewise, of Responses: messages of a developer."""
_REASONING: Final = msgspec.Raw(b'"reasoning"')
_TOOL_IDS: Final = {b'"tool_use"': "id", b'"tool_result"': "tool_use_id"}
_NULL: Final = msgspec.Raw(b"null")


def without_foreign(call: Call, refusal: bytes) -> Call:
    """`call` without the reasoning of its history, if the `refusal` is of that, with other ids of its calls, or without
    thinking in this turn; itself if there is nothing to change."""
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


def refuses_developer(call: Call, refusal: bytes) -> bool:
    """Whether a `refusal` of Responses is of a developer's messages."""
    return call.endpoint is Endpoint.RESPONSES and refused_order(refusal) == DEVELOPER


def without_developers(call: Call) -> Call:
    """A request of Responses without messages of a developer; itself if it has none."""
    changed = changed_rows(call, "input", without_developer)
    if changed is not call:
        note_changes(call, ORDERS[DEVELOPER])
    return changed


def refused_thinking(refusal: bytes) -> str:
    """What a `refusal` of Messages is about: `UNSIGNED` or `MISSED`; empty: neither."""
    return UNSIGNED if refuses_signatures(refusal) else MISSED if _MISSED.search(refusal) else ""


def with_accepted_thinking(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused` of its thinking blocks; itself if there is nothing to change."""
    changed = without_thinking(call, is_unsigned) if UNSIGNED in refused else call
    if changed is not call:
        note_changes(call, "reasoning left out")
    blank = with_blank_thinking(changed) if MISSED in refused else changed
    if blank is not changed:
        note_changes(call, "blanks in place of reasoning that was not there")
    return blank


def _unthinking(call: Call) -> Call:
    asked = call.body[slice(*call.summary.spans.get("thinking", (0, 0)))]
    thinks = b'"type"' in asked and b'"disabled"' not in asked
    return with_value(call, "thinking", b'{"type":"disabled"}') if thinks else call


def _with_short_call_ids(call: Call) -> Call:
    """A request of Responses."""
    return changed_rows(call, "input", lambda rows: [shortened(row, "call_id") for row in rows])


def _with_short_tool_ids(call: Call) -> Call:
    """A request of Messages."""
    return changed_rows(call, "messages", lambda rows: [*map(_with_short_ids, rows)])


def _with_short_ids(turn: Row) -> Row:
    content = turn.get("content", _NULL)
    if bytes(memoryview(content)[:1]) != b"[":
        return turn
    blocks = read_rows(bytes(content))
    kept = [shortened(block, _TOOL_IDS.get(bytes(block.get("type", _NULL)), "")) for block in blocks]
    return turn if are_same(kept, blocks) else {**turn, "content": msgspec.Raw(encode_whole(kept))}


def _without_reasoning(call: Call) -> Call:
    return changed_rows(call, "input", lambda rows: [row for row in rows if row.get("type") != _REASONING])
