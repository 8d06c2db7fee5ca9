"""The chains of targets that clients ask for by their own names, each made once: that takes three frozen objects."""

from __future__ import annotations

from typing import Final

from manallm_proxy.config.model import Config
from manallm_proxy.contract.targets import CachePolicy, Chain, Entry, Target

LIMIT: Final = 1000
"""Names of one generation that are remembered. Clients choose them: the oldest goes."""


class NamedChains(dict[str, Chain]):
    """By the name that was asked for."""

    def keep(self, name: str, chain: Chain) -> Chain:
        """`chain`, which is remembered."""
        if len(self) >= LIMIT:
            del self[next(iter(self))]
        self[name] = chain
        return chain


def chain_of_one(config: Config, target: Target) -> Chain:
    """`target` alone, with what `config` says of its provider."""
    provider = config.providers[target.provider]
    entry = Entry(target, provider.timeouts, config.options_of(target))
    cache = CachePolicy(embeddings={target.provider: provider.cache.ttl}) if provider.cache is not None else None
    return Chain(None, (entry,), timeout=config.chain_timeout, cache=cache)
