"""Replaces arguments of calls in a history that are no JSON object, once the provider has refused them.

A model wrote them once, cut by its length or with a quote too many, and the client sends them back with every turn.
vLLM reads them as JSON for its template ("Expecting ',' delimiter: line 1 column 54 (char 53)"), so do llama.cpp (with
500) and MiniMax ("invalid function arguments json string"): the conversation would be over.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import decode, encode_whole, object_bytes
from manallm_proxy.openai.rows import Row, are_same, changed_rows, read_rows
from manallm_proxy.providers.mending.history import note_changes

_REFUSED: Final = re.compile(
    rb"\(char \d{1,9}\)|parse[_ ]error|\barguments\b.{0,80}\bjson\b|\bjson\b.{0,80}\barguments\b"
    rb"|\binvalid (?:tool call|function) arguments",
    re.IGNORECASE | re.DOTALL,
)
_CALLS, _FUNCTION, _ARGUMENTS = "tool_calls", "function", "arguments"
_FUNCTION_CALL: Final = msgspec.Raw(b'"function_call"')
_NULL: Final = msgspec.Raw(b"null")
_EMPTY: Final = msgspec.Raw(b'"{}"')


def refuses_arguments(refusal: bytes) -> bool:
    """Whether a `refusal` may be of the arguments of a call. Some only say what is wrong with the JSON."""
    return _REFUSED.search(refusal) is not None


def with_whole_arguments(call: Call) -> Call:
    """`call`, a chat or a request of Responses, with ``{}`` for all arguments that are no JSON object; itself if there
    are none."""
    if call.endpoint is Endpoint.RESPONSES:
        changed = changed_rows(call, "input", lambda rows: [_item(row) for row in rows])
    else:
        changed = changed_rows(call, "messages", lambda rows: [_message(row) for row in rows])
    if changed is not call:
        note_changes(call, "sent as {}: arguments that are no JSON object")
    return changed


def _item(row: Row) -> Row:
    return _whole(row) if row.get("type", _NULL) == _FUNCTION_CALL else row


def _message(row: Row) -> Row:
    if row.get(_CALLS, _NULL) == _NULL:
        return row
    calls = read_rows(bytes(row[_CALLS]))
    kept = [_call(call) for call in calls]
    return row if are_same(kept, calls) else {**row, _CALLS: msgspec.Raw(encode_whole(kept))}


def _call(call: Row) -> Row:
    if _FUNCTION not in call:
        return call
    (function,) = read_rows(b"[%b]" % bytes(call[_FUNCTION]))
    kept = _whole(function)
    return call if kept is function else {**call, _FUNCTION: msgspec.Raw(encode_whole(kept))}


def _whole(holder: Row) -> Row:
    """`holder` with ``{}`` if its arguments are a text that is no object. An object in place of a text is left."""
    given = bytes(holder.get(_ARGUMENTS, _NULL))
    if not given.startswith(b'"') or object_bytes(decode(given, type=str)) is not None:
        return holder
    return {**holder, _ARGUMENTS: _EMPTY}
