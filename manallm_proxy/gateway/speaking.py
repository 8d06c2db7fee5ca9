"""Which formats a provider accepts (``speaks`` in its configuration), and at which paths."""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported

VERSION: Final = "2023-06-01"
"""``anthropic-version`` for clients that send none: Anthropic's server requires it."""
_VERSIONED: Final = re.compile(r"/v\d+[a-z0-9]*$")
_NATIVE: Final = (Endpoint.RESPONSES, Endpoint.MESSAGES)


def speaks_openai(provider: ProviderConfig) -> bool:
    """Whether it accepts chats in OpenAI's format."""
    return provider.kind == "openai" or (provider.kind == "ollama" and provider.api != "native")


def accepts(provider: ProviderConfig, call: Call) -> bool:
    """Whether `provider` accepts `call` in one of its formats."""
    if call.native is not None and call.native.dialect.path in provider.speaks:
        return True
    return call.refusal is None and supports_endpoint(provider, call.endpoint)


def supports_endpoint(provider: ProviderConfig, endpoint: Endpoint) -> bool:
    """Whether `provider` accepts a plain request in the format of `endpoint`, translated or not."""
    if endpoint.is_opaque:
        return speaks_openai(provider) and "chat" in provider.speaks
    return "chat" in provider.speaks or endpoint.path in provider.speaks


def unsupported_endpoint(asked: str, call: Call) -> Unsupported:
    """The error if no provider of `asked`, an alias or a target, takes `call`."""
    path = call.endpoint.path
    wanted = "one of kind openai" if call.endpoint.is_opaque else "one that speaks chat"
    message = f"none of {asked}'s providers serves /v1/{path}: it takes {wanted}"
    return Unsupported(message, detail=path, param="model")


def native_paths(provider: ProviderConfig) -> dict[Endpoint, str]:
    """Paths below the base URL, by endpoint that `provider` accepts in addition to chats."""
    paths: dict[Endpoint, str] = {each: each.path for each in _NATIVE if each.path in provider.speaks}
    if Endpoint.MESSAGES in paths:
        paths[Endpoint.COUNT_TOKENS] = Endpoint.COUNT_TOKENS.path
    if provider.kind == "ollama":
        front = "" if speaks_openai(provider) else "v1/"
        return {each: front + path for each, path in paths.items()}
    if not _VERSIONED.search(provider.base_url or ""):  # Anthropic's has its version in its own path
        return {each: path if each is Endpoint.RESPONSES else f"v1/{path}" for each, path in paths.items()}
    return paths


def anthropic_headers(provider: ProviderConfig) -> dict[str, str]:
    """Anthropic's headers, sent in addition to OpenAI's: servers read the key from either."""
    if "messages" not in provider.speaks:
        return {}
    key = {"x-api-key": provider.api_key} if provider.api_key else {}
    return {"anthropic-version": VERSION, **key}
