"""Everything one request needs, built from one configuration.

A reload *prepares* the next generation beside the current one: it opens providers that are new and changes nothing
that is in use, so that it may fail or be given up. *Adopting* it cannot fail. Providers that compare equal keep their
health, their connections and their counters. A generation lives until its last request has ended.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Final

from attrs import define, evolve, field

from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.config.structure import ConfigError, join
from manallm_proxy.contract.errors import UnknownModel
from manallm_proxy.contract.events import Crashed, Observer
from manallm_proxy.contract.provider import Endpoint, ModelList, Provider
from manallm_proxy.contract.provider_errors import Unsupported
from manallm_proxy.contract.targets import MODEL_LIMIT, Chain, Entry, Target
from manallm_proxy.gateway.client_keys import Caller, Keyring
from manallm_proxy.http_client.api import Address
from manallm_proxy.providers.gemini.wire import KEY_HEADER, GeminiWire, versioned
from manallm_proxy.providers.http_provider import HttpProvider
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Wire
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Policy
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import Clock, HealthRegistry, Tell

LATEST: Final = ":latest"
"""The tag that an Ollama client means where it gives none."""


def open_provider(provider: ProviderConfig, observe: Observer) -> Provider:
    """The client of one configured provider. It connects to nothing yet."""
    if provider.kind == "loopback":
        return LoopbackProvider(provider.name)
    wire: Wire
    if provider.kind == "google":
        wire = GeminiWire()
    elif not _speaks_openai(provider):
        wire = OllamaWire()
    else:
        wire = OpenAIWire(asks_usage=provider.stream_usage)
    return HttpProvider(_address(provider), wire, provider.extra_retryable_statuses, observe)


def _address(provider: ProviderConfig) -> Address:
    base_url, key_header = provider.base_url or "", None
    if provider.kind == "google":
        base_url, key_header = versioned(provider.base_url), KEY_HEADER
    elif provider.kind == "ollama" and _speaks_openai(provider) and not base_url.endswith("/v1"):
        base_url += "/v1"
    return Address(
        provider.name,
        base_url,
        provider.api_key,
        provider.headers,
        provider.verify_tls,
        provider.proxy,
        key_header,
    )


async def list_live(provider: ProviderConfig, seconds: float) -> ModelList | None:
    """The models of a configured provider that is not probed, for ``check --live``; None where there is no list.

    ProviderError where they cannot be had within `seconds`.
    """
    if provider.kind != "google":
        return None
    module = "manallm_proxy.providers.gemini.live_models"
    live = await asyncio.to_thread(import_module, module)  # 0.3 s that only this command pays
    listed: ModelList = await live.live_models(_address(provider), seconds)
    return listed


async def try_open(config: Config) -> None:
    """Opens all providers of `config` and closes them again. Raises ConfigError if one cannot be opened."""
    opened, mistakes = _open_all(config.providers.values(), lambda event: None)
    await _close_all(opened.values(), lambda event: None)
    if mistakes:
        raise ConfigError(mistakes)


def _open_all(providers: Iterable[ProviderConfig], observe: Observer) -> tuple[dict[str, Provider], list[str]]:
    """The clients of all `providers` that have their key, and a mistake for each that could not be opened."""
    opened: dict[str, Provider] = {}
    mistakes: list[str] = []
    for provider in providers:
        if provider.configured:
            try:
                opened[provider.name] = open_provider(provider, observe)
            except Exception as error:  # the readers check all we know of; what they miss must not get past here
                mistakes.append(_mistake(provider, error))
    return opened, mistakes


def _mistake(provider: ProviderConfig, error: Exception) -> str:
    """Names the setting, and not its value, which may hold a secret."""
    path = join("providers", provider.name)
    if isinstance(error, ValueError) and provider.base_url is not None:
        return f"{path}.base_url: no client can be opened for this URL ({type(error).__name__})"
    return f"{path}: no client can be opened for it ({type(error).__name__})"


def _speaks_openai(provider: ProviderConfig) -> bool:
    return provider.kind == "openai" or (provider.kind == "ollama" and provider.api != "native")


@define
class Generation:
    """One generation of the configuration. Every request holds the one it began with."""

    config: Config
    providers: dict[str, Provider]
    """Configured providers only: an unconfigured one has nothing to call."""
    registry: HealthRegistry
    catalog: Catalog
    keyring: Keyring
    dimensions: dict[str, tuple[str, int]] = field(factory=dict)
    """For each alias the first target that returned embeddings, and their length."""
    is_open_on_loopback: bool = field(init=False)
    """Nothing but being on this machine is asked of who calls, and every page in its browser is on it."""
    _opened: dict[str, Provider] = field(factory=dict)
    """Those of ``providers`` that no earlier generation has."""
    _users: int = 0
    _orphans: list[Provider] = field(factory=list)
    _successor: Generation | None = None
    _closing: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        config = self.config
        self.is_open_on_loopback = not self.keyring and not config.exposed and config.listen.unix is None

    @classmethod
    def build(cls, config: Config, clock: Clock, observe: Observer, broadcast: Tell | None = None) -> Generation:
        """The first generation, in effect. Raises ConfigError if a provider cannot be opened (see `try_open`)."""
        opened, mistakes = _open_all(config.providers.values(), observe)
        if mistakes:
            raise ConfigError(mistakes)
        healths = {name: _new_health(config, name) for name in config.providers}
        registry = HealthRegistry(healths, clock, observe, broadcast)
        return cls(config, opened, registry, Catalog(), Keyring.build(config.auth.keys), opened=opened)

    async def prepare(self, config: Config) -> Generation:
        """The generation for `config` after this one. It shares what is unchanged and changes nothing of it.

        Raises ConfigError if a provider cannot be opened; nothing stays open then. Otherwise call `adopt` or
        `discard` on the result, and prepare no other meanwhile.
        """
        kept = {name for name, provider in config.providers.items() if self.config.providers.get(name) == provider}
        opened, mistakes = _open_all(
            [provider for name, provider in config.providers.items() if name not in kept], self.registry.observe
        )
        if mistakes:
            await _close_all(opened.values(), self.registry.observe)
            raise ConfigError(mistakes)
        held = self.registry.providers
        healths = {name: held[name] if name in kept else _new_health(config, name) for name in config.providers}
        clients = {name: self.providers.get(name) if name in kept else opened.get(name) for name in config.providers}
        providers = {name: client for name, client in clients.items() if client is not None}
        registry = HealthRegistry(healths, self.registry.clock, self.registry.observe, self.registry.broadcast)
        keyring = Keyring.build(config.auth.keys, self.keyring)
        return Generation(config, providers, registry, self.catalog, keyring, opened=opened)

    def adopt(self) -> None:
        """Applies this generation to what it shares with the one before: health, callers, model lists. Cannot fail."""
        policy = _policy(self.config)
        for health in self.registry.providers.values():
            health.policy = policy
        self.catalog.keep_only(self.providers.keys() - self._opened.keys())
        self.keyring.adopt()

    async def discard(self) -> None:
        """Closes what `prepare` opened. This generation will not serve."""
        await _close_all(self._opened.values(), self.registry.observe)

    def resolve(self, model: str, caller: Caller | None = None) -> Chain:
        """The chain for `model`: an alias, ``provider/model``, or a bare name, which the default provider serves.

        Raises UnknownModel if it is none of them, and ModelNotAllowed if `caller` may not use it. Hints name only
        models that `caller` may use.
        """
        try:
            chain = self._named(model, caller)
        except UnknownModel:
            if caller is not None and model:
                caller.require(model)  # what a key may not use, it cannot find out the existence of
            raise
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
        return Chain(None, (entry,), timeout=self.config.chain_timeout)

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
        """`successor` serves from now on. What it did not take over is closed after the last request that uses it.

        What it did take over may still be in use here when the successor retires in its turn. So each generation
        holds the next one, and they end in order.
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
            self._closing = asyncio.get_running_loop().create_task(_close_all(orphans, self.registry.observe))
        successor.release()

    async def close(self) -> None:
        """Closes the last generation, when the process ends."""
        await _close_all([*self.providers.values(), *self._orphans], self.registry.observe)


def _is_sendable(model: str) -> bool:
    """Whether it can be part of a response header: visible ASCII of bounded length."""
    return len(model) <= MODEL_LIMIT and model.isascii() and model.isprintable() and " " not in model


def _policy(config: Config) -> Policy:
    return Policy(config.health.failure_threshold, config.health.backoff)


def _new_health(config: Config, name: str) -> Health:
    provider = config.providers[name]
    return Health(_policy(config), provider.configured, provider.max_concurrent)


async def _close_all(providers: Iterable[Provider], observe: Observer) -> None:
    """Closes all, however many of them fail, and reports each failure."""
    for outcome in await asyncio.gather(*(provider.close() for provider in providers), return_exceptions=True):
        if isinstance(outcome, BaseException):
            observe(Crashed("closing a provider", outcome))
