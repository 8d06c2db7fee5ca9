"""Everything one request needs, built from one configuration.

A reload *prepares* the next generation beside the current one: it opens providers that are new and changes nothing
that is in use, so it may fail or be discarded. *Adopting* it cannot fail. Providers that compare equal keep their
health, their connections and their counters. A generation lives until its last request has ended.
"""

from __future__ import annotations

import asyncio
from typing import Final

from attrs import evolve, field

from manallm_proxy.config.load import with_places
from manallm_proxy.config.model import Config
from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.door import DoorBounds
from manallm_proxy.contract.errors import UnknownModel
from manallm_proxy.contract.events import ModelChosen, Observer
from manallm_proxy.contract.prices import Price
from manallm_proxy.contract.provider import Call, Provider, RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import ANY, MODEL_LIMIT, Chain, Entry, Target
from manallm_proxy.gateway.answers import adopt_answers, fingerprint, new_answers
from manallm_proxy.gateway.client_keys import Caller, Keyring
from manallm_proxy.gateway.close_names import unknown_alias
from manallm_proxy.gateway.embedding_spaces import EmbeddingSpaces
from manallm_proxy.gateway.local_providers import adopt, new_local_providers
from manallm_proxy.gateway.named_chains import NamedChains, chain_of_one
from manallm_proxy.gateway.opening import Closable, close_all, open_all
from manallm_proxy.gateway.own_thread import in_thread
from manallm_proxy.gateway.prepared import Prepared
from manallm_proxy.gateway.shared_limits import SharedLimits
from manallm_proxy.gateway.shared_spend import SharedSpend
from manallm_proxy.gateway.speaking import accepts, unsupported_endpoint
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Policy
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import Broadcast, Clock, HealthRegistry
from manallm_proxy.routing.ledger import Ledger
from manallm_proxy.routing.local_providers import LocalProviders
from manallm_proxy.routing.shared_line import AllWorkers
from manallm_proxy.routing.tiers import Tiers
from manallm_proxy.state.answers import Answers

LATEST: Final = ":latest"
"""The tag that an Ollama client means if it gives none."""


