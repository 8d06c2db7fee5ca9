"""``GET /v1/explain``: what would happen to a request for a model now, target by target. Calls no provider."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.gateway.expense import Expense, accounts_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.failover import Walk


def explain(generation: Generation, model: str) -> dict[str, Any]:
    """The answer's body. Raises UnknownModel. It asks a `Walk`, so that it says what a request would find.

    The request is a plain chat; one that needs more (tools, images) may get another model of an open entry.
    """
    chain = generation.resolve(model)
    if chain.is_open:
        chain = generation.catalog.filled(chain, frozenset())
    chain = generation.home.boxes.slow_last(chain)
    expense = Expense(generation, accounts_of(None, chain))

    def gate(entry: Entry, last: bool) -> Skip | None:
        return expense.refusal(entry) or generation.home.refusal(entry, last)

    walk = Walk(chain, generation.registry, "", gate)
    last = chain.entries[-1]
    rows = [_row(generation, entry, walk.refusal(entry, is_last=entry is last)) for entry in chain]
    serves = next((row["target"] for row in rows if row["usable"]), None)
    return {"model": model, "alias": chain.alias, "serves": serves, "chain": rows}


def _row(generation: Generation, entry: Entry, skip: Skip | None) -> dict[str, Any]:
    target = entry.target
    price = generation.price_of(entry)
    detail = _on_trial(generation, target) if skip is None else _why(generation, target, skip)
    reason = skip.reason if skip is not None else None
    again_in = skip.again_in if skip is not None else None
    again = round(again_in, 1) if again_in is not None else None
    shown = str(price) if price is not None else "unknown"
    row = {"target": str(target), "usable": skip is None, "reason": reason, "detail": detail, "again_in": again}
    return {**row, "price": shown}


def _why(generation: Generation, target: Target, skip: Skip) -> str | None:
    """Why, for people; None if the reason says it all."""
    health = generation.registry.providers[target.provider]
    if skip.reason == "unconfigured":
        return generation.config.providers[target.provider].api_key_missing
    if skip.reason == "saturated" and not skip.detail:
        return f"{health.in_flight} requests in flight, max_concurrent is {health.max_concurrent}"
    if skip.detail and (skip.again_in is None or skip.reason in ("saturated", "budget")):
        return skip.detail
    known = [circuit for circuit in (health.targets.get(target.model), health.provider) if circuit is not None]
    cause = skip.detail or next((c.last_error for c in known if c.is_open and c.last_error), None)
    when = f"again in {skip.again_in:.0f} s" if skip.again_in is not None else "another request is trying it now"
    return f"{cause}; {when}" if cause else when


def _on_trial(generation: Generation, target: Target) -> str | None:
    health = generation.registry.providers[target.provider]
    circuits = (health.provider, health.targets.get(target.model))
    half_open = any(circuit is not None and circuit.is_open for circuit in circuits)
    return "its rest is over: the next request is its trial" if half_open else None
