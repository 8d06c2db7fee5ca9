"""Opens a client for each configured provider, with the wire of its dialect; closes them together.

A dialect is imported with the first provider that speaks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from importlib import import_module
from typing import Protocol

from manallm_proxy.config.load import with_places
from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.config.structure import join
from manallm_proxy.contract.events import Crashed, Observer
from manallm_proxy.contract.provider import ModelList, Provider
from manallm_proxy.gateway.speaking import anthropic_headers, native_paths, speaks_openai
from manallm_proxy.http_client.api import Address
from manallm_proxy.providers.http_provider import HttpProvider
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Wire


def open_provider(provider: ProviderConfig, observe: Observer) -> Provider:
    """The client of one configured provider. It connects to nothing yet."""
    if provider.kind == "loopback":
        return LoopbackProvider(provider.name)
    wire: Wire
    if provider.kind == "google":
        from manallm_proxy.providers.gemini.wire import GeminiWire

        wire = GeminiWire()
    elif not speaks_openai(provider):
        from manallm_proxy.providers.ollama.wire import OllamaWire

        wire = OllamaWire(provider.client_options)
    else:
        forces_tools = provider.kind == "openai" and "force_tools" in provider.options
        wire = OpenAIWire(asks_usage=provider.stream_usage, forces_tools=forces_tools)
    if paths := native_paths(provider):
        from manallm_proxy.providers.native.wire import NativeWire

        wire = NativeWire(wire, paths)
    address, retryable = address_of(provider), provider.extra_retryable_statuses
    details = None
    if provider.kind == "ollama":
        from manallm_proxy.providers.ollama.model_details import ModelDetails

        details = ModelDetails(address)
    return HttpProvider(address, wire, retryable, observe, provider.answers, details)


def address_of(provider: ProviderConfig) -> Address:
    """The provider's URL, and the headers sent with every request."""
    base_url, key_header = provider.base_url or "", None
    if provider.kind == "google":
        from manallm_proxy.providers.gemini.wire import KEY_HEADER, versioned

        base_url, key_header = versioned(provider.base_url), KEY_HEADER
    elif provider.kind == "ollama" and speaks_openai(provider) and not base_url.endswith("/v1"):
        base_url += "/v1"
    return Address(
        provider.name,
        base_url,
        provider.api_key,
        provider.headers,
        provider.verify_tls,
        provider.proxy,
        key_header,
        anthropic_headers(provider),
    )


async def list_live(provider: ProviderConfig, seconds: float) -> ModelList | None:
    """The models of a configured provider that is not probed, for ``check --live``; None if there is no list.

    Raises ProviderError if they do not come within `seconds`.
    """
    if provider.kind != "google":
        return None
    module = "manallm_proxy.providers.gemini.live_models"
    live = await asyncio.to_thread(import_module, module)  # takes 0.3 s, which only this command pays
    listed: ModelList = await live.live_models(address_of(provider), seconds)
    return listed


async def try_open(config: Config) -> None:
    """Opens all providers of `config` and closes them again. Raises ConfigError if one cannot be opened."""
    opened, mistakes = open_all(config.providers.values(), lambda event: None)
    await close_all(opened.values(), lambda event: None)
    if mistakes:
        raise with_places(mistakes, config.path)


def open_all(providers: Iterable[ProviderConfig], observe: Observer) -> tuple[dict[str, Provider], list[str]]:
    """The clients of all `providers` that have their key, and a mistake for each that could not be opened."""
    opened: dict[str, Provider] = {}
    mistakes: list[str] = []
    for provider in providers:
        if provider.configured:
            try:
                opened[provider.name] = open_provider(provider, observe)
            except Exception as error:  # the readers check all known mistakes; others must not get past here
                mistakes.append(_mistake(provider, error))
    return opened, mistakes


def _mistake(provider: ProviderConfig, error: Exception) -> str:
    """The mistake for `error`. Names the setting, but not its value, which may hold a secret."""
    path = join("providers", provider.name)
    if isinstance(error, ValueError) and provider.base_url is not None:
        return f"{path}.base_url: no client can be opened for this URL ({type(error).__name__})"
    return f"{path}: no client can be opened for it ({type(error).__name__})"


class Closable(Protocol):
    """A provider's client, or a box."""

    async def close(self) -> None:
        """Closes its connections."""


async def close_all(providers: Iterable[Closable], observe: Observer) -> None:
    """Closes all, even if some fail, and reports each failure."""
    for outcome in await asyncio.gather(*(provider.close() for provider in providers), return_exceptions=True):
        if isinstance(outcome, BaseException):
            observe(Crashed("closing a provider", outcome))
