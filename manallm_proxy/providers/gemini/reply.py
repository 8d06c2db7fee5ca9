"""What google-genai hands out, in OpenAI's words: steps, finish reasons, usage, errors.

Anything may be missing in Gemini's replies: candidates, their content, its parts, the usage.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import define, evolve, field
from google.genai import errors, types

from manallm_proxy.contract.answers import Delta, ToolCall, Usage, new_call_id
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ContentBlocked,
    KeyRejected,
    PaymentRequired,
    ProviderError,
    RateLimited,
)
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.vectors import checked_vectors
from manallm_proxy.providers.classify import QUOTA_COOLING, ErrorDetails, classify
from manallm_proxy.providers.gemini.messages import SIGNATURE_PATH
from manallm_proxy.providers.retry_after import duration
from manallm_proxy.providers.scrub import clean

_FILTERED: Final = frozenset(
    (
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "LANGUAGE",
        "MODEL_ARMOR",
        "ESCALATION",
        "PUP_LIMITED_DISABLED",
    )
)
_CUT: Final = frozenset(("MAX_TOKENS", "CONTINUATION"))
_FAILED: Final = frozenset(
    (
        "FINISH_REASON_UNSPECIFIED",
        "OTHER",
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE",
        "NO_IMAGE",
        "IMAGE_OTHER",
    )
)
"""No answer came of it, unless something was said before. What Google adds later counts as a normal end."""
_BAD_KEY: Final = re.compile(r"API key (?:not valid|expired|not found)", re.IGNORECASE)
_BILLING: Final = re.compile(r"billing|free tier|location is not supported", re.IGNORECASE)


@define
class Reader:
    """Reads one answer, whole or chunk by chunk."""

    usage: Usage | None = None
    """Of the last chunk that had it: each tells the totals so far."""
    _finished: set[int] = field(factory=set)
    _begun: set[int] = field(factory=set)
    _said: set[int] = field(factory=set)
    _called: dict[int, int] = field(factory=dict)
    """Tool calls of each choice so far."""

    @property
    def is_complete(self) -> bool:
        """Every choice that began has its finish reason, and there is one."""
        return bool(self._finished) and self._begun == self._finished

    def deltas(self, reply: types.GenerateContentResponse) -> list[Delta]:
        """What `reply` adds, one step a choice. ContentBlocked or BadResponse where it is no answer."""
        self.usage = _usage(reply.usage_metadata) or self.usage
        blocked = reply.prompt_feedback and reply.prompt_feedback.block_reason
        if blocked and not reply.candidates:
            raise ContentBlocked(f"Gemini blocked the prompt ({blocked.value})", detail=blocked.value)
        return [self._delta(candidate) for candidate in reply.candidates or ()]

    def whole(self, reply: types.GenerateContentResponse) -> list[Delta]:
        """The choices of a complete answer, each with its ``finish``: a body that is whole cannot have been cut."""
        choices = self.deltas(reply)
        if not choices or not all(choice.has_content for choice in choices):
            raise BadResponse("Gemini's answer holds nothing", detail="no content" if choices else "no candidates")
        return [evolve(choice, finish=choice.finish or "stop") for choice in choices]

    def _delta(self, candidate: types.Candidate) -> Delta:
        index = candidate.index or 0
        parts = (candidate.content and candidate.content.parts) or []
        calls = tuple(_tool_calls(parts, self._called.get(index, 0)))
        texts = [part for part in parts if part.text]
        content = "".join(part.text or "" for part in texts if not part.thought)
        self._begun.add(index)
        if calls:
            self._called[index] = self._called.get(index, 0) + len(calls)
        if content or calls:
            self._said.add(index)
        return Delta(
            content=content,
            reasoning="".join(part.text or "" for part in texts if part.thought),
            tool_calls=calls,
            finish=self._finish(candidate.finish_reason, index),
            index=index,
            logprobs=_logprobs(candidate.logprobs_result),
        )

    def _finish(self, reason: types.FinishReason | None, index: int) -> str | None:
        if reason is None:
            return None
        word = reason.value
        if word in _FAILED and index not in self._said:
            raise BadResponse(f"Gemini ended without an answer ({word})", detail=word.lower())
        self._finished.add(index)
        if word in _FILTERED:
            return "content_filter"
        if word in _CUT:
            return "length"
        return "tool_calls" if index in self._called else "stop"


def _tool_calls(parts: list[types.Part], first: int) -> Iterator[ToolCall]:
    """They come whole, a part each; `first` is the place of the first among those of its choice."""
    called = [part for part in parts if part.function_call is not None]
    for index, part in enumerate(called, first):
        call = part.function_call
        assert call is not None
        arguments = encode(call.args or {}).decode()
        yield ToolCall(call.name or "", arguments, call.id or new_call_id(), index, _extra(part.thought_signature))


def _extra(signature: bytes | None) -> dict[str, Any]:
    """The signature where `gemini_messages` looks for it."""
    if not signature:
        return {}
    extra: Any = base64.b64encode(signature).decode()
    for key in reversed(SIGNATURE_PATH):
        extra = {key: extra}
    return dict(extra)


def _usage(counted: types.GenerateContentResponseUsageMetadata | None) -> Usage | None:
    if counted is None:
        return None
    thoughts = counted.thoughts_token_count or 0
    return Usage(
        prompt=(counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0),
        completion=(counted.candidates_token_count or 0) + thoughts,
        reasoning=thoughts,
        cached=counted.cached_content_token_count or 0,
    )


def _logprobs(result: types.LogprobsResult | None) -> dict[str, Any] | None:
    if result is None or not result.chosen_candidates:
        return None
    tops = [step.candidates or [] for step in result.top_candidates or ()]
    tops += [[]] * (len(result.chosen_candidates) - len(tops))
    rows = zip(result.chosen_candidates, tops, strict=False)
    content = [{**_token(chosen), "top_logprobs": [_token(t) for t in top]} for chosen, top in rows]
    return {"content": content, "refusal": None}


def _token(token: types.LogprobsResultCandidate) -> dict[str, Any]:
    text = token.token or ""
    return {"token": text, "logprob": token.log_probability or 0.0, "bytes": list(text.encode())}


# --- embeddings -----------------------------------------------------------------------------------


def vectors(reply: types.EmbedContentResponse, wanted: int, *, to_unit: bool) -> list[list[float]]:
    """One vector for each of `wanted` inputs, BadResponse otherwise. `to_unit`: brought to length 1."""
    found = checked_vectors([e.values or [] for e in reply.embeddings or ()], wanted, "Gemini")
    return [_unit([*vector]) for vector in found] if to_unit else [[*vector] for vector in found]


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


def embedding_usage(reply: types.EmbedContentResponse) -> Usage:
    """Zero where Gemini does not count them."""
    counted = reply.usage_metadata
    return Usage(prompt=(counted.prompt_token_count or 0) if counted else 0)


# --- errors ---------------------------------------------------------------------------------------


def failure(error: errors.APIError, headers: Mapping[str, str]) -> ProviderError:
    """A refusal, by status or inside a stream. `headers` are the reply's and compare without case."""
    status = error.code if isinstance(error.code, int) else 502
    message = error.message if isinstance(error.message, str) else ""
    word = error.status if isinstance(error.status, str) else ""
    details = _details(error.details)
    if status == 400 and (_BAD_KEY.match(message) or any(d.get("reason") == "API_KEY_INVALID" for d in details)):
        return KeyRejected(
            "Gemini rejected the proxy's own key; the operator must mend it, a retry will not",
            detail="API_KEY_INVALID",
            provider_status=status,
        )
    if status == 429:
        return _rate_limited(details, classify(429, headers, ErrorDetails(message)))
    if word == "FAILED_PRECONDITION" and _BILLING.search(message):
        return PaymentRequired(clean(message), provider_status=status, provider_code=word)
    if status == 503 and word == "UNAVAILABLE":
        return classify(status, headers, ErrorDetails(message, kind="unavailable_error"))
    code = word if status != 404 else None  # there OpenAI's own word says more
    return classify(status, headers, ErrorDetails(message, code=code or None))


def _rate_limited(details: list[dict[str, Any]], said: ProviderError) -> RateLimited:
    violations = (v for detail in details for v in _objects(detail.get("violations")))
    if any("PerDay" in str(violation.get("quotaId")) for violation in violations):
        return RateLimited(
            "Gemini says that our quota for the day is used up",
            detail="quota",
            provider_status=429,
            retry_after=QUOTA_COOLING,
        )
    delays = (duration(delay) for detail in details if isinstance(delay := detail.get("retryDelay"), str))
    after = next((delay for delay in delays if delay is not None), said.retry_after)
    return RateLimited(said.message, detail=said.detail, provider_status=429, retry_after=after)


def _details(body: object) -> list[dict[str, Any]]:
    """google.rpc's ErrorInfo, QuotaFailure, RetryInfo, ... of an error body, whole or already peeled."""
    if isinstance(body, list) and body:
        body = body[0]
    inner = body.get("error", body) if isinstance(body, dict) else None
    return _objects(inner.get("details") if isinstance(inner, dict) else None)


def _objects(rows: object) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
