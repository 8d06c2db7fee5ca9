"""Classifies a provider's refusal: its status, message and error codes become one of our errors.

Each dialect reads the details out of its own error format; `envelope` knows those of the OpenAI-compatible servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ContentBlocked,
    ContextTooLong,
    KeyRejected,
    MissingModel,
    ModelFailed,
    PaymentRequired,
    ProviderError,
    RateLimited,
    RequestRejected,
    RetryableStatus,
    ServerBusy,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.contract.records import frozen
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.providers.caller_mistakes import Mistake, mistake_in, without_echo
from manallm_proxy.providers.retry_after import retry_after_of
from manallm_proxy.providers.scrub import clean

LOADING_COOLING: Final = 3.0
"""Seconds that a target cools if it says that it loads its model: a llama-server does so for seconds or minutes."""
QUOTA_COOLING: Final = 600.0
"""Seconds that a target cools if its quota is exhausted."""

_NESTING: Final = 8
"""How deeply nested a message may be to be found."""
_NESTED_JSON: Final = 3
"""How many times a message may itself be a JSON string with a message inside."""
_WAIT_LONGEST: Final = 1e9

_QUOTA: Final = ("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached")
_TOO_LONG: Final = ("context_length_exceeded", "exceed_context_size_error")
_CONTEXT: Final = re.compile(
    r"context[_ ](?:length|window|size)|maximum context|prompt is (?:too long|longer)|too many tokens"
    r"|exceeds? the (?:context|maximum number of tokens)",
    re.IGNORECASE,
)
"""Means that the context overflows, if the status already says that the request is at fault."""
_BLOCKED: Final = ("content_filter", "content_policy_violation", "moderation_blocked", "refusal")
_NO_MODEL: Final = ("model_not_found", "model_not_available", "model_decommissioned")
_CAPABILITY: Final = re.compile(
    r"does(?: not|n't) support (?:tool|function|image|vision|audio|chat|thinking|embedding|multimodal|completion"
    r"|insert|generate)|no endpoints found that support|unknown variant \W?image|is not a multimodal model"
    r"|image_url is only supported by|at most 0 image|image input is not enabled",
    re.IGNORECASE,
)
_BUSY: Final = re.compile(r"server busy|overloaded|at capacity|capacity_exceeded", re.IGNORECASE)
_LOADING: Final = re.compile(r"loading model", re.IGNORECASE)
OWN_FAILURES: Final = (RateLimited, PaymentRequired, KeyRejected, MissingModel, ServerFailed, ServerBusy)
"""Errors that have nothing to do with the request's content, so that the operator may read the provider's message."""
_CALLER_STATUSES: Final = (400, 413, 422)
"""Statuses in a body that override a 500: a server behind this one found the request at fault."""


@frozen
class ErrorDetails:
    """The contents of an error body, in whichever format. Texts are as the provider wrote them."""

    message: str = ""
    kind: str | None = None
    code: str | None = None
    param: str | None = None
    status: int | None = None
    """If the body names one of its own (``error.code`` as a number)."""
    retry_after: float | None = None


def envelope(body: bytes) -> ErrorDetails:
    """Reads an error body of any OpenAI-compatible server, or of Ollama. HTML is ignored."""
    try:
        data = decode(body)
    except DecodeErrors:
        return ErrorDetails()
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    return parse_error(data)


def parse_error(data: object) -> ErrorDetails:
    """As `envelope`, for a decoded value. Numbers in ``code`` between 400 and 599 are statuses.

    Ollama forwards an error of the llama-server inside it as JSON in the message: then the innermost one counts.
    """
    details = _shape(data)
    for _ in range(_NESTED_JSON):
        if details.message.lstrip()[:1] != "{":
            break
        try:
            inner = _shape(decode(details.message))
        except DecodeErrors:
            break
        if not inner.message:
            break
        details = inner
    return details


def _shape(data: object) -> ErrorDetails:
    if not isinstance(data, dict):
        return ErrorDetails()
    error = data.get("error", data)
    if isinstance(error, str):
        return ErrorDetails(message=error)
    if not isinstance(error, dict):
        return ErrorDetails()
    metadata = error.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    availability = error.get("availability")
    availability = availability if isinstance(availability, dict) else {}
    code = error.get("code")
    word = next((w for w in (availability.get("code"), metadata.get("error_type"), code) if _is_word(w)), None)
    message = next((m for k in ("message", "error_message", "detail", "error") if (m := _text(error.get(k)))), "")
    return ErrorDetails(
        message=message,
        kind=_text(error.get("type")) or _text(error.get("error_type")) or None,
        code=word,
        param=_text(error.get("param")) or None,
        status=_status(code),
        retry_after=_wait(availability.get("retry_after")),
    )


def _wait(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _WAIT_LONGEST:
        return None
    return float(value)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not value.isdigit()


def _status(code: object) -> int | None:
    number = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) < 6 else code
    return number if isinstance(number, int) and 400 <= number <= 599 else None


def _text(value: Any, nesting: int = _NESTING) -> str:
    """Mistral's ``message`` is an object with ``detail``; FastAPI's ``detail`` a list of objects with ``msg``."""
    if isinstance(value, str):
        return value
    if not nesting:
        return ""
    if isinstance(value, dict):
        return next((t for k in ("message", "detail", "msg") if (t := _text(value.get(k), nesting - 1))), "")
    if isinstance(value, list):
        return "; ".join(t for item in value[:5] if (t := _text(item, nesting - 1)))
    return ""


_STATUS_OF_WORD: Final = (
    (re.compile(r"rate_?limit|insufficient_quota|too_many_requests"), 429),
    (re.compile(r"overloaded|unavailable|capacity"), 503),
    (re.compile(r"timeout"), 504),
    (re.compile(r"payment|billing"), 402),
    (re.compile(r"authentication|invalid_api_key"), 401),
    (re.compile(r"permission"), 403),
    (re.compile(r"model_not_found|not_?found"), 404),
    (re.compile(r"context_length|invalid|bad_?request|content_|refusal"), 400),
    (re.compile(r"server_error|internal"), 502),
)


def in_band(details: ErrorDetails) -> ProviderError:
    """The error for one inside a 200. Its status comes from its numeric code, else from its words, else it is 502."""
    status = details.status
    if status is None:
        words = f"{details.code or ''} {details.kind or ''}".lower()
        words = re.sub(r"(?<=[a-z])(?=error|failure)", "_", words)
        status = next((number for pattern, number in _STATUS_OF_WORD if pattern.search(words)), 502)
    return classify(status, {}, details)


def classify(status: int, headers: Mapping[str, str], details: ErrorDetails) -> ProviderError:
    """The error for `status`. `headers` compare without case."""
    return with_provider_message(_classified(status, headers, details), details.message)


def with_provider_message(error: ProviderError, message: str) -> ProviderError:
    """`error` with the provider's message if it is in `OWN_FAILURES`; `message_masking` masks it later."""
    if isinstance(error, OWN_FAILURES):
        error.raw_message = without_echo(clean(message))
    return error


