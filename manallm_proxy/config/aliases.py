"""``aliases``: each entry becomes a `Chain` whose settings are resolved, or its mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import attrs

from manallm_proxy.config.file_model import AliasGiven, EntryGiven, TierGiven
from manallm_proxy.config.hints import suggestion
from manallm_proxy.config.key_checks import budget_mistakes
from manallm_proxy.config.model import Cached, ModelKey, ProviderConfig, model_key
from manallm_proxy.config.providers import Providers, refuses_options
from manallm_proxy.config.structure import Mistakes, join, structure
from manallm_proxy.config.windows import windows_of
from manallm_proxy.config.yaml_file import shown
from manallm_proxy.contract.prices import Price
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import CachePolicy, Chain, Entry, Tier

SEGMENT: Final = re.compile(r"[\x21-\x2e\x30-\x7e]{1,128}")


@define
class Aliases:
    """The aliases read so far. ``chain_timeout``: default for those that set none."""

    providers: Providers
    prefix: str
    chain_timeout: float
    mistakes: Mistakes
    done: dict[str, Chain] = attrs.field(factory=dict)
    _places: list[tuple[str, Entry]] = attrs.field(factory=list)
    """All entries, with their paths."""

    def add(self, name: str, raw: object) -> None:
        path = join("aliases", name)
        segment = name.removeprefix(self.prefix)
        if not name.startswith(self.prefix) or SEGMENT.fullmatch(segment) is None:
            self.mistakes.add(
                path, f"an alias is '{self.prefix}' and one segment of visible ASCII, without a slash or blanks"
            )
        given = structure(AliasGiven, raw, path, self.mistakes)
        if given is None:
            return
        if not given.chain:
            self.mistakes.add(f"{path}.chain", "needs at least one target")
        placed = [each for n, raw in enumerate(given.chain) for each in self._step(raw, given, path, n)]
        entries = [entry for _, entry in placed]
        for number, (again, entry) in enumerate(placed):
            if entry in entries[:number] and not entry.target.is_open:
                self.providers.notes.append(f"{again}: {entry.target} stands in this chain before, in the same words")
        self._check_dimensions(placed)
        for place, what in budget_mistakes(given.budget, given.on_budget):
            self.mistakes.add(f"{path}.{place}", what)
        self.done[name] = Chain(
            alias=name,
            entries=tuple(entries),
            description=given.description,
            timeout=self.chain_timeout if given.chain_timeout is None else given.chain_timeout,
            local_only=given.locality == "local",
            budget=given.budget.with_policy(given.on_budget) if given.budget is not None else None,
            cache=cache_policy(given.cache, (self.providers.done[entry.target.provider] for entry in entries)),
        )

    def _check_dimensions(self, placed: Iterable[tuple[str, Entry]]) -> None:
        first: int | None = None
        for place, entry in placed:
            if entry.dimensions is not None and first is not None and entry.dimensions != first:
                what = f"is {entry.dimensions} here and {first} before: vectors of one alias are compared"
                self.mistakes.add(f"{place}.dimensions", what)
            first = entry.dimensions if first is None else first

    def finish(self) -> dict[ModelKey, dict[str, Any]]:
        """Gives every entry its model's window; returns the options that each model is loaded with."""
        providers = self.providers.done
        windows = windows_of(self._places, providers, self.mistakes)
        if not any(windows.values()):
            return {}

        def loaded(entry: Entry) -> Entry:
            key = model_key(providers[entry.target.provider], entry.target.model)
            return attrs.evolve(entry, options={**entry.options, **windows.get(key, {})})

        for name, chain in self.done.items():
            self.done[name] = attrs.evolve(chain, entries=tuple(map(loaded, chain)))
        return windows

    def _step(self, raw: object, alias: AliasGiven, path: str, step: int) -> list[tuple[str, Entry]]:
        """The entries of one step of a chain, each with its path: a single one, or those of a tier."""
        path = join(path, "chain", step)
        if not isinstance(raw, dict) or "any" not in raw:
            entry = self._entry(raw, alias, path)
            return [] if entry is None else [(path, entry)]
        given = structure(TierGiven, raw, path, self.mistakes)
        if given is None:
            return []
        found: list[tuple[str, Entry]] = []
        weights = self._weights(given, path)
        tier = Tier(step, given.strategy, given.hedge)
        for place, (member, weight) in enumerate(zip(given.any, weights, strict=True)):
            at = join(path, "any", place)
            if isinstance(member, dict) and "any" in member:
                self.mistakes.add(at, "is a tier within a tier: a tier holds targets")
            elif (entry := self._entry(member, alias, at)) is not None:
                found.append((at, attrs.evolve(entry, tier=tier, weight=weight)))
        self._check_hedge(given, found, path)
        return found

    def _weights(self, given: TierGiven, path: str) -> tuple[int, ...]:
        """The weights of a tier, one per target."""
        number = len(given.any)
        if not number:
            self.mistakes.add(f"{path}.any", "needs at least one target")
        if given.weights is None:
            return (1,) * number
        if given.strategy not in ("weighted", "sticky"):
            self.mistakes.add(f"{path}.weights", "are for strategy weighted or sticky")
        if len(given.weights) != number:
            self.mistakes.add(f"{path}.weights", f"expected one number for each of the {number} targets")
            return (1,) * number
        return given.weights

    def _check_hedge(self, given: TierGiven, members: Iterable[tuple[str, Entry]], path: str) -> None:
        if given.hedge is None:
            return
        if len(given.any) < 2:
            self.mistakes.add(f"{path}.hedge", "needs a second target to ask")
        for _, entry in members:
            limit = entry.timeouts.first_byte
            if given.hedge >= limit:
                what = f"{entry.target} is given up after {limit:g} s (timeouts.first_byte), so a hedge is shorter"
                self.mistakes.add(f"{path}.hedge", what)

    def _entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        if not isinstance(raw, dict):
            return self._short_entry(raw, alias, path)
        given = structure(EntryGiven, raw, path, self.mistakes)
        return None if given is None else self._resolved(given, alias, path)

    def _short_entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        """An entry given as a plain target. Mistakes are reported at the entry, since there is no key to name."""
        found = Mistakes()
        given = structure(EntryGiven, {"target": raw}, path, found)
        for mistake in found:
            self.mistakes.add(path, mistake.removeprefix(f"{path}.target: "))
        return None if given is None else self._resolved(given, alias, path)

    def _resolved(self, given: EntryGiven, alias: AliasGiven, path: str) -> Entry | None:
        """The entry with missing settings taken from its provider or its alias."""
        name = given.target.provider
        if f"{name}/" == self.prefix:
            self.mistakes.add(path, "names an alias; a chain holds targets (provider/model)")
            return None
        if name not in self.providers.kinds:
            self.mistakes.add(path, f"no provider '{shown(name)}'{suggestion(name, self.providers.kinds)}")
            return None
        provider = self.providers.done.get(name)
        if provider is None:
            return None
        if given.options and (why := refuses_options(provider.kind, provider.api)):
            self.mistakes.add(f"{path}.options", why)
        self.providers.check_options(given.options, path)
        if "*" in given.target.model and not given.target.is_open:
            what = f"'target: {shown(name)}/*', and 'prefer: [...]' with patterns"
            self.mistakes.add(path, f"a '*' stands for a model by itself only: {what}")
        if given.prefer and not given.target.is_open:
            self.mistakes.add(f"{path}.prefer", f"is for the target {shown(name)}/*, whose model is to be chosen")
        entry = Entry(
            target=given.target,
            timeouts=given.timeouts.over(provider.timeouts),
            options={**provider.options, **given.options},
            cold=given.cold,
            load_timeout=given.load_timeout,
            max_wait=given.max_wait,
            fallback_on=frozenset(alias.fallback_on if given.fallback_on is None else given.fallback_on),
            prefer=given.prefer,
            dimensions=given.dimensions,
            price=None if given.price is None else Price(given.price.input, given.price.output, given.price.cached),
        )
        self._places.append((path, entry))
        return entry


def cache_policy(given: Cached | None, providers: Iterable[ProviderConfig]) -> CachePolicy | None:
    """The cache policy of a chain over `providers` whose alias has the setting `given`; None: nothing is cached."""
    embeddings = {each.name: each.cache.ttl for each in providers if each.cache is not None}
    if given is None and not embeddings:
        return None
    return CachePolicy(given.ttl if given is not None else None, embeddings)
