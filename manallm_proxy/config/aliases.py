"""``aliases``: each entry becomes a `Chain` whose settings are resolved, or its mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import attrs

from manallm_proxy.config.file_model import AliasGiven, EntryGiven
from manallm_proxy.config.hints import suggestion
from manallm_proxy.config.model import Cached, ModelKey, ProviderConfig, model_key
from manallm_proxy.config.providers import Providers, refuses_options
from manallm_proxy.config.structure import Mistakes, join, structure
from manallm_proxy.config.windows import windows_of
from manallm_proxy.config.yaml_file import shown
from manallm_proxy.contract.targets import CachePolicy, Chain, Entry

SEGMENT: Final = re.compile(r"[\x21-\x2e\x30-\x7e]{1,128}")


@attrs.define
class Aliases:
    """The aliases read so far. ``chain_timeout`` holds for those that give none."""

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
        entries = [self._entry(each, given, join(path, "chain", n)) for n, each in enumerate(given.chain)]
        for number, entry in enumerate(entries):
            if entry is not None and entry in entries[:number] and not entry.target.is_open:
                again = join(path, "chain", number)
                self.providers.notes.append(f"{again}: {entry.target} stands in this chain before, in the same words")
        found = tuple(entry for entry in entries if entry is not None)
        self.done[name] = Chain(
            alias=name,
            entries=found,
            description=given.description,
            timeout=self.chain_timeout if given.chain_timeout is None else given.chain_timeout,
            local_only=given.locality == "local",
            cache=cache_policy(given.cache, (self.providers.done[entry.target.provider] for entry in found)),
        )

    def finish(self) -> dict[ModelKey, dict[str, Any]]:
        """Gives every entry its model's one window; returns what each model is loaded with."""
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

    def _entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        if not isinstance(raw, dict):
            return self._short_entry(raw, alias, path)
        given = structure(EntryGiven, raw, path, self.mistakes)
        return None if given is None else self._resolved(given, alias, path)

    def _short_entry(self, raw: object, alias: AliasGiven, path: str) -> Entry | None:
        """An entry that is a target alone. Mistakes are reported at the entry, not at a key that nobody wrote."""
        found = Mistakes()
        given = structure(EntryGiven, {"target": raw}, path, found)
        for mistake in found:
            self.mistakes.add(path, mistake.removeprefix(f"{path}.target: "))
        return None if given is None else self._resolved(given, alias, path)

    def _resolved(self, given: EntryGiven, alias: AliasGiven, path: str) -> Entry | None:
        """What the entry leaves out comes from its provider or its alias."""
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
        self.providers.note_unknown(given.options, path)
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
        )
        self._places.append((path, entry))
        return entry


def cache_policy(given: Cached | None, providers: Iterable[ProviderConfig]) -> CachePolicy | None:
    """What is kept of a chain over `providers` whose alias says `given`; None: nothing."""
    embeddings = {each.name: each.cache.ttl for each in providers if each.cache is not None}
    if given is None and not embeddings:
        return None
    return CachePolicy(given.ttl if given is not None else None, embeddings)
