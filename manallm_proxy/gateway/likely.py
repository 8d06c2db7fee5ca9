"""For reports: the chain of an alias as a request would most likely find it. What it asks for is not known."""

from __future__ import annotations

from collections.abc import Iterable

from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.locality import is_local
from manallm_proxy.routing.best_model import needs_of


def likely(generation: Generation, chain: Chain) -> Chain:
    """`chain` with its open entries filled, going by what the alias is for by its name."""
    return generation.catalog.filled(chain, needs_of(chain.alias or "")) if chain.is_open else chain


def reachable(generation: Generation, chain: Chain) -> Iterable[Entry]:
    """The entries of `chain`, filled, that name a model and may be asked where the alias must stay local."""
    providers = generation.config.providers
    for entry in likely(generation, chain):
        if not (entry.target.is_open or (chain.local_only and not is_local(providers, entry))):
            yield entry


def first_usable(generation: Generation, chain: Chain) -> Entry:
    """The first entry that may be asked now, as far as its health goes; if there is none, the first of all."""
    may_pass = generation.registry.may_pass
    usable = (entry for entry in reachable(generation, chain) if may_pass(entry.target))
    return next(usable, chain.entries[0])
