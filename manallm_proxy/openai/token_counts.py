"""Estimates the tokens of requests and answers that no provider has counted."""

from __future__ import annotations

from typing import Final

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import DecodeErrors, decode

BYTES_PER_TOKEN: Final = 4
"""Bytes per token of English prose in JSON; other languages and code have fewer."""
STREAMED_BYTES_PER_TOKEN: Final = 200
"""Bytes per token of a stream with one token per event: Ollama's have 203 bytes, llama.cpp's 291."""
_MOST: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Fields that limit the answer's tokens; the last one is that of OpenAI's Responses."""
LONGEST: Final = 10**9
"""Max tokens used in estimates."""
_DIGITS: Final = 18
"""Max digits of a number that is parsed; a longer one exceeds `LONGEST` anyway."""


def expected_tokens(call: Call) -> tuple[int, int]:
    """(tokens of the prompt, estimated from its bytes; max tokens of the answer, 0 if the request sets none)."""
    is_json = call.content_type == "application/json"  # a form contains audio or images
    prompt = -(-call.text_size() // BYTES_PER_TOKEN) if is_json else 0
    most = next((found for key in _MOST if (found := asked_number(call, key))), 0)
    return prompt, min(most * max(asked_number(call, "n"), 1), LONGEST)


def answered_tokens(size: int, *, streamed: bool) -> int:
    """Estimated tokens of an answer of `size` bytes, as sent to the client."""
    return size // (STREAMED_BYTES_PER_TOKEN if streamed else BYTES_PER_TOKEN)


def asked_number(call: Call, key: str) -> int:
    """The request's positive integer under `key`, at most `LONGEST`; 0 if there is none."""
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
