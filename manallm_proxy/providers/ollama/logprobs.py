"""Ollama's log probabilities (api/types.go) in OpenAI's two forms."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct


class Token(Struct):
    """api/types.go Logprob and TokenLogprob."""

    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[Token] | None = None


def tokens_of(logprobs: object) -> list[Token]:
    """The tokens in `logprobs`; empty if there are none, or they are malformed."""
    if not logprobs:
        return []
    try:
        return msgspec.convert(logprobs, list[Token])
    except msgspec.ValidationError:
        return []


def chat_logprobs(tokens: list[Token]) -> dict[str, Any]:
    """OpenAI's form, which always has every member; Ollama leaves out empty ones."""

    def one(token: Token) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}

    rows = [{**one(token), "top_logprobs": [one(t) for t in token.top_logprobs or ()]} for token in tokens]
    return {"content": rows, "refusal": None}


def legacy_logprobs(tokens: list[Token]) -> dict[str, Any]:
    """The form of ``/v1/completions``, without ``text_offset``, which is not known here."""
    tops = [{t.token: t.logprob for t in token.top_logprobs or ()} for token in tokens]
    return {"tokens": [t.token for t in tokens], "token_logprobs": [t.logprob for t in tokens], "top_logprobs": tops}
