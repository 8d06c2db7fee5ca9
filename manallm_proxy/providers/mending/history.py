"""Takes out of a history what the provider refuses there, or writes it anew: its own, or what another provider wrote.

Kimi and DeepSeek refuse the result of a tool call without what was thought before it, so doors send it back to whoever
thought. Groq's server refuses such members ("property 'reasoning_content' is unsupported"), and clients of chats send
back all that they were given, whoever serves them next: Mistral and Fireworks refuse a call with Gemini's signature
("Extra inputs are not permitted"), Gemini and Anthropic one that another model wrote; Mistral refuses ids of calls that
are not of nine letters and digits, OpenAI those that are longer than 40 characters, Anthropic those with a dot.
Mistral's models refuse what a user says after a tool's result, in Anthropic's API one turn with it ("Unexpected role
'user' after role 'tool'"), DeepSeek's the turns of models that did not think ("reasoning_content in the thinking mode
must be passed back").
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import contains, decode, encode
from manallm_proxy.openai.rows import Row, are_same, changed_rows, read_rows
from manallm_proxy.providers.mending.turns import ORDERS, ordered, refused_order
from manallm_proxy.providers.mending.unknown_names import is_unknown

REASONING, SIGNATURES, IDS = "reasoning", "signatures", "ids"
"""What may be refused: members of a message, and two of its tool calls. The last one is not left out, but shortened."""
EXTRAS: Final = "extras"
"""Likewise, members of a message that come with answers and are empty most of the time; SDKs send them back."""
NEEDED: Final = {"needs_reasoning_content": "reasoning_content", "needs_reasoning": "reasoning"}
"""What may be missed: a member of a message."""
_MEMBERS: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details"})
_BESIDE: Final = frozenset({"annotations", "audio", "function_call", "images", "refusal"})
_EXTRA, _CALLS, _RESULT = "extra_content", "tool_calls", "tool_call_id"
_NAMED: Final = re.compile(rb"reasoning_content|reasoning_details|['\"`.\\]reasoning['\"`\\:]")
_NAMED_BESIDE: Final = re.compile(rb"['\"`.\\](?:%b)['\"`\\]" % "|".join(sorted(_BESIDE)).encode())
_NULL: Final = b"Value is not a string: null"
_FOREIGN: Final = re.compile(
    rb"(?:corrupted|invalid|missing a) thought[ _]?signature|thought[ _]?signature is not valid"
    rb"|\bsignature\W{1,4}in \W{0,2}thinking|\.thinking\.signature\b",
    re.IGNORECASE,
)
_MISSED: Final = re.compile(
    rb"\breasoning(?:[_ ]content)?\b(?:(?!reasoning)[^{}]){0,80}?(?:must be passed back|is missing)"
    rb"|missing\W{1,4}reasoning_content",
    re.IGNORECASE,
)
_NO_THOUGHT: Final = msgspec.Raw(b'" "')
"""In place of a thought that there was not: an empty text counts as none."""
_NOTHING: Final = (msgspec.Raw(b"null"), msgspec.Raw(b'""'))
_ASSISTANT: Final = msgspec.Raw(b'"assistant"')
_THOUGHT: Final = re.compile(rb"thought[ _]?signature", re.IGNORECASE)
ANY_SIGNATURE: Final = "skip_thought_signature_validator"
"""A value that Gemini 3 accepts in place of a lost signature; without any it answers 400
(ai.google.dev/gemini-api/docs/thought-signatures). Google's own clients send it as it is, though it stands where base64
does; Vertex refused the other form (langchain-google issue 1570)."""
_STAND_IN: Final = msgspec.Raw(encode({"google": {"thought_signature": ANY_SIGNATURE}}))
_ODD_ID: Final = re.compile(
    rb"Tool call id was .{1,200}? must be|(?:tool_calls\[\d{1,9}\]\.id|call_id)\W{1,5}string too long"
    rb"|tool_use(?:_id|\.id)\W{1,5}String should",
    re.DOTALL,
)
_BEGUN: Final = {
    **dict.fromkeys(ORDERS, b'"role"'),
    REASONING: b'"reasoning',
    SIGNATURES: b'"extra_content"',
    IDS: b'"tool_call',
    EXTRAS: b'"assistant"',
    **dict.fromkeys(NEEDED, b'"assistant"'),
}
_REMARKS: Final = {
    REASONING: "reasoning left out",
    **dict.fromkeys(NEEDED, "blanks in place of reasoning that was not there"),
    EXTRAS: "members of other answers left out",
    SIGNATURES: "signatures of calls left out",
    IDS: "ids of calls shortened",
    **ORDERS,
}
"""What is done about each, in this order."""
_SHORT: Final = re.compile(r"[A-Za-z0-9]{9}", re.ASCII)
_DIGITS: Final = string.digits + string.ascii_lowercase


def refused_members(refusal: bytes) -> frozenset[str]:
    """What a `refusal` is about: `REASONING`, `SIGNATURES`, `IDS`, `EXTRAS`, of `NEEDED` or `ORDERS`; empty: none."""
    if order := refused_order(refusal):
        return frozenset({order})
    if refuses_ids(refusal):
        return frozenset({IDS})
    if (missed := _MISSED.search(refusal)) is not None:
        return frozenset({"needs_reasoning_content" if b"content" in missed[0].lower() else "needs_reasoning"})
    if _NULL in refusal:
        return frozenset({EXTRAS})  # Google's endpoint for chats does not say where
    if not is_unknown(refusal):
        return frozenset()
    named = {
        REASONING: _NAMED.search(refusal) is not None,
        SIGNATURES: _EXTRA.encode() in refusal,
        EXTRAS: _NAMED_BESIDE.search(refusal) is not None,
    }
    return frozenset(what for what, is_named in named.items() if is_named)


def refuses_signatures(refusal: bytes) -> bool:
    """Whether a `refusal` is of a signature in the history: one of another model, or none where there must be one."""
    return _FOREIGN.search(refusal) is not None


def refuses_ids(refusal: bytes) -> bool:
    """Whether a `refusal` is of the id of a tool call."""
    return _ODD_ID.search(refusal) is not None


def short_id(id_: str) -> str:
    """An id that all servers accept in place of `id_`, always the same: so the history's beginning stays in caches."""
    if _SHORT.fullmatch(id_):
        return id_
    number = int.from_bytes(hashlib.sha256(id_.encode(errors="surrogatepass")).digest())
    return "".join(_DIGITS[number // len(_DIGITS) ** place % len(_DIGITS)] for place in range(9))


def without_members(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused` of its history, and with what is missed; itself if there is nothing to change.
    All other values keep their bytes."""
    span = call.summary.spans.get("messages")
    if span is None or not any(contains(call.body, _BEGUN[what], *span) for what in refused):
        return call
    made: list[str] = []
    changed = changed_rows(call, "messages", lambda rows: _mended(rows, refused, made))
    if changed is not call:
        note_changes(call, *made)
    return changed


def _mended(rows: list[Row], refused: Collection[str], made: list[str]) -> list[Row]:
    """`rows` with one change after the other. Adds what was changed to `made`."""
    for what in _REMARKS:
        if what not in refused:
            continue
        after = ordered(rows, {what}) if what in ORDERS else [_kept(row, what) for row in rows]
        if not are_same(after, rows):
            made.append(_REMARKS[what])
            rows = after
    return rows


def note_changes(call: Call, *changes: str) -> None:
    """Notes for the log what was changed in a history, since its target refuses it otherwise."""
    call.remarks += [f"history: {change}" for change in changes]


def without_signatures(call: Call, refusal: bytes) -> Call:
    """`call` without reasoning, which another model has signed; itself if there is none. If the `refusal` is Gemini's,
    its calls get what stands in for a signature."""
    if _THOUGHT.search(refusal) is None:
        return without_members(call, (REASONING,))
    changed = changed_rows(call, "messages", lambda rows: [_signed(_kept(row, REASONING)) for row in rows])
    if changed is not call:
        note_changes(call, "signatures replaced")
    return changed


def shortened(row: Row, key: str) -> Row:
    """`row` with a short id under `key`; itself if it has one, or none."""
    if not bytes(row.get(key, _NOTHING[0])).startswith(b'"'):  # SDKs send null for none
        return row
    id_ = decode(row[key], type=str)
    short = short_id(id_)
    return row if short == id_ else {**row, key: msgspec.Raw(encode(short))}


def _kept(row: Row, refused: str) -> Row:
    """What is left of a message, if one kind of its members is `refused`."""
    if refused == REASONING and _MEMBERS & row.keys():
        return {key: value for key, value in row.items() if key not in _MEMBERS}
    if refused == EXTRAS and row.get("role") == _ASSISTANT and _BESIDE & row.keys():
        return _without_extras(row)
    if refused == IDS:
        return _with_calls(shortened(row, _RESULT), lambda called: shortened(called, "id"))
    if refused == SIGNATURES and _CALLS in row and _EXTRA.encode() in bytes(row[_CALLS]):
        return _with_calls(row, _unsigned)
    key = NEEDED.get(refused)
    if key is not None and row.get("role") == _ASSISTANT and row.get(key, _NOTHING[0]) in _NOTHING:
        return {**row, key: _NO_THOUGHT}
    return row


def _with_calls(row: Row, change: Callable[[Row], Row]) -> Row:
    """`row` with its tool calls changed; itself if all stay the same."""
    if _CALLS not in row or row[_CALLS] == _NOTHING[0]:
        return row
    calls = read_rows(bytes(row[_CALLS]))
    kept = [change(call) for call in calls]
    return row if are_same(kept, calls) else {**row, _CALLS: msgspec.Raw(encode(kept))}


def _unsigned(called: Row) -> Row:
    return {key: value for key, value in called.items() if key != _EXTRA} if _EXTRA in called else called


def _without_extras(row: Row) -> Row:
    """A message of the model with its text and its calls, also those in their old form."""
    refusal = row.get("refusal", _NOTHING[0])
    if refusal not in _NOTHING and row.get("content", _NOTHING[0]) in _NOTHING:
        row = {**row, "content": refusal}
    left = _BESIDE - {"function_call"} if row.get("function_call", _NOTHING[0]) != _NOTHING[0] else _BESIDE
    return row if left.isdisjoint(row) else {key: value for key, value in row.items() if key not in left}


def _signed(row: Row) -> Row:
    """A message whose first call has the stand-in, and no other a signature."""
    if _CALLS not in row or row[_CALLS] == msgspec.Raw(b"null"):
        return row
    calls = read_rows(bytes(row[_CALLS]))
    signed = [{key: value for key, value in call.items() if key != _EXTRA} for call in calls]
    if signed:
        signed[0][_EXTRA] = _STAND_IN
    return row if signed == calls else {**row, _CALLS: msgspec.Raw(encode(signed))}
