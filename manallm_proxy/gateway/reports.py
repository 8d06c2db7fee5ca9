"""The bodies of ``GET /v1/models``, ``/v1/aliases`` and ``/v1/health``, from one generation."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.targets import Chain, Entry, ollama_name
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.openai.models import model_object
from manallm_proxy.routing.best_model import needs_of
from manallm_proxy.routing.circuit import Circuit
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.line import Line
from manallm_proxy.routing.residency import Residency

T = TypeVar("T")
_A_TURN: Final = 100
"""Rows made in one turn of the loop: two milliseconds where a key's patterns are matched with each."""
SLOW: Final = "degraded_cpu"
"""The status of a model that is partly on the CPU."""


def model_rows(generation: Generation, caller: Caller | None = None) -> Iterator[dict[str, Any]]:
    """``GET /v1/models``: aliases first, then what each usable provider listed at its last probe. Never waits.

    A `caller` sees what its key allows.
    """
    for row in _all_rows(generation):
        if caller is None or generation.may_use(caller, row["id"]):
            yield row


def _all_rows(generation: Generation) -> Iterator[dict[str, Any]]:
    for name in generation.config.aliases:
        yield model_object(name, 0, "manallm")
    now = generation.registry.clock()
    for provider, health in generation.registry.providers.items():
        if health.is_usable(now):
            for model in generation.catalog.models(provider):
                yield model_object(f"{provider}/{model.id}", model.created, provider)


async def in_turns(rows: Iterator[T]) -> list[T]:
    """All `rows`, a few in each turn of the loop: each provider may list ten thousand models."""
    found: list[T] = []
    while some := list(islice(rows, _A_TURN)):
        found += some
        if len(some) == _A_TURN:
            await asyncio.sleep(0)
    return found


def find_model(generation: Generation, wanted: str, caller: Caller | None = None) -> dict[str, Any] | None:
    """``GET /v1/models/{id}``: a row for every name that a request may use; None if no provider would have it.

    A bare name belongs to the default provider, ``:latest`` is implied, and a provider without a list may have any
    model.
    """
    try:
        chain = generation.resolve(wanted, caller)
    except ProxyError:
        return None
    if chain.alias is not None:
        return model_object(chain.alias, 0, "manallm")
    target = chain.entries[0].target
    health, listed = generation.registry.providers[target.provider], generation.catalog.find(target)
    if not health.configured or (listed is None and generation.catalog.knows(target.provider)):
        return None
    return model_object(wanted, listed.created if listed is not None else 0, target.provider)


def alias_list(generation: Generation, caller: Caller | None = None) -> dict[str, Any]:
    """``GET /v1/aliases``: the aliases that `caller` may use."""
    config = generation.config
    rows = [
        _alias(generation, name, chain)
        for name, chain in config.aliases.items()
        if caller is None or caller.may_use(name)
    ]
    return {"default": config.default if config.default in [row["name"] for row in rows] else None, "aliases": rows}


def _alias(generation: Generation, name: str, chain: Chain) -> dict[str, Any]:
    """One alias. ``chosen``, if the chain has open entries: the current target of each entry, null if nothing fits."""
    row: dict[str, Any] = {"name": name, "description": chain.description, "chain": [str(e.target) for e in chain]}
    if chain.is_open:
        filled = generation.catalog.filled(chain, needs_of(name))
        row["chosen"] = [None if entry.target.is_open else str(entry.target) for entry in filled]
    return row


def health_report(generation: Generation) -> tuple[bool, dict[str, Any]]:
    """Whether any provider can be used, and ``GET /v1/health``'s body."""
    now = generation.registry.clock()
    providers = generation.registry.providers
    usable = [health.is_usable(now) for health in providers.values() if health.configured]
    rows = {name: _provider(generation, name, health, now) for name, health in providers.items()}
    words = {rows[name]["status"] for name, health in providers.items() if health.configured}
    status = "unhealthy" if not any(usable) else "healthy" if words == {"healthy"} else "degraded"
    return any(usable), {"status": status, "providers": rows}


