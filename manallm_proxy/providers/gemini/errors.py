"""What Gemini's errors mean: ``{"error": {"code", "message", "status", "details"}}``, or a list of one.

``status`` is a name of google.rpc.Code, ``details`` hold google.rpc's ErrorInfo, QuotaFailure and RetryInfo
(github.com/googleapis/googleapis, google/rpc). A key that is not valid comes with status 400.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.contract.provider_errors import KeyRejected, PaymentRequired, ProviderError, RateLimited
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently
from manallm_proxy.providers.classify import QUOTA_COOLING, ErrorDetails, classify, parse_error, with_provider_message
from manallm_proxy.providers.retry_after import duration
from manallm_proxy.providers.scrub import clean

_BAD_KEY: Final = re.compile(r"API key (?:not valid|expired|not found)", re.IGNORECASE)
_BILLING: Final = re.compile(r"billing|free tier|location is not supported", re.IGNORECASE)
_STATUSES: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""google/rpc/code.proto: the HTTP status of each name."""


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error for a status other than 200. `headers` compare without case."""
    try:
        data = decode_leniently(body)
    except DecodeErrors:
        data = None  # the page of a reverse proxy in between
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    error = data.get("error") if isinstance(data, dict) else None
    details = parse_error(data)
    return with_provider_message(
        _classed(status, headers, error if isinstance(error, dict) else {}, details), details.message
    )


def in_band(error: object) -> ProviderError:
    """The error for an ``error`` under status 200. Its status: its code, else that of its name, else 502."""
    details = parse_error({"error": error})
    error = error if isinstance(error, dict) else {}
    status = details.status or _STATUSES.get(_word(error), 502)
    return with_provider_message(_classed(status, {}, error, details), details.message)


def _classed(status: int, headers: Mapping[str, str], error: Mapping[str, Any], details: ErrorDetails) -> ProviderError:
    message, word, rows = details.message, _word(error), _objects(error.get("details"))
    if status == 400 and (_BAD_KEY.match(message) or any(row.get("reason") == "API_KEY_INVALID" for row in rows)):
        return KeyRejected(
            "Gemini rejected the proxy's own key; the operator must mend it, a retry will not",
            detail="API_KEY_INVALID",
            provider_status=status,
        )
    if status == 429:
        return _rate_limited(rows, classify(429, headers, ErrorDetails(message)))
    if word == "FAILED_PRECONDITION" and _BILLING.search(message):
        return PaymentRequired(clean(message), provider_status=status, provider_code=word)
    if status == 503 and word == "UNAVAILABLE":
        return classify(status, headers, ErrorDetails(message, kind="unavailable_error"))
    code = word if status != 404 else ""  # there OpenAI's own code is more specific
    return classify(status, headers, ErrorDetails(message, code=code or None))


def _rate_limited(rows: list[dict[str, Any]], said: ProviderError) -> RateLimited:
    violations = (violation for row in rows for violation in _objects(row.get("violations")))
    if any("PerDay" in str(violation.get("quotaId")) for violation in violations):
        return RateLimited(
            "Gemini says that our quota for the day is used up",
            detail="quota",
            provider_status=429,
            retry_after=QUOTA_COOLING,
        )
    delays = (duration(delay) for row in rows if isinstance(delay := row.get("retryDelay"), str))
    after = next((delay for delay in delays if delay is not None), said.retry_after)
    return RateLimited(said.message, detail=said.detail, provider_status=429, retry_after=after)


def _word(error: Mapping[str, Any]) -> str:
    word = error.get("status")
    return word if isinstance(word, str) else ""


def _objects(rows: object) -> list[dict[str, Any]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
