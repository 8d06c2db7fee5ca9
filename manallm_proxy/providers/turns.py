"""The order of messages that servers want: their chat templates refuse any other.

Mistral's models have to answer a tool's result before a user says something, in Anthropic's API one turn with it
("Unexpected role 'user' after role 'tool'"). Gemma's and Devstral's want turns that alternate, Qwen's from 3.5 on one
system message; Codex writes two of them and two of a user before each conversation.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import msgspec

from manallm_proxy.openai.json_object import decode, encode

TURNS: Final = "turns"
"""What may be refused: words of a user after a tool's result."""
ALTERNATE: Final = "alternate"
"""Likewise: two turns of one role, and all that follows."""
ONE_SYSTEM: Final = "one_system"
"""Likewise: system messages other than the first one."""
ORDERS: Final = {
    TURNS: "an answer put between a tool's result and the user's words",
    ALTERNATE: "turns of one role joined",
    ONE_SYSTEM: "system messages joined",
}
"""What is done about each."""
_REFUSALS: Final = {
    TURNS: re.compile(rb"Unexpected role \W{0,2}user\W{1,4}after role \W{0,2}tool"),
    ALTERNATE: re.compile(rb"\broles must alternate\b|\bmessage\(s\) should alternate with\b", re.IGNORECASE),
    ONE_SYSTEM: re.compile(rb"\bSystem message must be (?:at the beginning|the first)", re.IGNORECASE),
}
Row = dict[str, msgspec.Raw]
_USER, _TOOL, _ASSISTANT = msgspec.Raw(b'"user"'), msgspec.Raw(b'"tool"'), msgspec.Raw(b'"assistant"')
_SYSTEMS: Final = (msgspec.Raw(b'"system"'), msgspec.Raw(b'"developer"'))
_ANSWER: Final = {"role": _ASSISTANT, "content": msgspec.Raw(b'"OK."')}
_PLAIN: Final = frozenset({"role", "content"})
_Content = str | list[msgspec.Raw] | None


def refused_order(refusal: bytes) -> str:
    """Which of `ORDERS` a `refusal` is about; empty: none."""
    return next((order for order, pattern in _REFUSALS.items() if pattern.search(refusal) is not None), "")


def ordered(rows: list[Row], refused: Collection[str]) -> list[Row]:
    """`rows` without the orders that are `refused`. Rows with more than words are not joined. May raise one of
    `DecodeErrors`."""
    if ALTERNATE in refused or ONE_SYSTEM in refused:
        rows = _with_one_system(rows)
    if ALTERNATE in refused or TURNS in refused:
        rows = [*_filled(rows)]
    return _joined(rows) if ALTERNATE in refused else rows


def _filled(rows: Iterable[Row]) -> Iterator[Row]:
    """Messages with an answer between a tool's result and what a user says after it."""
    before = None
    for row in rows:
        role = row.get("role")
        if before == _TOOL and role == _USER:
            yield _ANSWER
        yield row
        before = role


def _with_one_system(rows: list[Row]) -> list[Row]:
    """Those at the beginning become one; a later one, which is about its place, is said there by the user."""
    first = next((n for n, row in enumerate(rows) if row.get("role") not in _SYSTEMS), len(rows))
    head = rows[:1] if first else []
    for row in rows[1:first]:
        head = [_both(head[0], row, head[0])]
    return head + [{**row, "role": _USER} if row.get("role") in _SYSTEMS else row for row in rows[first:]]


def _joined(rows: list[Row]) -> list[Row]:
    """Messages with neighbours of one role made one, the model's up to its tool calls."""
    joined: list[Row] = []
    for row in rows:
        before = joined[-1] if joined else {}
        role = row.get("role")
        is_plain = before.keys() == _PLAIN and (role == _ASSISTANT or row.keys() == _PLAIN)
        if role in (_USER, _ASSISTANT) and before.get("role") == role and is_plain:
            joined[-1] = _both(before, row, row)
        else:
            joined.append(row)
    return joined


def _both(one: Row, other: Row, row: Row) -> Row:
    """`row` with what two messages say."""
    contents = [decode(each.get("content", msgspec.Raw(b"null")), type=_Content) for each in (one, other)]
    said = [content for content in contents if content]
    texts = [content for content in said if isinstance(content, str)]
    if len(texts) == len(said):
        return {**row, "content": msgspec.Raw(encode("\n\n".join(texts)))}
    return {**row, "content": msgspec.Raw(encode([part for content in said for part in _parts(content)]))}


def _parts(content: str | list[msgspec.Raw]) -> list[msgspec.Raw]:
    return [msgspec.Raw(encode({"type": "text", "text": content}))] if isinstance(content, str) else content
