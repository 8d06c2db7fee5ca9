"""OpenAI's error envelope: written with additional members, and recognised in others' answers."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.openai.json_object import encode


def error_body(error: ProxyError) -> bytes:
    """``{"error": {...}}``: OpenAI's message, type, param, code; our source, provider, target and attempts."""
    inner: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "source": error.source,
    }
    if isinstance(error, ProviderError) and error.target:
        inner |= {"provider": error.target.partition("/")[0], "target": error.target}
    if isinstance(error, NoProvider):
        inner["attempts"] = [line.to_json() for line in error.attempts]
    return encode({"error": inner})


def is_error_value(error: object) -> bool:
    """Whether the value of an ``error`` key reports an error: some servers send an empty one with every good answer."""
    if isinstance(error, dict):
        return any(value not in (None, "", 0, False) and value != {} and value != [] for value in error.values())
    return bool(error)