def _classified(status: int, headers: Mapping[str, str], details: ErrorDetails) -> ProviderError:
    """In this order:

    1 redirects and odd statuses, 2 money and rate, 3 the caller's mistakes, whatever the status, 4 the provider's
    failures, 5 keys and filters, 6 what a 4xx may really mean, 7 any other.
    """
    words = {w.lower() for w in (details.kind, details.code) if w}
    kind, code, param = (clean(word or "") or None for word in (details.kind, details.code, details.param))
    text = without_echo(clean(details.message))
    after = details.retry_after if details.retry_after is not None else retry_after_of(headers, text)
    # 1
    if status < 400:
        what = "a redirect" if 300 <= status < 400 else f"status {status}"
        return BadResponse(
            f"the provider answered with {what}, which is not followed; check its base_url",
            detail=what,
            provider_status=status,
        )
    # 2
    if status == 429:
        if words.intersection(_QUOTA):
            return RateLimited(
                "the provider says that our quota is used up",
                detail="quota",
                provider_status=429,
                retry_after=QUOTA_COOLING,
            )
        return RateLimited("the provider limits our rate", provider_status=429, retry_after=after)
    if status == 402:
        return PaymentRequired(
            text or "the provider asks for payment", provider_status=402, provider_code=code, retry_after=after
        )
    # 3
    if status == 500 and details.status in _CALLER_STATUSES:
        status = details.status
    mistake = mistake_in(text)
    if words.intersection(_TOO_LONG) or (status in _CALLER_STATUSES and _CONTEXT.search(text)):
        mistake = Mistake("context")
    if mistake is not None and (status >= 500 or mistake.kind in ("capability", "context")):
        return _mistaken(mistake, status, text, param)
    if status == 501:
        return Unsupported(text or "the provider does not implement this", provider_status=501, param=param)
    # 4
    if status >= 500:
        return _server(status, text, words, after)
    # 5
    if _is_blocked(status, words, text):
        return ContentBlocked(text or "the provider's content filter refused this", provider_status=status)
    if status in (401, 403):
        return KeyRejected(
            f"the provider rejected the proxy's own key (status {status}); the operator must mend it, a retry will not",
            detail=f"status {status}",
            provider_status=status,
        )
    # 6
    if status in (400, 404, 422) and _CAPABILITY.search(text):
        return Unsupported(text, provider_status=status, param=param)
    if words.intersection(_NO_MODEL) or status == 404 or (mistake is not None and mistake.kind == "model"):
        return MissingModel(
            text or "the provider does not know this model, or does not serve such requests, or its base_url is wrong",
            provider_status=404,
            provider_type=kind,
            provider_code=code,
            param=param or "model",
        )
    # 7
    return RequestRejected(
        text or f"the provider refused the request with status {status}",
        provider_status=status,
        provider_type=kind,
        provider_code=code,
        param=param,
        retry_after=after,
    )


