"""``POST /v1/messages/count_tokens``: an estimate from the number of bytes.

OpenAI-compatible servers and Ollama cannot count tokens in advance; a provider that accepts Messages is asked.
"""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.doors.messages.request import read_request
from manallm_proxy.openai.json_object import encode

BYTES_A_TOKEN: Final = 4
"""Bytes per token of text. English has about four letters per token; other languages more bytes and more tokens."""
TOKENS_A_FILE: Final = 1500
"""Tokens assumed for an image or a document."""
_FILE: Final = re.compile(rb'"data:[^",;]*;base64,[^"]*"')


def count_tokens(body: bytes) -> tuple[str, bytes]:
    """The requested model, and the answer ``{"input_tokens": n}``. Raises InvalidRequest as `read_request` does."""
    asked = read_request(body, counts_only=True)
    text, files = _FILE.subn(b"", asked.chat)
    tokens = -(-len(text) // BYTES_A_TOKEN) + files * TOKENS_A_FILE
    return asked.summary.model, encode({"input_tokens": tokens})
