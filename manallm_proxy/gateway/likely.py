"""For reports: the chain of an alias as a request would most likely find it. What it asks for is not known."""

from __future__ import annotations

from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.routing.best_model import needs_of


def likely(generation: Generation, chain: Chain) -> Chain:
    """`chain` with its open entries filled, going by what the alias is for by its name."""
    return generation.catalog.filled(chain, needs_of(chain.alias or "")) if chain.is_open else chain


def first_usable(generation: Generation, chain: Chain) -> Entry:
    """The first entry that may be asked now, as far as its health goes; if there is none, the first of all."""
    entries, may_pass = likely(generation, chain).entries, generation.registry.may_pass
    return next((e for e in entries if not e.target.is_open and may_pass(e.target)), entries[0])