def _mistaken(mistake: Mistake, status: int, text: str, param: str | None) -> ProviderError:
    """The error for the caller's `mistake`, whatever the status."""
    param = param or mistake.param
    match mistake.kind:
        case "capability":
            return Unsupported(text, provider_status=status, param=param)
        case "context":
            message = text or "the request does not fit into the model's context"
            return ContextTooLong(message, provider_status=status, param=param)
        case "model":
            return MissingModel(text, provider_status=404, param=param)
        case "request":
            return RequestRejected(text, provider_status=status, status=400, param=param)


def _server(status: int, text: str, words: set[str], after: float | None) -> ProviderError:
    shown = f"the provider failed with status {status}"
    detail = f"status {status}"
    busy = bool(_BUSY.search(text)) or any(_BUSY.search(w) for w in words) or "unavailable_error" in words
    if status == 503 and _LOADING.search(text):
        wait = LOADING_COOLING if after is None else after
        return ServerBusy("the provider loads the model", detail="loading", provider_status=503, retry_after=wait)
    if status in (503, 529) and (busy or after is not None):
        return ServerBusy(
            f"the provider is busy (status {status})", detail="busy", provider_status=status, retry_after=after
        )
    if status == 500:
        return ModelFailed(shown, detail=detail, provider_status=status)
    return ServerFailed(shown, detail=detail, provider_status=status, retry_after=after)


def _is_blocked(status: int, words: set[str], text: str) -> bool:
    if status not in (400, 403):
        return False
    return bool(words.intersection(_BLOCKED)) or (status == 403 and "moderation" in text.lower())


def as_retryable(error: ProviderError, name: str, statuses: frozenset[int]) -> ProviderError:
    """`error`, or RetryableStatus if its status is one of the provider's ``extra_retryable_statuses``."""
    status = error.status
    if not isinstance(error, RequestRejected) or status not in statuses:
        return error
    return RetryableStatus(f"{name} answered {status}", provider_status=status, retry_after=error.retry_after)
