"""``GET /v1/explain``: what would happen to a request for a model now, target by target. Calls no provider."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

from attrs import evolve

from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.expense import Expense, accounts_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.locality import NOT_LOCAL, is_local
from manallm_proxy.gateway.reports import in_turns
from manallm_proxy.gateway.speaking import supports_endpoint
from manallm_proxy.openai.request import EMBEDDING
from manallm_proxy.routing.best_model import needs_of
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.failover import Walk

DOORS: Final[dict[str, Endpoint]] = {
    **{endpoint.path: endpoint for endpoint in Endpoint if endpoint is not Endpoint.COUNT_TOKENS},
    "api/chat": Endpoint.CHAT,
    "api/generate": Endpoint.CHAT,
    "api/embed": Endpoint.EMBEDDINGS,
}
"""By door name: the format of its requests, or that into which it translates them."""
_USUAL: Final = (Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.MESSAGES)


ALL: Final = "*"
MOST: Final = 100
"""Max aliases explained at once."""
_A_TURN: Final = 10
"""Aliases explained in one turn of the loop."""


async def explain_all(generation: Generation, door: str | None = None) -> dict[str, Any]:
    """The results of `explain` for up to `MOST` aliases, made in turns: each walks along a chain of any length."""
    return {"models": await in_turns(_explained(generation, door), _A_TURN)}


def _explained(generation: Generation, door: str | None) -> Iterator[dict[str, Any]]:
    for name in itertools.islice(generation.config.aliases, MOST):
        yield explain(generation, name, door)


def explain(generation: Generation, model: str, door: str | None = None) -> dict[str, Any]:
    """The response body. Raises UnknownModel. It asks a `Walk`, so that it reports what a request would find.

    It assumes a plain request to `door`, one of `DOORS`; one that needs tools or images may get another model of an
    open entry. `door` None: what the alias is for by its name (embeddings, images), else a chat, or if no target
    accepts chats, a response or a message.
    """
    chain = generation.resolve(model)
    needs = needs_of(chain.alias or "") if door is None else frozenset[str]()
    if EMBEDDING in needs:
        door = Endpoint.EMBEDDINGS.path
    elif door is None:
        door = next((each.path for each in _USUAL if _able(generation, chain, each)), Endpoint.CHAT.path)
    endpoint = DOORS[door]
    if chain.is_open:
        chain = generation.catalog.filled(chain, needs | {EMBEDDING} if endpoint is Endpoint.EMBEDDINGS else needs)
    chain = generation.local.boxes.slow_last(chain)
    capable = _able(generation, chain, endpoint)
    expense = Expense(generation, accounts_of(None, chain))

    def gate(entry: Entry, is_last: Callable[[Entry], bool]) -> Skip | None:
        return expense.known_refusal(entry) or generation.local.refusal(entry, is_last(entry))

    def may_serve(entry: Entry) -> bool:
        return (
            generation.config.providers[entry.target.provider].kind != "loopback"
            and gate(entry, lambda entry: True) is None
        )

    near = {id(entry) for entry in chain if not chain.local_only or is_local(generation.config.providers, entry)}
    capable = tuple(entry for entry in capable if id(entry) in near)
    able = set(map(id, capable))
    walk = Walk(evolve(chain, entries=capable or chain.entries), generation.registry, "", gate, may_serve)

    def row(entry: Entry) -> dict[str, Any]:
        if id(entry) not in near:
            why = "its provider is not local, as the alias demands (locality)"
            return {**_row(generation, entry, None), "usable": False, "reason": NOT_LOCAL, "detail": why}
        if id(entry) not in able:
            fate = {"usable": False, "reason": "dialect", "detail": _unable(generation, entry, endpoint)}
            return {**_row(generation, entry, None), **fate}
        return _row(generation, entry, walk.refusal(entry))

    rows = [row(entry) for entry in chain]
    serves = next((row["target"] for row in rows if row["usable"]), None)
    return {"model": model, "alias": chain.alias, "door": door, "serves": serves, "chain": rows}


def _able(generation: Generation, chain: Chain, endpoint: Endpoint) -> tuple[Entry, ...]:
    """The entries whose provider takes requests in the format of `endpoint`; see `Generation.supporting`."""
    providers = generation.config.providers
    return tuple(entry for entry in chain if supports_endpoint(providers[entry.target.provider], endpoint))


def _unable(generation: Generation, entry: Entry, endpoint: Endpoint) -> str:
    if endpoint.is_opaque:
        return "only a provider of kind openai takes it"
    formats = ", ".join(generation.config.providers[entry.target.provider].speaks)
    return f"its provider speaks {formats}, and no chat"


def _row(generation: Generation, entry: Entry, skip: Skip | None) -> dict[str, Any]:
    target = entry.target
    price = generation.price_of(entry)
    detail = _remark(generation, entry) if skip is None else _why(generation, target, skip)
    reason = skip.reason if skip is not None else None
    again_in = skip.again_in if skip is not None else None
    again = round(again_in, 1) if again_in is not None else None
    shown = str(price) if price is not None else "unknown"
    row = {"target": str(target), "usable": skip is None, "reason": reason, "detail": detail, "again_in": again}
    return {**row, "price": shown}


def _why(generation: Generation, target: Target, skip: Skip) -> str | None:
    """The reason in words, for people; None if the reason code is enough."""
    health = generation.registry.providers[target.provider]
    if skip.reason == "unconfigured":
        return generation.config.providers[target.provider].api_key_missing
    if skip.reason == "saturated" and not skip.detail:
        return f"{health.in_flight} requests in flight, max_concurrent is {health.max_concurrent}"
    rests = skip.reason == "unhealthy"
    if skip.detail and not rests and (skip.again_in is None or skip.reason in ("saturated", "budget")):
        return skip.detail
    known = [circuit for circuit in (health.targets.get(target.model), health.provider) if circuit is not None]
    blamed = next((circuit for circuit in known if circuit.is_open and circuit.last_error), None)
    cause = skip.detail or (blamed.last_error if blamed is not None else None)
    if blamed is health.provider and (rests or not skip.detail) and health.unreached_why:
        cause = f"{cause}: {health.unreached_why}"
    when = f"again in {skip.again_in:.0f} s" if skip.again_in is not None else "another request is trying it now"
    return f"{cause}; {when}" if cause else when


def _remark(generation: Generation, entry: Entry) -> str | None:
    """What an operator should know of a target that would be asked, if anything."""
    target, now = entry.target, generation.registry.clock()
    health = generation.registry.providers[target.provider]
    circuits = (health.provider, health.targets.get(target.model))
    half_open = any(circuit is not None and circuit.is_open for circuit in circuits)
    if half_open:
        return "its rest is over: the next request is its trial"
    box, queue = generation.local.boxes.boxes.get(target.provider), generation.local.queues.get(target.provider)
    if box is not None and box.residency.is_loaded(entry, now) is False:
        return "not loaded yet: a request waits for it"
    if queue is not None and (waiting := queue.line.of(target.model).waiting):
        wait = queue.line.expected_wait(queue.line.of(target.model), now)
        known = f"{wait:.1f} s" if wait > 0 else "unknown"  # nothing has been answered from which to tell
        return f"a queue of {len(waiting)}, expected wait {known}"
    lists = generation.config.providers[target.provider].kind != "loopback" and generation.catalog.knows(
        target.provider
    )
    if not lists or generation.catalog.find(target) is not None:
        return None
    ends = entry.fallback_on.isdisjoint(("missing_model", "404"))
    follows = "a 404 goes to the caller (fallback_on)" if ends else "a 404 leads to the next entry"
    return f"{target.provider} does not list it: {follows}"
