"""Merges the steps of a streamed answer, including unknown members."""

from __future__ import annotations

import sys
from typing import Any, Final

from manallm_proxy.contract.records import define
from manallm_proxy.openai.reasoning_details import DETAILS, ReasoningDetails, details_in

_WORDS: Final = frozenset(
    {
        *("content", "text", "reasoning", "reasoning_content", "refusal", "thinking", "response", "arguments"),
        *("data", "transcript", "summary"),
    }
)
"""Members whose text is continued from step to step; any other text is repeated, or replaced by its last value."""
_BLOCKS: Final = frozenset({"content", "thinking"})
"""Members that may be a text or a list of blocks."""
_BLOCKS_THAT_GO_ON: Final = ("text", "thinking")


@define(eq=False)
class _Text:
    """A text in pieces, joined once: appending to a string would copy it for each piece."""

    pieces: list[str]


def merge(whole: dict[str, Any], step: dict[str, Any]) -> None:
    """Adds `step` to `whole`: continues texts and lists; list elements with an ``index`` are merged one by one.

    After the last step, `joined` turns the texts into strings.
    """
    for key, new in step.items():
        old = whole.get(key)
        if key in _BLOCKS and (isinstance(old, list) or isinstance(new, list)):
            whole[key] = rows = _as_blocks(old)
            for block in _as_blocks(new):
                _go_on(rows, block)
        elif key == DETAILS and isinstance(new, list):
            whole[key] = details = old if isinstance(old, ReasoningDetails) else ReasoningDetails(sys.maxsize)
            details.add(details_in({DETAILS: new}))
        elif isinstance(new, list):
            whole[key] = _rows(old, new)
        elif isinstance(new, dict):
            whole[key] = old if isinstance(old, dict) else {}
            merge(whole[key], new)
        elif isinstance(old, _Text) and isinstance(new, str):
            old.pieces.append(new)
        elif key in _WORDS and isinstance(old, str) and isinstance(new, str):
            whole[key] = _Text([old, new])
        elif new not in (None, "") or key not in whole:
            whole[key] = new


def _as_blocks(said: Any) -> list[Any]:
    """Mistral's: a model that thinks says lists of blocks, and then texts."""
    if isinstance(said, str | _Text):
        return [{"type": "text", "text": said}] if said else []
    return said if isinstance(said, list) else []


def _go_on(blocks: list[Any], block: Any) -> None:
    """Adds `block` to `blocks`, or to the last of them where both are texts or both are thoughts."""
    last = blocks[-1] if blocks else None
    if not isinstance(block, dict):
        blocks.append(block)
    elif isinstance(last, dict) and last.get("type") == block.get("type") in _BLOCKS_THAT_GO_ON:
        merge(last, block)
    else:
        new: dict[str, Any] = {}
        blocks.append(new)
        merge(new, block)


class _Rows(list[Any]):
    """Elements of a list that goes on, those with an ``index`` found by it, unless ids tell them apart: some servers
    number all calls of an answer 0."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int | str, dict[str, Any]] = {}

    def add(self, row: Any) -> None:
        if not isinstance(row, dict):
            self.append(row)
            return
        index = row.get("index")
        same = self._places.get(index) if isinstance(index, int | str) else None
        if same is None or (row.get("id") and same.get("id") and row["id"] != same["id"]):
            self.append(same := {})
            if isinstance(index, int | str):
                self._places[index] = same
        merge(same, row)


def _rows(old: object, new: list[Any]) -> _Rows:
    rows = old if isinstance(old, _Rows) else _Rows()
    for row in new:
        rows.add(row)
    return rows


def joined(value: Any) -> Any:
    """`value`, a part of what `merge` has made, with its texts as strings."""
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, ReasoningDetails):
        return value.whole()
    if isinstance(value, dict):
        return {key: joined(each) for key, each in value.items()}
    return [joined(each) for each in value] if isinstance(value, list) else value
