"""Everything one request needs, built from one configuration.

A reload builds a new snapshot beside the old one: providers that compare equal keep their health, their
connections and their counters. The old one lives until its last request has ended.
"""

from __future__ import annotations

import asyncio
import difflib
from typing import Final

from attrs import define, evolve, field

from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.contract.errors import UnknownModel, Unsupported
from manallm_proxy.contract.events import Observer
from manallm_proxy.contract.provider import Endpoint, Provider
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.client_keys import Caller, Keyring
from manallm_proxy.http_client.aiohttp_session import Session
from manallm_proxy.http_client.api import Address
from manallm_proxy.providers.http_provider import HttpProvider
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.health import Health, Policy
from manallm_proxy.routing.health_registry import Clock, HealthRegistry, Tell

MODEL_LIMIT: Final = 256
"""Characters of a model's name that is worth asking a provider for."""
LATEST: Final = ":latest"
"""The tag that an Ollama client means where it gives none."""


def open_provider(provider: ProviderConfig) -> Provider:
    """The connection to one configured provider; each kind is one line here."""
    if provider.kind == "loopback":
        return LoopbackProvider(provider.name)
    if provider.kind == "google":
        from manallm_proxy.providers.gemini.provider import GeminiProvider  # 0.3 s and 24 MB that only its users pay

        return GeminiProvider(
            provider.name,
            provider.api_key or "",
            provider.base_url,
            provider.headers,
            Session(provider.verify_tls, provider.proxy),
            extra_retryable_statuses=provider.extra_retryable_statuses,
        )
    wire: OllamaWire | OpenAIWire
    if not _speaks_openai(provider):
        wire, base_url = OllamaWire(), provider.base_url or ""
    else:
        wire, base_url = OpenAIWire(asks_usage=provider.stream_usage), provider.base_url or ""
        if provider.kind == "ollama" and not base_url.endswith("/v1"):
            base_url += "/v1"
    address = Address(
        provider.name,
        base_url,
        provider.api_key,
        provider.headers,
        provider.verify_tls,
        provider.proxy,
    )
    return HttpProvider(address, wire, provider.extra_retryable_statuses)


def _speaks_openai(provider: ProviderConfig) -> bool:
    return provider.kind == "openai" or (provider.kind == "ollama" and provider.api != "native")


