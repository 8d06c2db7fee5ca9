"""Ollama's error: one string."""

from __future__ import annotations

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.openai.json_object import encode


def ollama_error_body(error: ProxyError) -> bytes:
    """``{"error": "text"}``, which every Ollama client shows as it is."""
    return encode({"error": error.message})
