"""Which formats a provider accepts (``speaks`` in its configuration), and at which paths."""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import Unsupported

VERSION: Final = "2023-06-01"
"""``anthropic-version`` for clients that send none; without it Anthropic's server refuses a request."""
_VERSIONED: Final = re.compile(r"/v\d+[a-z0-9]*$")
_NATIVE: Final = (Endpoint.RESPONSES, Endpoint.MESSAGES)


def speaks_openai(provider: ProviderConfig) -> bool:
    """Whether it takes chats in OpenAI's format."""
    return provider.kind == "openai" or (provider.kind == "ollama" and provider.api != "native")


def accepts(provider: ProviderConfig, call: Call) -> bool:
    """Whether `provider` can be asked in a form that `call` has."""
    if call.native is not None and call.native.dialect.path in provider.speaks:
        return True
    return call.refusal is None and supports_endpoint(provider, call.endpoint)


def supports_endpoint(provider: ProviderConfig, endpoint: Endpoint) -> bool:
    """Whether `provider` can be asked for a plain request in the format of `endpoint`, translated or not."""
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
    """By endpoint that `provider` speaks beside chats: its path below the base URL that requests go to."""
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
    """What Anthropic's API wants beside OpenAI's headers: servers read the key in one place or the other."""
    if "messages" not in provider.speaks:
        return {}
    key = {"x-api-key": provider.api_key} if provider.api_key else {}
    return {"anthropic-version": VERSION, **key}
