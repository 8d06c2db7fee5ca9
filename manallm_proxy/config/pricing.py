"""Resolves all prices when the configuration is read, so that a request only takes a multiplication.

An entry's own ``price`` wins, for its target wherever that is named. Local targets cost their ``electricity``, if
given. All others are looked up in `price_list`, but only if something depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from manallm_proxy.config.model import Config
from manallm_proxy.config.price_list import is_installed, preload
from manallm_proxy.config.structure import join
from manallm_proxy.contract.prices import Price
from manallm_proxy.contract.targets import Chain, Entry, Target


def priced(config: Config) -> Config:
    """`config` with the prices of its chains, and a note for each price that is needed but unknown."""
    given: dict[Target, Price] = {}
    for chain in config.aliases.values():
        for entry in chain:
            if entry.price is not None:
                given.setdefault(entry.target, entry.price)
    wanted = _limits_money(config) or any(
        entry.target not in given for chain in config.aliases.values() for entry in _wanted(config, chain)
    )
    config = attrs.evolve(config, prices=given, uses_price_list=wanted)
    if wanted:
        preload()
    aliases = {name: _priced_chain(config, chain) for name, chain in config.aliases.items()}
    config = attrs.evolve(config, aliases=aliases)
    return attrs.evolve(config, notes=(*config.notes, *_unknown(config)))


def is_local(config: Config, entry: Entry) -> bool:
    """See `ProviderConfig.runs_locally`; for an open entry by its provider alone."""
    return config.providers[entry.target.provider].runs_locally(entry.target)


def _limits_money(config: Config) -> bool:
    """Whether a client key has a budget in USD, which it may spend on any target."""
    return any(budget.is_money for key in config.auth.keys if (budget := key.whole_budget) is not None)


def _wanted(config: Config, chain: Chain) -> list[Entry]:
    """The entries whose price something depends on."""
    if _limits_money(config) or (chain.budget is not None and chain.budget.is_money):
        return [entry for entry in chain if not is_local(config, entry)]
    return _spared(config, chain)


def _spared(config: Config, chain: Chain) -> list[Entry]:
    """The paid entries after the first local one."""
    home = [is_local(config, entry) for entry in chain]
    if True not in home:
        return []
    behind = list(zip(chain, home, strict=True))[home.index(True) :]
    return [e for e, local in behind if not local and config.providers[e.target.provider].kind != "loopback"]


def _priced_chain(config: Config, chain: Chain) -> Chain:
    entries = [_priced_entry(config, entry) for entry in chain]
    avoided_price: Price | None = None
    for place in reversed(range(len(entries))):
        entry = entries[place]
        if is_local(config, entry):
            entries[place] = attrs.evolve(entry, avoided_price=avoided_price)
        elif entry.price is not None and not entry.price.is_free:
            avoided_price = entry.price
    return attrs.evolve(chain, entries=tuple(entries))


def _priced_entry(config: Config, entry: Entry) -> Entry:
    return entry if entry.target.is_open else attrs.evolve(entry, price=config.price_of(entry.target))


def _unknown(config: Config) -> Iterator[str]:
    for name, chain in config.aliases.items():
        wanted = _wanted(config, chain)
        limited = _limits_money(config) or (chain.budget is not None and chain.budget.is_money)
        for place, entry in zip(chain.paths(), chain, strict=True):
            if entry.price is not None or entry.target.is_open or entry not in wanted:
                continue
            path = f"{join('aliases', name)}.{place}"
            if limited:
                yield f"{path}.price: not known of {entry.target}, so it costs no budget anything; give its price"
            elif is_installed():  # else only given prices are known
                yield f"{path}.price: not known of {entry.target}, so what staying local saves is counted without it"