@define
class Generation:
    """One generation. Whoever answers a request holds it for as long."""

    config: Config
    providers: dict[str, Provider]
    """Configured providers only: an unconfigured one has nothing to call."""
    registry: HealthRegistry
    catalog: Catalog
    keyring: Keyring
    dimensions: dict[str, tuple[str, int]] = field(factory=dict)
    """The first target that gave embeddings for each alias, and their length."""
    _users: int = 0
    _orphans: list[Provider] = field(factory=list)
    _successor: Generation | None = None
    _closing: asyncio.Task[None] | None = None

    @classmethod
    def build(
        cls,
        config: Config,
        clock: Clock,
        observe: Observer,
        before: Generation | None = None,
        broadcast: Tell | None = None,
    ) -> Generation:
        """The generation after `before`. What it shares with it stays as it is."""
        policy = Policy(config.health.failure_threshold, config.health.backoff)
        healths: dict[str, Health] = {}
        providers: dict[str, Provider] = {}
        for name, provider in config.providers.items():
            if before is not None and before.config.providers.get(name) == provider:
                health = before.registry.providers[name]
                health.policy = policy
                if name in before.providers:
                    providers[name] = before.providers[name]
            else:
                health = Health(policy, provider.configured, provider.max_concurrent)
                if provider.configured:
                    providers[name] = open_provider(provider)
            healths[name] = health
        registry = HealthRegistry(healths, clock, observe, broadcast)
        catalog = before.catalog if before is not None else Catalog()
        if before is not None:
            catalog.keep_only({name for name, each in providers.items() if each is before.providers.get(name)})
        keyring = Keyring.build(config.auth.keys, before.keyring if before is not None else None)
        return cls(config, providers, registry, catalog, keyring)

    def resolve(self, model: str, caller: Caller | None = None) -> Chain:
        """The chain that `model` names (contract, section 4.1). UnknownModel where it names none.

        A `caller` is told of its own models only; ModelNotAllowed where this is another.
        """
        chain = self._named(model, caller)
        if caller is not None:
            caller.require(chain.alias or str(chain.entries[0].target))
        return chain

    def _named(self, model: str, caller: Caller | None) -> Chain:
        aliases = self.config.aliases
        if not model:
            if self.config.default is None:
                raise UnknownModel("the request names no model and no default alias is configured", param="model")
            return aliases[self.config.default]
        chain = aliases.get(model) or aliases.get(model.removesuffix(LATEST))
        if chain is not None:
            return chain
        if model.startswith(self.config.alias_prefix):
            known = [name for name in aliases if caller is None or caller.may_use(name)]
            close = difflib.get_close_matches(model[:MODEL_LIMIT], known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UnknownModel(f"no alias of that name.{hint} Known: {', '.join(known)}", param="model")
        provider, slash, rest = model.partition("/")
        if not (slash and provider in self.config.providers):
            provider, rest = self.config.default_provider or "", model
        if not provider or not rest or not _is_sendable(rest) or (slash and rest == model):
            raise UnknownModel(
                "no such model: ask for an alias, for provider/model of a configured provider, "
                "or for a bare name that the default provider serves; GET /v1/models lists them",
                param="model",
            )
        settings = self.config.providers[provider]
        entry = Entry(self._without_latest(Target(provider, rest)), settings.timeouts, settings.options)
        return Chain(None, (entry,))

    def able(self, chain: Chain, endpoint: Endpoint) -> Chain:
        """`chain` without the targets whose kind of provider knows nothing like `endpoint`, whatever their model.

        Unsupported where none is left. That one of several cannot is no downgrade, so the rest may serve.
        """
        entries = tuple(e for e in chain if _speaks_openai(self.config.providers[e.target.provider]))
        if not entries:
            raise Unsupported(
                f"none of {chain.alias or chain.entries[0].target}'s providers serves /v1/{endpoint.path}: "
                "it takes one of kind openai",
                detail=endpoint.path,
                param="model",
            )
        return evolve(chain, entries=entries)

    def _without_latest(self, target: Target) -> Target:
        """Ollama's clients add ``:latest`` to every name without a tag; only Ollama's models have such a name."""
        bare = target.model.removesuffix(LATEST)
        kind = self.config.providers[target.provider].kind
        if bare == target.model or not bare or kind == "ollama":
            return target
        lists_it = self.catalog.lists(target)
        knows_bare = kind == "google" or self.catalog.lists(Target(target.provider, bare))
        return Target(target.provider, bare) if knows_bare and not lists_it else target

    def hold(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        self._settle()

    def retire(self, successor: Generation) -> None:
        """A newer generation serves. What it did not take over is closed behind the last request.

        What it did take over may still be in use here when the newer one retires in its turn: so each generation
        holds the next, and they end in order.
        """
        kept = set(map(id, successor.providers.values()))
        self._orphans = [u for u in self.providers.values() if id(u) not in kept]
        self._successor = successor
        successor.hold()
        self._settle()

    def _settle(self) -> None:
        if self._successor is None or self._users:
            return
        orphans, self._orphans = self._orphans, []
        successor, self._successor = self._successor, None
        if orphans:
            self._closing = asyncio.get_running_loop().create_task(_close_all(orphans))
        successor.release()

    async def close(self) -> None:
        """The last generation's end."""
        await _close_all([*self.providers.values(), *self._orphans])


def _is_sendable(model: str) -> bool:
    """A target's name becomes a response header: visible ASCII, of bounded length."""
    return len(model) <= MODEL_LIMIT and model.isascii() and model.isprintable() and " " not in model


async def _close_all(providers: list[Provider]) -> None:
    for provider in providers:
        await provider.close()
