"""The order of messages that servers want: their chat templates refuse any other.

DeepSeek's server and the templates of many models know no developer ("unknown variant `developer`", "Unexpected
message role"), who is the system by another name. Mistral's models have to answer a tool's result before a user says
something, in Anthropic's API one turn with it ("Unexpected role 'user' after role 'tool'"). Gemma's and Devstral's want
turns that alternate, Qwen's from 3.5 on one system message; Codex writes two of them and two of a user before each
conversation.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

import msgspec

from manallm_proxy.contract.spliced import Part
from manallm_proxy.openai.joined import joined_parts
from manallm_proxy.openai.json_object import DecodeErrors, encode_whole
from manallm_proxy.openai.request_fields import Fields
from manallm_proxy.openai.rows import Row, read_rows
from manallm_proxy.openai.sliced import trimmed

TURNS: Final = "turns"
"""What may be refused: words of a user after a tool's result."""
ALTERNATE: Final = "alternate"
"""Likewise: two turns of one role, and all that follows."""
ONE_SYSTEM: Final = "one_system"
"""Likewise: system messages other than the first one."""
DEVELOPER: Final = "developer"
"""Likewise: messages of a developer."""
ORDERS: Final = {
    DEVELOPER: "messages of a developer are the system's",
    ONE_SYSTEM: "system messages joined",
    TURNS: "an answer put between a tool's result and the user's words",
    ALTERNATE: "turns of one role joined",
}
"""What is done about each, in this order."""
_REFUSALS: Final = {
    DEVELOPER: re.compile(
        rb"\bunknown variant \W{0,2}developer\b|\btag \W{0,2}developer\b|\bUnexpected message role\b"
        rb"|\bdeveloper\W{1,4}(?:role )?is not (?:supported|one of)"
    ),
    TURNS: re.compile(rb"Unexpected role \W{0,2}user\W{1,4}after role \W{0,2}tool"),
    ALTERNATE: re.compile(rb"\broles must alternate\b|\bmessage\(s\) should alternate with\b", re.IGNORECASE),
    ONE_SYSTEM: re.compile(rb"\bSystem message must be (?:at the beginning|the first)", re.IGNORECASE),
}
_USER, _TOOL, _ASSISTANT = msgspec.Raw(b'"user"'), msgspec.Raw(b'"tool"'), msgspec.Raw(b'"assistant"')
_SYSTEMS: Final = (msgspec.Raw(b'"system"'), msgspec.Raw(b'"developer"'))
_ANSWER: Final = {"role": _ASSISTANT, "content": msgspec.Raw(b'"OK."')}
_PLAIN: Final = frozenset({"role", "content"})
_NULL: Final = msgspec.Raw(b"null")
_TEXT_PART: Final = b'{"type":"text","text":"'


def refused_order(refusal: bytes) -> str:
    """Which of `ORDERS` a `refusal` is about; empty: none."""
    return next((order for order, pattern in _REFUSALS.items() if pattern.search(refusal) is not None), "")


def ordered(rows: list[Row], refused: Collection[str]) -> list[Row]:
    """`rows` without the orders that are `refused`. Rows with more than words are not joined. May raise one of
    `DecodeErrors`."""
    if DEVELOPER in refused:
        rows = without_developer(rows)
    if ALTERNATE in refused or ONE_SYSTEM in refused:
        rows = _with_one_system(rows)
    if ALTERNATE in refused or TURNS in refused:
        rows = [*_filled(rows)]
    return _joined(rows) if ALTERNATE in refused else rows


def in_order(messages: list[Fields], refused: Collection[str]) -> list[Any]:
    """`messages` as `ordered` returns them; themselves where they are none of a chat, for the provider to refuse."""
    if not refused:
        return messages
    try:
        return ordered(read_rows(encode_whole(messages)), refused)
    except DecodeErrors:
        return messages


def without_developer(rows: list[Row]) -> list[Row]:
    """`rows` with what a developer says said by the system."""
    return [{**row, "role": _SYSTEMS[0]} if row.get("role") == _SYSTEMS[1] else row for row in rows]


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
    """Those at the beginning become one; a later one, which is about its place, is said there by the user, and so is
    one that has more than words."""
    is_system = [row.get("role") in _SYSTEMS for row in rows]
    first = is_system.index(False) if False in is_system else len(rows)
    more = next((n for n in range(1, first) if not rows[n].keys() <= _PLAIN), first)
    head = [_as_one(rows[:more], rows[0])] if more else []
    return head + [{**rows[n], "role": _USER} if is_system[n] else rows[n] for n in range(more, len(rows))]


def _joined(rows: list[Row]) -> list[Row]:
    """Messages with neighbours of one role made one, the model's up to its tool calls."""
    groups: list[list[Row]] = []
    for row in rows:
        before = groups[-1][-1] if groups else {}
        role = row.get("role")
        is_plain = before.keys() <= _PLAIN and (role == _ASSISTANT or row.keys() <= _PLAIN)
        if role in (_USER, _ASSISTANT) and before.get("role") == role and is_plain:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_as_one(group, group[-1]) for group in groups]


def _as_one(rows: list[Row], row: Row) -> Row:
    """`row` with what all of `rows` say. Raises DecodeError for content that is neither a text nor a list of parts."""
    if len(rows) == 1:
        return row
    said = [inner for each in rows if (inner := _inner(each.get("content", _NULL)))[1]]
    if all(quote == b'"' for quote, _ in said):
        return {**row, "content": _between(b'"', [text for _, text in said], rb"\n\n", b'"')}
    parts = [inner if quote == b"[" else joined_parts([_TEXT_PART, inner, b'"}']) for quote, inner in said]
    return {**row, "content": _between(b"[", parts, b",", b"]")}


def _inner(content: msgspec.Raw) -> tuple[bytes, Part]:
    """The first byte of a text or a list, and what is inside of it."""
    view = memoryview(content)
    first = bytes(view[:1])
    if first == b"[":
        start, end = trimmed(view, 1, len(view) - 1)
        return first, view[start:end]
    if first not in (b'"', b"n"):
        raise msgspec.DecodeError("a message's content is neither a text nor a list of parts")
    return first, view[1:-1] if first == b'"' else b""


def _between(opened: bytes, contents: list[Part], between: bytes, closed: bytes) -> msgspec.Raw:
    """The `contents` of texts, or of lists, as one: their bytes are kept, so that it costs no more than a copy."""
    parts: list[Part] = [opened]
    for content in contents:
        parts += (content, between)
    return msgspec.Raw(joined_parts([*(parts[:-1] if contents else parts), closed]))
