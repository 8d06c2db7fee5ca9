"""How many tokens a request may take, before a provider has counted them."""

from __future__ import annotations

from typing import Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, decode

BYTES_PER_TOKEN: Final = 4
"""Of English prose in JSON; other languages and code have fewer."""
STREAMED_BYTES_PER_TOKEN: Final = 200
"""Of a stream, whose events have a token each: Ollama's have 203 bytes, llama.cpp's 291."""
_MOST: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""The last one is of OpenAI's Responses."""
LONGEST: Final = 10**9
"""Max tokens that are reckoned with."""
_DIGITS: Final = 18
"""Bytes of a number that is read; a longer one is larger than all that are reckoned with."""


def expected_tokens(call: Call) -> tuple[int, int]:
    """Of the prompt, by its bytes, and of the answer at most, as far as the request says; 0 where it does not."""
    is_json = call.content_type == "application/json"  # a form has sound or pictures in it
    prompt = -(-call.text_size() // BYTES_PER_TOKEN) if is_json else 0
    most = next((found for key in _MOST if (found := asked_number(call, key))), 0)
    return prompt, min(most * max(asked_number(call, "n"), 1), LONGEST)


def answered_tokens(size: int, *, streamed: bool) -> int:
    """Of an answer of `size` bytes, as clients get it."""
    return size // (STREAMED_BYTES_PER_TOKEN if streamed else BYTES_PER_TOKEN)


def asked_number(call: Call, key: str) -> int:
    """The whole number above 0 that the request gives as `key`, at most `LONGEST`; 0 where it gives none."""
    span = call.summary.spans.get(key)
    if span is None:
        return 0
    text = call.body[span[0] : min(span[1], span[0] + _DIGITS)]
    if span[1] - span[0] > _DIGITS:
        return LONGEST if text.isdigit() else 0
    try:
        value = decode(text)
    except DecodeErrors:
        return 0
    if type(value) is float and value.is_integer():  # as everywhere: see `request_fields.typed`
        value = int(value)
    return min(value, LONGEST) if type(value) is int and value > 0 else 0
