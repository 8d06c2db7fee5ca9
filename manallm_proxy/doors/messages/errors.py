"""Anthropic's error envelope, with ours inside it."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.errors import Overloaded, ProxyError
from manallm_proxy.contract.provider_errors import Blame, ProviderError
from manallm_proxy.doors.messages.request import ThreadsUnsupported
from manallm_proxy.openai.json_object import encode

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status. The SDKs choose their exceptions by the status alone."""
_OVERLOADED: Final = "overloaded_error"
_THREADS: Final = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""What makes the SDKs' tool runners go on without threads."""


def error_body(error: ProxyError) -> bytes:
    """The body of a refusal by status."""
    return encode(envelope(error, _type(error), error.request_id))


def envelope(error: ProxyError, type_: str, request_id: str | None) -> dict[str, Any]:
    """``{"type": "error", "error": {...}, "request_id"}``. `error` has the same fields as in OpenAI's form."""
    inner: dict[str, Any] = {
        "type": type_,
        "message": error.message,
        "code": error.code,
        "param": error.param,
        "source": error.source,
    }
    if isinstance(error, ProviderError) and error.target:
        inner |= {"provider": error.target.partition("/")[0], "target": error.target}
    if isinstance(error, NoProvider):
        inner["attempts"] = [line.to_json() for line in error.attempts]
    if isinstance(error, ThreadsUnsupported):
        inner["details"] = _THREADS
    return {"type": "error", "error": inner, "request_id": request_id}


def in_band(error: ProxyError, request_id: str, *, committed: bool) -> dict[str, Any]:
    """The last event of a stream. What breaks a committed one is never called the caller's mistake."""
    is_load = _type(error) in (_OVERLOADED, "rate_limit_error")
    broken = _OVERLOADED if is_load else "api_error"
    return envelope(error, broken if committed else _type(error), request_id)


def _type(error: ProxyError) -> str:
    if known := _TYPES.get(error.status):
        return known
    if error.status < 500:
        return "invalid_request_error"
    busy = error.type == Overloaded.type or (isinstance(error, ProviderError) and error.blame is Blame.LOAD)
    return _OVERLOADED if busy else "api_error"
