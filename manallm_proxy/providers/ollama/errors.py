"""What Ollama's errors mean (server/routes.go, ``handleScheduleError``; llm/llama_server.go).

Ollama sends ``{"error": "text"}`` and little else, so the decision partly depends on the text. `classify` handles what
is not specific to Ollama.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from manallm_proxy.contract.provider_errors import (
    KeyRejected,
    ModelFailed,
    ProviderError,
    ServerBusy,
    ServerFailed,
)
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.providers.classify import ErrorDetails, classify, parse_error, with_provider_message
from manallm_proxy.providers.scrub import clean

_BUSY: Final = ("server busy", "loading model", "overloaded")

_TROUBLES: Final = (
    ("system memory", "not enough memory"),
    ("out of memory", "not enough memory"),
    ("unexpectedly stopped", "its runner stopped"),
    ("has terminated", "its runner stopped"),
    ("unable to load", "it cannot be loaded"),
    ("failed to load", "it cannot be loaded"),
    ("timed out", "it took too long to load"),
)
"""The part of a 500's text that may be shown: the rest may contain paths, or a model's output."""


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error for a status other than 200."""
    try:
        data = decode(body)
    except DecodeErrors:
        data = None  # a reverse proxy's page, or gin's "404 page not found"
    details = parse_error(data)
    if status in (401, 403):
        return with_provider_message(_refused(status, data, details.message), details.message)
    return with_provider_message(_classed(status, headers, details), details.message)


def in_band(error: object) -> ProviderError:
    """The error for an ``error`` under status 200. Its status is 500, unless the inner runner gave one."""
    details = parse_error({"error": error})
    return with_provider_message(_classed(details.status or 500, {}, details), details.message)


def _classed(status: int, headers: Mapping[str, str], details: ErrorDetails) -> ProviderError:
    """In this order: 1 texts common to all servers, 2 a full queue, 3 trouble of one model, 4 the rest by status."""
    # 1
    error = classify(status, headers, details)
    if not isinstance(error, ServerFailed):
        return error
    text = clean(details.message)
    low = text.lower()
    # 2
    if any(words in low for words in _BUSY):
        return ServerBusy("Ollama is busy", detail="busy", provider_status=status)
    # 3: 502 with a text is a ``:cloud`` model out of reach, without one a reverse proxy without its Ollama
    if status == 500 or (status == 502 and text):
        detail = next((shown for words, shown in _TROUBLES if words in low), f"status {status}")
        return ModelFailed(f"Ollama could not run the model ({detail})", detail=detail, provider_status=status)
    # 4
    return error


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
