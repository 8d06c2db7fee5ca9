"""Takes out of a history what the provider refuses there: reasoning and signatures, its own or another provider's.

Kimi and DeepSeek refuse the result of a tool call without what was thought before it, so doors send it back to whoever
thought. Groq's server refuses such members ("property 'reasoning_content' is unsupported"), and clients of chats send
back all that they were given, whoever serves them next: Mistral and Fireworks refuse a call with Gemini's signature
("Extra inputs are not permitted"), Gemini and Anthropic one that another model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, TypeVar

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, contains, encoder, replace_lone_surrogates
from manallm_proxy.openai.request import spliced
from manallm_proxy.providers.length import is_unknown

REASONING, SIGNATURES = "reasoning", "signatures"
"""What may be left out: members of a message, and one of its tool calls."""
_MEMBERS: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details"})
_EXTRA, _CALLS = "extra_content", "tool_calls"
_NAMED: Final = re.compile(rb"reasoning_content|reasoning_details|['\"`.\\]reasoning['\"`\\:]")
_FOREIGN: Final = re.compile(
    rb"(?:corrupted|invalid|missing a) thought[ _]?signature|thought[ _]?signature is not valid"
    rb"|\bsignature\W{1,4}in \W{0,2}thinking|\.thinking\.signature\b",
    re.IGNORECASE,
)
_BEGUN: Final = {REASONING: b'"reasoning', SIGNATURES: b'"extra_content"'}
_ROWS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_Row = dict[str, msgspec.Raw]
_T = TypeVar("_T")


def refused_members(refusal: bytes) -> frozenset[str]:
    """What a `refusal` says is unknown: `REASONING`, `SIGNATURES`, both or none."""
    if not is_unknown(refusal):
        return frozenset()
    named = {REASONING: _NAMED.search(refusal) is not None, SIGNATURES: _EXTRA.encode() in refusal}
    return frozenset(what for what, is_named in named.items() if is_named)


def refuses_signatures(refusal: bytes) -> bool:
    """Whether a `refusal` is of a signature in the history: one of another model, or none where there must be one."""
    return _FOREIGN.search(refusal) is not None


def without_members(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused` of its history; itself if there is none. All other values keep their bytes."""
    span = call.summary.spans.get("messages")
    if span is None or not any(contains(call.body, _BEGUN[what], *span) for what in refused):
        return call
    try:
        rows = decoded_rows(_ROWS, call.body[slice(*span)])
        kept = [_kept(row, refused) for row in rows]
    except DecodeErrors:  # it is malformed, for the provider to refuse
        return call
    if all(one is other for one, other in zip(kept, rows, strict=True)):
        return call
    body, spans = spliced(call.body, call.summary.spans, {"messages": encoder(call.is_large)(kept)})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))


def decoded_rows(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """A list that may hold lone surrogates, which become U+FFFD. Raises one of `DecodeErrors`."""
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:
        return decoder.decode(replace_lone_surrogates(body))


def _kept(row: _Row, refused: Collection[str]) -> _Row:
    """What is left of a message."""
    if REASONING in refused and _MEMBERS & row.keys():
        row = {key: value for key, value in row.items() if key not in _MEMBERS}
    if SIGNATURES in refused and _CALLS in row and _EXTRA.encode() in bytes(row[_CALLS]):
        calls = decoded_rows(_ROWS, bytes(row[_CALLS]))
        kept = [{key: value for key, value in call.items() if key != _EXTRA} for call in calls]
        row = {**row, _CALLS: msgspec.Raw(msgspec.json.encode(kept))}
    return row
