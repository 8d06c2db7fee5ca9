"""What Ollama's errors mean (server/routes.go handleScheduleError, llm/llama_server.go; wire.md B.2, E.2).

Ollama says ``{"error": "text"}`` and little else, so part of the decision is made by the text. An error of
the runner inside comes as it was, as JSON in that string. `classify` decides what is not special here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from manallm_proxy.contract.provider_errors import (
    ContextTooLong,
    KeyRejected,
    ModelFailed,
    ProviderError,
    ServerBusy,
    Unsupported,
)
from manallm_proxy.openai.schema import DecodeErrors, decode
from manallm_proxy.providers.classify import ErrorDetails, classify, clean, parse_error

_TOO_LONG: Final = ("longer than the context", "exceeds the context", "exceeds the available context")
_TOO_LONG_KINDS: Final = ("exceed_context_size_error", "context_length_exceeded")
_LACKING: Final = ("does not support ", "input is not supported")
_BUSY: Final = ("server busy", "loading model", "overloaded")
_CALLERS: Final = ("must be of type", "must be of an array", "invalid format")
"""Mistakes of the caller, or of ``options``, that come with status 500."""

_TROUBLES: Final = (
    ("system memory", "not enough memory"),
    ("out of memory", "not enough memory"),
    ("unexpectedly stopped", "its runner stopped"),
    ("has terminated", "its runner stopped"),
    ("unable to load", "it cannot be loaded"),
    ("failed to load", "it cannot be loaded"),
    ("timed out", "it took too long to load"),
)
"""What may be shown of a 500: the rest of the text can hold paths, or what a model said."""

_NESTED_AT_MOST: Final = 3


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error for a status other than 200."""
    try:
        data = decode(body)
    except DecodeErrors:
        data = None  # a reverse proxy's page, or gin's "404 page not found"
    if status in (401, 403):
        return _refused(status, data, parse_error(data).message)
    return _classed(status, headers, _unwrapped(parse_error(data)))


def in_band(error: object) -> ProviderError:
    """The error for an ``error`` under status 200. Its status is 500, unless the runner inside told its own."""
    spoken = _unwrapped(parse_error({"error": error}))
    return _classed(spoken.status or 500, {}, spoken)


def _unwrapped(spoken: ErrorDetails) -> ErrorDetails:
    """``{"error": "{\\"error\\": {...}}"}``: the innermost one that says something."""
    for _ in range(_NESTED_AT_MOST):
        if spoken.message[:1] != "{":
            break
        try:
            inner = parse_error(decode(spoken.message))
        except DecodeErrors:
            break
        if not inner.message:
            break
        spoken = inner
    return spoken


def _classed(status: int, headers: Mapping[str, str], spoken: ErrorDetails) -> ProviderError:
    """1 what does not fit the model, 2 what it lacks, 3 a queue, 4 one model's trouble, 5 the rest by its status."""
    text = clean(spoken.message)
    low = text.lower()
    # 1
    if spoken.kind in _TOO_LONG_KINDS or any(words in low for words in _TOO_LONG):
        return ContextTooLong(text, provider_status=400)
    # 2
    if status in (400, 500, 501) and any(words in low for words in _LACKING):
        return Unsupported(text, provider_status=status)
    # 3
    if status >= 500 and any(words in low for words in _BUSY):
        return ServerBusy("Ollama is busy", detail="busy", provider_status=status)
    # 4: 502 with a text is a ``:cloud`` model out of reach, without one a reverse proxy without its Ollama
    if status == 500 or (status == 502 and text):
        return _model_failed(status, text, low)
    # 5
    return classify(
        status, headers, text, kind=spoken.kind, code=spoken.code, param=spoken.param, retry_after=spoken.retry_after
    )


def _model_failed(status: int, text: str, low: str) -> ModelFailed:
    if any(words in low for words in _CALLERS):
        return ModelFailed(text, detail="an option does not fit", provider_status=status)
    detail = next((shown for words, shown in _TROUBLES if words in low), f"status {status}")
    return ModelFailed(f"Ollama could not run the model ({detail})", detail=detail, provider_status=status)


def _refused(status: int, data: object, text: str) -> KeyRejected:
    if status == 403 and data is None:
        # allowedHostsMiddleware: an Ollama that listens on loopback checks the Host header, and says nothing
        message = (
            "Ollama refused this host name (status 403, as its Host check does): "
            "set OLLAMA_HOST=0.0.0.0 where it runs, or give base_url with its IP address"
        )
    elif isinstance(data, dict) and "signin_url" in data:
        message = "Ollama is not signed in to ollama.com, which this model needs: run 'ollama signin' where it runs"
    else:
        message = f"Ollama refused the proxy (status {status})" + (f": {clean(text)}" if text else "")
    return KeyRejected(message, detail=f"status {status}", provider_status=status)
