"""Ollama's error format: one string."""

from __future__ import annotations

from manallm_proxy.contract.errors import ProxyError, UnknownModel
from manallm_proxy.contract.provider_errors import MissingModel
from manallm_proxy.doors.ollama.lines import one_line


def ollama_error_body(error: ProxyError) -> bytes:
    """``{"error": "text"}``, whose text every Ollama client shows unchanged."""
    message = error.message
    if isinstance(error, UnknownModel | MissingModel) and "not found" not in message:
        message = f"model not found: {message}"  # clients look for these words
    return one_line({"error": message})
