"""Takes out of a history what another model or account wrote for itself, once the provider has refused it.

A client sends back all that it was given, and relayed reasoning does not say whose it is: OpenAI answers "The encrypted
content could not be verified", Anthropic "Invalid `signature` in `thinking` block".
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from attrs import evolve

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.openai.json_object import DecodeErrors, contains, encoder
from manallm_proxy.openai.request import spliced
from manallm_proxy.openai.thinking_blocks import without_thinking
from manallm_proxy.providers.past_reasoning import decoded_rows, refuses_signatures

_SEALED: Final = re.compile(
    rb"invalid_encrypted_content|encrypted[ _]content.{0,200}could not be (?:verified|decrypted)", re.DOTALL
)
_REASONING: Final = b'"reasoning"'
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])


class _Item(msgspec.Struct):
    type: Any = None


_ITEM: Final = msgspec.json.Decoder(_Item)


def without_foreign(call: Call, refusal: bytes) -> Call:
    """`call` without the reasoning of its history, if the `refusal` is of that; itself if there is none."""
    if call.endpoint is Endpoint.RESPONSES:
        return _without_reasoning(call) if _SEALED.search(refusal) else call
    return without_thinking(call, lambda block: True) if refuses_signatures(refusal) else call


def _without_reasoning(call: Call) -> Call:
    span = call.summary.spans.get("input")
    if span is None or not contains(call.body, _REASONING, *span):
        return call
    try:
        rows = decoded_rows(_ROWS, call.body[slice(*span)])
    except DecodeErrors:  # a string
        return call
    kept = [row for row in rows if not _is_reasoning(row)]
    if len(kept) == len(rows):
        return call
    body, spans = spliced(call.body, call.summary.spans, {"input": encoder(call.is_large)(kept)})
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans))


def _is_reasoning(item: msgspec.Raw) -> bool:
    try:
        return bool(_ITEM.decode(item).type == "reasoning")
    except DecodeErrors:
        return False
