"""Anthropic's error envelope, with additional members."""

from __future__ import annotations

import re
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
"""Error types by status. The SDKs choose their exception classes by the status alone."""
_OVERLOADED: Final = "overloaded_error"
_THREADS: Final = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""The ``details`` that make the SDKs' tool runners continue without threads."""

_TOO_LONG: Final = "prompt is too long"
"""Anthropic's words, by which Claude Code knows that it has to compact the conversation."""
_LIMIT: Final = re.compile(
    r"(?:maximum context length (?:is|of)|available context size \(|context window (?:is|of)) ?(\d{1,9}) tokens"
    r"|maximum number of tokens allowed \((\d{1,9})\)"
)
_LENGTH: Final = re.compile(r"(?:resulted in|requested|request \() ?(\d{1,9}) tokens|token count \((\d{1,9})\)")


def error_body(error: ProxyError) -> bytes:
    """The body of an error response; see `door.Door`."""
    return encode(envelope(error, _type(error), error.request_id))


def envelope(error: ProxyError, type_: str, request_id: str | None) -> dict[str, Any]:
    """``{"type": "error", "error": {...}, "request_id"}``, with the same members in ``error`` as OpenAI's form."""
    inner: dict[str, Any] = {
        "type": type_,
        "message": _message(error),
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
    """The last event of a broken stream. After the commit its type never blames the caller."""
    is_load = _type(error) in (_OVERLOADED, "rate_limit_error")
    broken = _OVERLOADED if is_load else "api_error"
    return envelope(error, broken if committed else _type(error), request_id)


def _message(error: ProxyError) -> str:
    """Its message; that of a prompt that is too long begins as Anthropic's own."""
    words = error.message
    if error.code != "context_length_exceeded" or _TOO_LONG in words.lower():
        return words
    limit, length = _LIMIT.search(words), _LENGTH.search(words)
    if limit is None or length is None:
        return f"{_TOO_LONG}: {words}"
    return f"{_TOO_LONG}: {length[length.lastindex or 1]} tokens > {limit[limit.lastindex or 1]} maximum: {words}"


def _type(error: ProxyError) -> str:
    if known := _TYPES.get(error.status):
        return known
    if error.status < 500:
        return "invalid_request_error"
    busy = error.type == Overloaded.type or (isinstance(error, ProviderError) and error.blame is Blame.LOAD)
    return _OVERLOADED if busy else "api_error"