def _provider(generation: Generation, name: str, health: Health, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {"status": health.status(now), **_circuit(health.provider, now)}
    row["in_flight"] = health.in_flight
    if missing := generation.config.providers[name].api_key_missing:
        row["reason"] = missing
    if chosen := _chosen(generation, name):
        row["chosen"] = chosen
    targets = {m: {"status": c.status(now), **_circuit(c, now)} for m, c in health.targets.items() if not c.is_blank}
    if (queue := generation.local.queues.get(name)) is not None:
        entries = _entries(generation, name)
        if (box := generation.local.boxes.boxes.get(name)) is not None:
            _add_residents(targets, entries, box.residency, now)
        _add_queue(targets, entries, queue.line, now)
        if row["status"] == "healthy" and any(target["status"] == SLOW for target in targets.values()):
            row["status"] = "degraded"
    if targets:
        row["targets"] = targets
    return row


def _chosen(generation: Generation, provider: str) -> dict[str, str | None]:
    """By alias: the current model of its first open entry (``provider/*``); None if nothing fits."""
    found: dict[str, str | None] = {}
    for name, chain in generation.config.aliases.items():
        if chain.is_open:
            filled = generation.catalog.filled(chain, needs_of(name))
            for entry, now in zip(chain, filled, strict=True):
                if entry.target.is_open and entry.target.provider == provider:
                    found.setdefault(name, None if now.target.is_open else now.target.model)
    return found


def _entries(generation: Generation, provider: str) -> dict[str, Entry]:
    """By model: an entry for each target of `provider` in the configuration."""
    config = generation.config
    entries = (*itertools.chain.from_iterable(each.entries for each in config.aliases.values()), *config.warm)
    return {entry.target.model: entry for entry in entries if entry.target.provider == provider}


def _add_residents(
    rows: dict[str, dict[str, Any]], entries: dict[str, Entry], residency: Residency, now: float
) -> None:
    """Adds to `rows` what a box has loaded: its targets, and other models that are there."""
    residents = residency.residents or {}
    known = set(map(ollama_name, entries))
    others = [each.name for name, each in residents.items() if name not in known]
    for model in (*entries, *others):
        row = rows.setdefault(model, {"status": "healthy", **_circuit(Circuit(), now)})
        resident = residents.get(ollama_name(model))
        entry = entries.get(model)
        row["loaded"] = residency.is_loaded(entry, now) if entry is not None else True
        row["loading"] = ollama_name(model) in residency.loads
        row["context_length"] = (resident.context_length or None) if resident is not None else None
        for name in ("size", "size_vram"):
            row[name] = getattr(resident, name, None) if resident is not None and resident.size else None
        if residency.on_cpu(model) is not None and row["status"] in ("healthy", "degraded"):
            row["status"] = SLOW


def _add_queue(rows: dict[str, dict[str, Any]], entries: dict[str, Entry], line: Line, now: float) -> None:
    """Adds to `rows` the requests that wait for a local server, and the seconds that another one would wait."""
    for model in (*entries, *(name for name in rows if name not in entries)):
        row = rows.setdefault(model, {"status": "healthy", **_circuit(Circuit(), now)})
        row["slots"] = line.limit(line.of(model))
        row["queue"] = len(line.of(model).waiting)
        row["expected_wait"] = round(line.expected_wait(line.of(model), now), 1)


def _circuit(circuit: Circuit, now: float) -> dict[str, Any]:
    row = {
        "consecutive_failures": circuit.failures,
        "last_error": circuit.last_error,
        "last_check": _wall(circuit.last_check, now),
        "unhealthy_until": _wall(circuit.open_until, now),
    }
    if circuit.is_cooling(now):
        row["cooling_until"] = _wall(circuit.cooling_until, now)
    return row


def _wall(then: float | None, now: float) -> str | None:
    """A monotonic time as RFC 3339 in UTC, for people."""
    if then is None:
        return None
    return datetime.fromtimestamp(time.time() + then - now, UTC).isoformat(timespec="seconds")
