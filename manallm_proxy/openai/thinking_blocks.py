"""Leaves thinking blocks out of a request of Anthropic's Messages, or puts blank ones in.

Anthropic refuses signatures that are not its own, and blocks without one. Servers that sign nothing want theirs back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import contains, decode, encode_whole
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request_fields import Fields
from manallm_proxy.openai.rows import Row, changed_rows, read_rows, with_value

_THOUGHT: Final = b'thinking"'
_KINDS: Final = ("thinking", "redacted_thinking")
_ASSISTANT: Final = msgspec.Raw(b'"assistant"')
_CALL: Final = "tool_use"
_NOTHING: Final = msgspec.Raw(b"[]")
_BLANK: Final[Row] = {
    "type": msgspec.Raw(b'"thinking"'),
    "thinking": msgspec.Raw(b'" "'),
    "signature": msgspec.Raw(b'""'),
}
"""In place of a thought that there was not: an empty text counts as none."""


def without_thinking(call: Call, is_left_out: Callable[[Fields], bool]) -> Call:
    """`call` without the blocks that are left out, by their type and signature, and itself if there are none.

    A turn of which nothing is left goes with them. What is malformed is left for the provider to refuse.
    """
    if not contains(call.body, _THOUGHT):
        return call
    lacks_thought = False

    def change(turns: list[Row]) -> list[Row]:
        nonlocal lacks_thought
        kept = [_kept(turn, is_left_out) for turn in turns]
        lacks_thought = _lacks_thought(turns, kept)
        return [one for one, turn in zip(kept, turns, strict=True) if one is turn or one["content"] != _NOTHING]

    changed = changed_rows(call, "messages", change)
    if changed is call:
        return call
    if lacks_thought:
        changed = with_value(changed, "thinking", b'{"type":"disabled"}')
    return evolve(changed, is_large=is_large(changed.body))


def is_unsigned(block: Fields) -> bool:
    """Whether a block is a thought without a signature."""
    return block.get("type") == "thinking" and not block.get("signature")


def with_blank_thinking(call: Call) -> Call:
    """`call` with a blank thought before all calls that have none; itself if there are none."""
    changed = changed_rows(call, "messages", lambda turns: [*map(_with_thought, turns)])
    return changed if changed is call else evolve(changed, is_large=is_large(changed.body))


def _with_thought(turn: Row) -> Row:
    blocks = _blocks(turn) if turn.get("role") == _ASSISTANT else []
    kinds = [_kind(block) for block in blocks]
    if _CALL not in kinds or any(kind in _KINDS for kind in kinds):
        return turn
    return {**turn, "content": msgspec.Raw(encode_whole([_BLANK, *blocks]))}


def _kept(turn: Row, is_left_out: Callable[[Fields], bool]) -> Row:
    """What is left of `turn`; itself if that is all."""
    blocks = _blocks(turn) if turn.get("role") == _ASSISTANT else []
    kept = [block for block in blocks if _kind(block) not in _KINDS or not is_left_out(_decoded(block))]
    return turn if len(kept) == len(blocks) else {**turn, "content": msgspec.Raw(encode_whole(kept))}


def _blocks(turn: Row) -> list[Row]:
    content = bytes(turn.get("content", _NOTHING))
    return read_rows(content) if content.startswith(b"[") else []


def _kind(block: Row) -> Any:
    return decode(block["type"]) if "type" in block else None


def _decoded(block: Row) -> Fields:
    return {key: decode(block[key]) for key in ("type", "signature") if key in block}


def _lacks_thought(turns: list[Row], kept: list[Row]) -> bool:
    """Whether the model's latest turn has lost thinking before a call: then Anthropic refuses to continue thinking."""
    said = [n for n, turn in enumerate(turns) if turn.get("role") == _ASSISTANT]
    if not said or kept[said[-1]] is turns[said[-1]]:
        return False
    kinds = [_kind(block) for block in _blocks(kept[said[-1]])]
    return _CALL in kinds and kinds[0] not in _KINDS
