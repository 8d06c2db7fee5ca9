"""Leaves out of a request of Messages what only saves its client something, once a model has refused it.

Claude Code sends the same to all models: to edit a long history (``context_management``), to load tools later, to keep
a prompt for an hour, an effort. Older models and the servers of others refuse these one by one ("context_management:
Extra inputs are not permitted"). Nor do all of Claude's models agree on how to think: the newest refuse a budget
("thinking.type.enabled" is not supported), older ones ``adaptive``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode, encode_whole, encoder, split_object
from manallm_proxy.openai.reasoning import effort_of_budget
from manallm_proxy.openai.rows import Row, changed_rows, read_rows, with_value
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.providers.max_tokens import LEAST_BUDGET
from manallm_proxy.providers.mending.unknown_names import is_unknown

BUDGETS, ADAPTIVE, EFFORT, THIS_EFFORT = "thinking.enabled", "thinking.adaptive", "output_config.effort", "this effort"
EDITING, THIS_EDITING = "context_management", "this context_management"
OF_TOOLS: Final = ("defer_loading", "eager_input_streaming", "input_examples")
"""Members of tools, each of which may be refused."""
CACHING, HOURS = "cache_control", "cache_control.ttl"
HINTS: Final = frozenset({BUDGETS, ADAPTIVE, EFFORT, EDITING, *OF_TOOLS, CACHING, HOURS})
"""What may be learned of a model."""
_OF_ONE: Final = frozenset({THIS_EFFORT, THIS_EDITING})
"""What is left out of the one request: its value was refused, or something inside of it."""
_REFUSED: Final = {
    BUDGETS: rb"thinking\.type\.enabled\W{1,4}is not supported",
    ADAPTIVE: rb"(?:adaptive thinking|thinking\.type\.adaptive)\W{1,4}is not supported|tag 'adaptive' found",
    EFFORT: rb"not support (?:the effort parameter|reasoning effort)|\boutput_config(?:\.effort)?: Extra inputs",
    THIS_EFFORT: rb"\boutput_config\.effort\b.{0,40}not supported|cannot be disabled when reasoning_effort is set",
}
_PATTERNS: Final = {what: re.compile(words, re.IGNORECASE) for what, words in _REFUSED.items()}
_NAMED: Final = re.compile(rb"\b(%b)\b(\.?)" % "|".join((EDITING, *OF_TOOLS)).encode())
_CACHING: Final = re.compile(rb"\bcache_control(\.(?:ephemeral\.)?(?:ttl|scope))?\b")
_BUDGET: Final = {"low": 2048, "medium": 8192, "high": 16_384}
_MOST_BUDGET: Final = 31_999
_EPHEMERAL: Final = msgspec.Raw(b'{"type":"ephemeral"}')
_HOLDERS: Final = ("tools", "system", "messages")


def refused_hint(call: Call, refusal: bytes) -> str:
    """Which hint a `refusal` is about; empty: none."""
    if call.endpoint is Endpoint.RESPONSES:
        return ""
    for what, pattern in _PATTERNS.items():
        if pattern.search(refusal):
            return what
    if not is_unknown(refusal):
        return ""
    if named := _NAMED.search(refusal):
        return THIS_EDITING if named[1] == EDITING.encode() and named[2] else named[1].decode()
    caching = _CACHING.search(refusal)
    return "" if caching is None else HOURS if caching[1] else CACHING


def without_hints(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused`; itself if there is nothing to change, or if it is malformed."""
    try:
        return _without_hints(call, refused)
    except DecodeErrors:
        return call


def _without_hints(call: Call, refused: Collection[str]) -> Call:
    changed = call
    for what in sorted((HINTS | _OF_ONE).intersection(refused)):
        before, changed = changed, _without_hint(changed, what)
        if changed is not before:
            call.remarks.append(f"not sent on: {what}, which the target refuses")
    return changed


def _without_hint(call: Call, refused: str) -> Call:
    if refused in (BUDGETS, ADAPTIVE):
        return _thinking_otherwise(call, refused)
    if refused in (EFFORT, THIS_EFFORT):
        return _without_effort(call)
    if refused in (EDITING, THIS_EDITING):
        return _without_member(call, EDITING)
    if refused in OF_TOOLS:
        return changed_rows(call, "tools", lambda rows: [_left(row, refused) for row in rows])
    for key in _HOLDERS:
        call = changed_rows(call, key, lambda rows: [_cached(row, refused) for row in rows])
    return call


def _thinking_otherwise(call: Call, refused: str) -> Call:
    """`call` with thinking in the form that the model knows, as long as the client's."""
    asked = _value(call, "thinking")
    config = _value(call, "output_config")
    if not isinstance(asked, dict) or asked.get("type") != refused.rpartition(".")[2]:
        return call
    config = config if isinstance(config, dict) else {}
    if refused == ADAPTIVE:
        effort, most = config.get("effort", "high"), _value(call, "max_tokens")
        budget = _BUDGET.get(effort, _MOST_BUDGET) if isinstance(effort, str) else LEAST_BUDGET
        budget = min(budget, most // 2) if type(most) is int else budget
        thinking = {"type": "enabled", "budget_tokens": budget} if budget >= LEAST_BUDGET else {"type": "disabled"}
        return with_value(call, "thinking", encode(thinking))
    given = asked.get("budget_tokens")
    if "effort" not in config and type(given) is int:
        call = with_value(call, "output_config", encode({**config, "effort": effort_of_budget(given)}))
    shown = asked.get("display", "summarized")  # a budget's thoughts are shown, if nothing is said
    return with_value(call, "thinking", encode({"type": "adaptive", "display": shown}))


def _without_effort(call: Call) -> Call:
    config = _value(call, "output_config")
    if not isinstance(config, dict) or "effort" not in config:
        return call
    left = {key: value for key, value in config.items() if key != "effort"}
    return with_value(call, "output_config", encode(left)) if left else _without_member(call, "output_config")


def _without_member(call: Call, key: str) -> Call:
    if key not in call.summary.spans:
        return call
    (asked,) = read_rows(b"[%b]" % call.body)
    body = encoder(len(call.body) > LARGE_BYTES)(_left(asked, key))
    return evolve(call, body=body, summary=evolve(call.summary, spans=split_object(body)[1]))


def _left(row: Row, key: str) -> Row:
    """`row` without that member; itself if it has none."""
    return row if key not in row else {name: value for name, value in row.items() if name != key}


def _cached(row: Row, refused: str) -> Row:
    """A tool, a block or a turn, and what is inside of it, with caching as it is not refused."""
    if CACHING in row:
        if refused == CACHING:
            row = _left(row, CACHING)
        elif row[CACHING] != _EPHEMERAL:
            row = {**row, CACHING: _EPHEMERAL}
    content = bytes(row.get("content", b""))
    if not content.startswith(b"[") or CACHING.encode() not in content:
        return row
    blocks = read_rows(content)
    return {**row, "content": msgspec.Raw(encode_whole([_cached(block, refused) for block in blocks]))}


def _value(call: Call, key: str) -> Any:
    span = call.summary.spans.get(key)
    return None if span is None else decode(call.body[slice(*span)])
