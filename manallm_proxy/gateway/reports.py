"""The bodies of ``GET /v1/models``, ``/v1/aliases`` and ``/v1/health``, from one generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TypeVar

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.targets import Chain, Entry, ollama_name
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.likely import first_usable, likely
from manallm_proxy.openai.large import collector
from manallm_proxy.openai.models import model_object
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


async def in_turns(rows: Iterator[T], number: int = _A_TURN) -> list[T]:
    """All `rows`, `number` of them in each turn of the loop: each provider may list ten thousand models.

    Meanwhile the cycle collector looks at new objects only: those of the rows stay until all are written.
    """
    found = list(islice(rows, number))
    if len(found) < number:
        return found
    collector.begin()
    try:
        await asyncio.sleep(0)
        while some := list(islice(rows, number)):
            found += some
            await asyncio.sleep(0)
    finally:
        collector.end(asyncio.get_running_loop())
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


def model_sizes(generation: Generation, name: str, caller: Caller | None = None) -> tuple[int | None, int | None]:
    """The context window and the longest answer, in tokens, of the first usable target of `name`; None: not known."""
    try:
        entry = first_usable(generation, generation.resolve(name, caller))
    except ProxyError:  # it may not be the caller's
        return None, None
    listed = generation.catalog.find(entry.target)
    return generation.local.window(entry, None), listed.max_output if listed is not None else None


async def alias_list(generation: Generation, caller: Caller | None = None) -> dict[str, Any]:
    """``GET /v1/aliases``: the aliases that `caller` may use. There may be thousands, so they are made in turns."""
    config = generation.config
    rows = await in_turns(_aliases(generation, caller))
    return {"default": config.default if config.default in [row["name"] for row in rows] else None, "aliases": rows}


def _aliases(generation: Generation, caller: Caller | None) -> Iterator[dict[str, Any]]:
    for name, chain in generation.config.aliases.items():
        if caller is None or caller.may_use(name):
            yield _alias(generation, name, chain)


def _alias(generation: Generation, name: str, chain: Chain) -> dict[str, Any]:
    """One alias. ``chosen``, if the chain has open entries: the current target of each entry, null if nothing fits."""
    row: dict[str, Any] = {"name": name, "description": chain.description, "chain": [str(e.target) for e in chain]}
    if chain.is_open:
        row["chosen"] = [None if e.target.is_open else str(e.target) for e in likely(generation, chain)]
    return row


async def health_report(generation: Generation) -> tuple[bool, dict[str, Any]]:
    """Whether any provider can be used, and ``GET /v1/health``'s body.

    Made in turns of the loop: a provider has a row for each of its targets in the configuration, of which there may be
    thousands. What a provider's row says of the provider itself is of one moment.
    """
    chosen: dict[str, dict[str, str | None]] = {}
    entries: dict[str, dict[str, Entry]] = {name: {} for name in generation.local.queues}
    await in_turns(_looked_at(generation, chosen, entries))
    now = generation.registry.clock()
    providers = generation.registry.providers
    usable = [health.is_usable(now) for health in providers.values() if health.configured]
    rows: dict[str, dict[str, Any]] = {}
    for name, health in providers.items():
        row = rows[name] = _provider(generation, name, health, now)
        if name in chosen:
            row["chosen"] = chosen[name]
        await _add_targets(row, generation, name, entries.get(name, {}), now)
        await asyncio.sleep(0)
    words = {rows[name]["status"] for name, health in providers.items() if health.configured}
    status = "unhealthy" if not any(usable) else "healthy" if words == {"healthy"} else "degraded"
    return any(usable), {"status": status, "providers": rows}


def _looked_at(
    generation: Generation, chosen: dict[str, dict[str, str | None]], entries: dict[str, dict[str, Entry]]
) -> Iterator[None]:
    """Looks at one chain of the configuration after the other, and adds to `chosen` and `entries`.

    ``chosen``: by provider and alias, the current model of its first open entry (``provider/*``); None if nothing fits.
    ``entries``: by local provider and model, an entry for each target in the configuration, open ones as chosen now.
    """
    for name, chain in generation.config.aliases.items():
        filled = likely(generation, chain)
        _note_entries(entries, filled)
        if chain.is_open:
            for entry, now in zip(chain, filled, strict=True):
                if entry.target.is_open:
                    found = chosen.setdefault(entry.target.provider, {})
                    found.setdefault(name, None if now.target.is_open else now.target.model)
        yield
    _note_entries(entries, generation.config.warm)


def _note_entries(entries: dict[str, dict[str, Entry]], chain: Iterable[Entry]) -> None:
    for entry in chain:
        of_one = entries.get(entry.target.provider)
        if of_one is not None and not entry.target.is_open:
            of_one[entry.target.model] = entry


def _provider(generation: Generation, name: str, health: Health, now: float) -> dict[str, Any]:
    """The row of a provider, without its targets."""
    row: dict[str, Any] = {"status": health.status(now), **_circuit(health.provider, now)}
    row["in_flight"] = health.in_flight
    if missing := generation.config.providers[name].api_key_missing:
        row["reason"] = missing
    if why := health.unreached_why:
        row["detail"] = why
    return row


async def _add_targets(
    row: dict[str, Any], generation: Generation, name: str, entries: dict[str, Entry], now: float
) -> None:
    """Adds to a provider's `row` those of its targets that have something to report; for a local one, all of them."""
    circuits = generation.registry.providers[name].targets
    targets = {m: {"status": c.status(now), **_circuit(c, now)} for m, c in circuits.items() if not c.is_blank}
    if (queue := generation.local.queues.get(name)) is not None:
        if (box := generation.local.boxes.boxes.get(name)) is not None:
            await in_turns(_residents(targets, entries, box.residency, now))
        await in_turns(_queued(targets, entries, queue.line, now))
        if row["status"] == "healthy" and any(target["status"] == SLOW for target in targets.values()):
            row["status"] = "degraded"
    if targets:
        row["targets"] = targets


def _residents(
    rows: dict[str, dict[str, Any]], entries: dict[str, Entry], residency: Residency, now: float
) -> Iterator[None]:
    """Adds to `rows` what a box has loaded, one after the other: its targets, and other models that are there."""
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
        yield


def _queued(rows: dict[str, dict[str, Any]], entries: dict[str, Entry], line: Line, now: float) -> Iterator[None]:
    """Adds to one of `rows` after the other the requests that wait for a local server, and the seconds that another one
    would wait."""
    for model in (*entries, *(name for name in rows if name not in entries)):
        row = rows.setdefault(model, {"status": "healthy", **_circuit(Circuit(), now)})
        row["slots"] = line.limit(line.of(model))
        row["queue"] = len(line.of(model).waiting)
        row["expected_wait"] = round(line.expected_wait(line.of(model), now), 1)
        yield


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
