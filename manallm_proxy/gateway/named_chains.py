"""Cache of the chains for targets that clients name directly, since making one takes three frozen objects."""

from __future__ import annotations

from typing import Final

from manallm_proxy.config.model import Config
from manallm_proxy.contract.targets import CachePolicy, Chain, Entry, Target

LIMIT: Final = 1000
"""Max names cached per generation. Clients choose them, so the oldest is dropped."""


class NamedChains(dict[str, Chain]):
    """Chains by the requested name."""

    def keep(self, name: str, chain: Chain) -> Chain:
        """Caches `chain` and returns it."""
        if len(self) >= LIMIT:
            del self[next(iter(self))]
        self[name] = chain
        return chain


def chain_of_one(config: Config, target: Target) -> Chain:
    """A chain of `target` alone, with its provider's settings from `config`."""
    provider = config.providers[target.provider]
    entry = Entry(target, provider.timeouts, config.options_of(target))
    cache = CachePolicy(embeddings={target.provider: provider.cache.ttl}) if provider.cache is not None else None
    return Chain(None, (entry,), timeout=config.chain_timeout, cache=cache)
