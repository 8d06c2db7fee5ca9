"""Leaves thinking blocks out of a request of Anthropic's Messages: a server refuses signatures that are not its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import contains, encoder
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request import spliced
from manallm_proxy.openai.request_fields import Fields, decoded_value

_THOUGHT: Final = b'thinking"'
_KINDS: Final = ("thinking", "redacted_thinking")


def without_thinking(call: Call, is_left_out: Callable[[Fields], bool]) -> Call:
    """`call` without the blocks that are left out, and itself if there are none. Raises InvalidRequest.

    A turn of which nothing is left goes with them. A malformed one is left for the provider to refuse.
    """
    if not contains(call.body, _THOUGHT):
        return call
    turns = decoded_value(call, "messages")
    kept = [_kept(turn, is_left_out) for turn in turns]
    if all(one is other for one, other in zip(kept, turns, strict=True)):
        return call
    left = [one for one, turn in zip(kept, turns, strict=True) if one is turn or one["content"]]
    values = {"messages": encoder(is_large(call.body))(left)}
    if _lacks_thought(turns, kept):
        values["thinking"] = b'{"type":"disabled"}'
    body, spans = spliced(call.body, call.summary.spans, values)
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans), is_large=is_large(body))


def _kept(turn: Any, is_left_out: Callable[[Fields], bool]) -> Any:
    """What is left of `turn`; itself if that is all."""
    blocks = turn.get("content") if isinstance(turn, dict) and turn.get("role") == "assistant" else None
    if not isinstance(blocks, list):
        return turn
    kept = [b for b in blocks if not (isinstance(b, dict) and b.get("type") in _KINDS and is_left_out(b))]
    return turn if len(kept) == len(blocks) else {**turn, "content": kept}


def _lacks_thought(turns: list[Any], kept: list[Any]) -> bool:
    """Whether the model's latest turn has lost thinking before a call: then Anthropic refuses to continue thinking."""
    said = [n for n, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "assistant"]
    if not said or kept[said[-1]] is turns[said[-1]]:
        return False
    turn = kept[said[-1]]
    kinds = [block.get("type") for block in turn["content"] if isinstance(block, dict)]
    return "tool_use" in kinds and kinds[0] not in _KINDS
