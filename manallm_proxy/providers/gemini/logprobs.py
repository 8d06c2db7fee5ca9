"""Gemini's ``logprobsResult`` as OpenAI's ``logprobs``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct


class _Token(Struct, rename="camel"):
    token: str | None = None
    log_probability: float | None = None


class _Tokens(Struct):
    candidates: list[_Token] | None = None


class _Logprobs(Struct, rename="camel"):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Tokens] | None = None


def logprobs(result: object) -> dict[str, Any] | None:
    """None if there are none, or none that can be read."""
    if not result:
        return None
    try:
        found = msgspec.convert(result, _Logprobs)
    except msgspec.ValidationError:
        return None
    if not found.chosen_candidates:
        return None
    tops = [step.candidates or [] for step in found.top_candidates or ()]
    tops += [[]] * (len(found.chosen_candidates) - len(tops))
    rows = zip(found.chosen_candidates, tops, strict=False)
    content = [{**_token(chosen), "top_logprobs": [_token(t) for t in top]} for chosen, top in rows]
    return {"content": content, "refusal": None}


def _token(token: _Token) -> dict[str, Any]:
    text = token.token or ""
    return {"token": text, "logprob": token.log_probability or 0.0, "bytes": list(text.encode())}
