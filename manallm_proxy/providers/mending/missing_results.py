"""Puts results into a history whose calls have none, once the provider has refused that.

A client that was interrupted keeps the call and not its result, and sends both back with every turn: OpenAI ("must be
followed by tool messages", "No tool output found for function call"), Anthropic ("`tool_use` ids were found without
`tool_result` blocks"), Mistral ("Not the same number of function calls and responses"), Gemini. The conversation would
be over.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import decode, encode, encode_whole
from manallm_proxy.openai.rows import Row, changed_rows, read_rows
from manallm_proxy.providers.mending.history import note_changes

_REFUSED: Final = re.compile(
    rb"must be followed by tool messages|did not have response messages|\bids were found without \W{0,2}tool_result"
    rb"|No tool output found for|Not the same number of function calls and responses"
    rb"|tool call result does not follow tool call|number of function response parts is equal",
    re.IGNORECASE,
)
_NO_RESULT: Final = "(There is no result: the call was interrupted.)"
_RESULT: Final = msgspec.Raw(encode(_NO_RESULT))
_TOOL, _USER, _ASSISTANT = msgspec.Raw(b'"tool"'), msgspec.Raw(b'"user"'), msgspec.Raw(b'"assistant"')
_TOOL_USE, _TOOL_RESULT = msgspec.Raw(b'"tool_use"'), msgspec.Raw(b'"tool_result"')
_OUTPUTS: Final = {
    b'"function_call"': msgspec.Raw(b'"function_call_output"'),
    b'"custom_tool_call"': msgspec.Raw(b'"custom_tool_call_output"'),
}
_NULL: Final = msgspec.Raw(b"null")
_TRUE: Final = msgspec.Raw(b"true")


def misses_results(refusal: bytes) -> bool:
    """Whether a `refusal` is of calls without results."""
    return _REFUSED.search(refusal) is not None


def with_results(call: Call) -> Call:
    """`call` with a result for each of its history's calls; itself if all have one."""
    match call.endpoint:
        case Endpoint.CHAT:
            changed = changed_rows(call, "messages", _of_chat)
        case Endpoint.MESSAGES:
            changed = changed_rows(call, "messages", _of_messages)
        case Endpoint.RESPONSES:
            changed = changed_rows(call, "input", _of_responses)
        case _:
            return call
    if changed is not call:
        note_changes(call, "results for calls that had none")
    return changed


def _of_chat(rows: list[Row]) -> list[Row]:
    """Messages, each result after its call. A late one is moved there, if no call after it has the same id."""
    called: defaultdict[str, list[int]] = defaultdict(list)
    results: defaultdict[str, list[int]] = defaultdict(list)
    ids: list[dict[str, None]] = []
    for n, row in enumerate(rows):
        ids.append(dict.fromkeys(id_ for each in _calls(row) if (id_ := _id(each, "id")) is not None))
        for id_ in ids[n]:
            called[id_].append(n)
        if row.get("role") == _TOOL and (answered := _id(row, "tool_call_id")) is not None:
            results[answered].append(n)
    kept: list[Row] = []
    placed: set[int] = set()
    for n, row in enumerate(rows):
        if n in placed:
            continue
        kept.append(row)
        missed = ids[n]
        at = n + 1
        while missed and at < len(rows) and rows[at].get("role") == _TOOL:
            missed.pop(_id(rows[at], "tool_call_id") or "", None)
            kept.append(rows[at])
            placed.add(at)
            at += 1
        for id_ in missed:
            late = _next(results[id_], n, len(rows))
            if late < _next(called[id_], n, len(rows)) and late not in placed:
                placed.add(late)
                kept.append(rows[late])
            else:
                kept.append({"role": _TOOL, "tool_call_id": msgspec.Raw(encode(id_)), "content": _RESULT})
    return rows if len(kept) == len(rows) and all(map(_is, kept, rows)) else kept


def _next(places: list[int], after: int, end: int) -> int:
    """The first of the ascending `places` that is `after` one; `end` if there is none."""
    at = bisect_right(places, after)
    return places[at] if at < len(places) else end


def _is(one: Row, other: Row) -> bool:
    return one is other


def _of_messages(turns: list[Row]) -> list[Row]:
    """Turns, those after calls with all results."""
    kept: list[Row] = []
    missed: list[str] = []
    for turn in turns:
        is_users = turn.get("role") == _USER
        if missed and not is_users:
            kept.append({"role": _USER, "content": msgspec.Raw(encode_whole([*map(_interrupted, missed)]))})
            missed = []
        if missed:
            turn = _with_blocks(turn, missed)
        kept.append(turn)
        uses = _blocks(turn) if turn.get("role") == _ASSISTANT else []
        missed = [id_ for block in uses if block.get("type") == _TOOL_USE and (id_ := _id(block, "id")) is not None]
    if missed:
        kept.append({"role": _USER, "content": msgspec.Raw(encode_whole([*map(_interrupted, missed)]))})
    return kept


def _with_blocks(turn: Row, ids: list[str]) -> Row:
    """A user's turn with results for those of the calls that have none there."""
    blocks = _blocks(turn)
    given = {_id(block, "tool_use_id") for block in blocks if block.get("type") == _TOOL_RESULT}
    missed = [id_ for id_ in ids if id_ not in given]
    if not missed:
        return turn
    if not blocks and bytes(turn.get("content", _NULL)).startswith(b'"'):
        blocks = [{"type": msgspec.Raw(b'"text"'), "text": turn["content"]}]
    return {**turn, "content": msgspec.Raw(encode_whole([*map(_interrupted, missed), *blocks]))}


def _interrupted(id_: str) -> Row:
    return {"type": _TOOL_RESULT, "tool_use_id": msgspec.Raw(encode(id_)), "content": _RESULT, "is_error": _TRUE}


def _of_responses(items: list[Row]) -> list[Row]:
    """Items, each call with an output behind it."""
    given = {_id(item, "call_id") for item in items if item.get("type") in _OUTPUTS.values()}
    kept: list[Row] = []
    for item in items:
        kept.append(item)
        output = _OUTPUTS.get(bytes(item.get("type", _NULL)))
        if output is not None and (id_ := _id(item, "call_id")) is not None and id_ not in given:
            kept.append({"type": output, "call_id": item["call_id"], "output": _RESULT})
    return kept


def _calls(row: Row) -> list[Row]:
    return read_rows(bytes(row["tool_calls"])) if row.get("tool_calls", _NULL) != _NULL else []


def _blocks(turn: Row) -> list[Row]:
    content = bytes(turn.get("content", _NULL))
    return read_rows(content) if content.startswith(b"[") else []


def _id(row: Row, key: str) -> str | None:
    """The id under `key`; None if there is none, or no text."""
    given = bytes(row.get(key, _NULL))
    return decode(given, type=str) if given.startswith(b'"') else None