@define
class Generation:
    """One generation of the configuration. Every request holds the one it began with."""

    config: Config
    providers: dict[str, Provider]
    """Configured providers only: one without its key has no client."""
    registry: HealthRegistry
    catalog: Catalog
    prepared: Prepared
    answers: Answers
    """Cached answers, and those in flight."""
    ledger: Ledger
    """Spending. Outlives reloads."""
    limits: SharedLimits
    """Rate limits and budgets that workers and instances share. Outlives reloads."""
    local: LocalProviders = field(factory=LocalProviders)
    """The gates for local providers."""
    spaces: EmbeddingSpaces = field(factory=EmbeddingSpaces)
    tiers: Tiers = field(factory=Tiers)
    _chosen: dict[tuple[str, int, frozenset[str]], str] = field(factory=dict)
    """By alias, position in its chain, and needs: the last reported model of an open entry."""
    caches: bool = field(init=False)
    """Whether any answers are kept."""
    _fingerprints: dict[str, bytes] = field(factory=dict, repr=False)
    _named_before: NamedChains = field(factory=NamedChains, repr=False)
    dialects: frozenset[str] = field(init=False)
    """See `door.Client`, as for ``bounds``."""
    bounds: DoorBounds = field(init=False)
    keyring: Keyring = field(init=False)
    all_chat: bool = field(init=False)
    """Whether every provider accepts chats, so that only opaque requests have to check."""
    is_open_on_loopback: bool = field(init=False)
    """Whether anyone on this machine may call without a key. That includes web pages in its browser, see `hosts`."""
    _opened: dict[str, Provider] = field(factory=dict)
    """Those of ``providers`` that this generation opened."""
    _users: int = 0
    _orphans: list[Closable] = field(factory=list)
    _successor: Generation | None = None
    _closing: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        config = self.config
        self.caches, self.bounds, self.keyring = config.caches, config.door_bounds, self.prepared.keyring
        self.dialects = frozenset(each for p in config.providers.values() for each in p.speaks if each != "chat")
        self.all_chat = all("chat" in provider.speaks for provider in config.providers.values())
        self.is_open_on_loopback = not self.keyring and not config.exposed and config.listen.unix is None

    @classmethod
    def build(
        cls,
        config: Config,
        clock: Clock,
        observe: Observer,
        broadcast: Broadcast | None = None,
        ledger: Ledger | None = None,
        workers: AllWorkers | None = None,
    ) -> Generation:
        """The first generation, already adopted. `workers`: the other workers. Raises ConfigError, see `try_open`."""
        opened, mistakes = open_all(config.providers.values(), observe)
        if mistakes:
            raise with_places(mistakes, config.path)
        healths = {name: _new_health(config, name) for name in config.providers}
        registry = HealthRegistry(healths, clock, observe, broadcast)
        prepared, catalog = Prepared.of(config), Catalog()
        local = new_local_providers(config, catalog, registry, workers=workers)
        adopt(local, config, registry)
        answers = new_answers(config, clock, observe)
        ledger = ledger if ledger is not None else Ledger()
        limits = SharedLimits(SharedSpend(ledger, lambda: answers.link, clock))
        return cls(config, opened, registry, catalog, prepared, answers, ledger, limits, local, opened=opened)

    async def prepare(self, config: Config) -> Generation:
        """The next generation, for `config`. It shares what is unchanged, without modifying it.

        Raises ConfigError if a provider cannot be opened; nothing stays open then. Otherwise call `adopt` or
        `discard` on the result before preparing another one.
        """
        prepared = await in_thread(lambda: Prepared.of(config, self.keyring))
        kept = {name for name, provider in config.providers.items() if self.config.providers.get(name) == provider}
        opened, mistakes = open_all(
            [provider for name, provider in config.providers.items() if name not in kept], self.registry.observe
        )
        if mistakes:
            await close_all(opened.values(), self.registry.observe)
            raise with_places(mistakes, config.path)
        held = self.registry.providers
        healths = {name: held[name] if name in kept else _new_health(config, name) for name in config.providers}
        clients = {name: self.providers.get(name) if name in kept else opened.get(name) for name in config.providers}
        providers = {name: client for name, client in clients.items() if client is not None}
        registry = HealthRegistry(healths, self.registry.clock, self.registry.observe, self.registry.broadcast)
        local = new_local_providers(config, self.catalog, registry, self.local, self.config)
        shared = (self.catalog, prepared, self.answers, self.ledger, self.limits)
        return Generation(config, providers, registry, *shared, local, opened=opened)

    def adopt(self) -> None:
        """Applies this generation to what it shares with the one before: health, callers, model lists. Cannot fail."""
        policy = _policy(self.config)
        for health in self.registry.providers.values():
            health.policy = policy
        self.catalog.keep_only(self.providers.keys() - self._opened.keys())
        self.keyring.adopt()
        adopt(self.local, self.config, self.registry)
        adopt_answers(self.answers, self.config, self.registry.clock, self.registry.observe)

    async def discard(self) -> None:
        """Closes what `prepare` opened. This generation will not serve."""
        await close_all(self._opened.values(), self.registry.observe)

    def resolve(self, model: str, caller: Caller | None = None) -> Chain:
        """The chain for `model`: an alias, ``provider/model``, or a bare name, which the default provider serves.

        Raises UnknownModel if it is none of them, and ModelNotAllowed if `caller` may not use it. Hints name only
        models that `caller` may use.
        """
        try:
            chain = self._named(model, caller)
        except UnknownModel:
            if caller is not None and model:
                caller.require(model)  # a key must not reveal that a model exists which it may not use
            raise
        if caller is not None:
            caller.require(*self._names_of(chain.alias or str(chain.entries[0].target)))
        return chain

    def may_use(self, caller: Caller, name: str) -> bool:
        """Whether `caller`'s key allows an alias, or a full target, by any of its names."""
        return any(map(caller.may_use, self._names_of(name)))

    def _names_of(self, name: str) -> tuple[str, ...]:
        """All names of the same model: with Ollama, and only there, ``:latest`` is implied."""
        settings = self.config.providers.get(name.partition("/")[0])
        bare = name.removesuffix(LATEST)
        if name in self.config.aliases or settings is None or settings.kind != "ollama" or ":" in bare:
            return (name,)
        return bare, bare + LATEST

    def _named(self, model: str, caller: Caller | None) -> Chain:
        aliases = self.config.aliases
        if not model:
            if self.config.default is None:
                raise UnknownModel("the request names no model and no default alias is configured", param="model")
            return aliases[self.config.default]
        if (chain := aliases.get(model)) is None:
            chain = aliases.get(model.removesuffix(LATEST)) or self._named_before.get(model)
        if chain is not None:
            return chain
        if model.startswith(self.config.alias_prefix):
            allowed = caller.may_use if caller is not None else None
            raise UnknownModel(unknown_alias(model, aliases, allowed), param="model")
        provider, slash, rest = model.partition("/")
        if not (slash and provider in self.config.providers):
            provider, rest = self.config.default_provider or "", model
        is_name = _is_sendable(rest) or self.catalog.find(Target(provider, rest)) is not None
        if not provider or not rest or not is_name or (slash and rest == model):
            raise UnknownModel(
                "no such model: ask for an alias, for provider/model of a configured provider, "
                "or for a bare name that the default provider serves; GET /v1/models lists them",
                param="model",
            )
        target = self._without_latest(Target(provider, rest))  # goes by the lists, so it is not cached below
        chain = chain_of_one(self.config, target)
        return chain if model.endswith(LATEST) else self._named_before.keep(model, chain)

    def check_dimensions(self, chain: Chain, call: Call, entry: Entry, length: int) -> None:
        """Raises EmbeddingSpaceMismatch, see `EmbeddingSpaces.check`."""
        self.spaces.check(chain, call, entry, length, self.registry.observe)

    def price_of(self, entry: Entry) -> Price | None:
        """The price of `entry`; for an open entry, of the chosen model. None: unknown."""
        return entry.price or self.config.price_of(entry.target)

    def is_free(self, entry: Entry) -> bool:
        """Whether it may serve an exhausted budget: it is local, or its price is 0."""
        if self.config.providers[entry.target.provider].runs_locally(entry.target):
            return True
        price = self.price_of(entry)
        return price is not None and price.is_free

    def costs(self, entry: Entry | None, usage: Usage | None) -> tuple[float | None, float]:
        """The cost of `usage` at `entry` in USD (None: unknown), and the USD saved if the entry is local."""
        if entry is None or usage is None or not usage.is_plausible:
            return None, 0.0
        price = self.price_of(entry)
        saved = entry.avoided_price.cost(usage) if entry.avoided_price is not None else 0.0
        return price.cost(usage) if price is not None else None, saved

    def chain_for(self, summary: RequestSummary, caller: Caller | None = None) -> Chain:
        """As `resolve`, with each open entry (``ollama/*``) filled with the best model that its provider lists."""
        chain = self.resolve(summary.model, caller)
        if not chain.is_open:
            return chain
        filled = self.catalog.filled(chain, summary.needs)
        if chain.alias is not None:
            self._report_chosen(chain.alias, chain, filled, summary.needs)
        return filled

    def _report_chosen(self, alias: str, chain: Chain, filled: Chain, needs: frozenset[str]) -> None:
        """Reports an open entry's model the first time, and whenever it is another one."""
        for place, (entry, now) in enumerate(zip(chain, filled, strict=True)):
            if not entry.target.is_open or not self.config.providers[entry.target.provider].configured:
                continue
            key, model = (alias, place, needs), now.target.model
            if self._chosen.get(key) == model:
                continue
            was, self._chosen[key] = self._chosen.get(key), model
            event = ModelChosen(
                alias,
                str(entry.target),
                None if now.target.is_open else model,
                was if was != ANY else None,
                tuple(sorted(needs)),
                now.unfilled,
            )
            self.registry.observe(event)

    def fingerprint(self, chain: Chain) -> bytes:
        """A digest that differs whenever `chain` could answer differently, across generations too."""
        if chain is not self.config.aliases.get(chain.alias or ""):  # pinned, filled, or no alias at all
            return fingerprint(chain, self.config)
        assert chain.alias is not None
        if (known := self._fingerprints.get(chain.alias)) is None:
            known = self._fingerprints[chain.alias] = fingerprint(chain, self.config)
        return known

    def speaking(self, chain: Chain, dialect: str) -> set[bool]:
        """Whether the providers of `chain` accept `dialect`: each of them, none, or some."""
        providers = self.config.providers
        return {dialect in providers[entry.target.provider].speaks for entry in chain.entries}

    def supporting(self, chain: Chain, call: Call) -> Chain:
        """`chain` without the targets whose provider cannot take `call`, whatever the model.

        If none is left, raises the reason why the call cannot be translated, or Unsupported. Leaving out some is no
        silent downgrade, so the rest may serve.
        """
        entries = tuple(e for e in chain if accepts(self.config.providers[e.target.provider], call))
        if not entries:
            raise call.refusal or unsupported_endpoint(chain.alias or str(chain.entries[0].target), call)
        return evolve(chain, entries=entries) if len(entries) < len(chain) else chain

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
        if (successor := self._successor) is not None and not self._users:
            self._close_unused(successor)

    def retire(self, successor: Generation) -> None:
        """`successor` serves from now on. What it did not take over is closed after the last request that uses it.

        What it did take over may still be in use here when the successor itself retires. So each generation holds the
        next one, and they end in order.
        """
        self.registry.retire(successor.registry)
        kept = set(map(id, (*successor.providers.values(), *successor.local.boxes.boxes.values())))
        held: list[Closable] = [*self.providers.values(), *self.local.boxes.boxes.values()]
        self._orphans = [each for each in held if id(each) not in kept]
        self._successor = successor
        successor.hold()
        if not self._users:
            self._close_unused(successor)

    def _close_unused(self, successor: Generation) -> None:
        orphans, self._orphans = self._orphans, []
        self._successor = None
        if orphans:
            self._closing = asyncio.get_running_loop().create_task(close_all(orphans, self.registry.observe))
        successor.release()

    async def close(self) -> None:
        """Closes the last generation, when the process ends."""
        await self.limits.spend.settlements.close()
        boxes = self.local.boxes.boxes.values()
        await close_all([*self.providers.values(), *boxes, *self._orphans, self.answers], self.registry.observe)


def _is_sendable(model: str) -> bool:
    """Whether any client may make up such a name: visible ASCII of bounded length. Others must be listed."""
    return len(model) <= MODEL_LIMIT and model.isascii() and model.isprintable() and " " not in model


def _policy(config: Config) -> Policy:
    return Policy(config.health.failure_threshold, config.health.backoff)


def _new_health(config: Config, name: str) -> Health:
    provider = config.providers[name]
    return Health(_policy(config), provider.configured, provider.max_concurrent)
