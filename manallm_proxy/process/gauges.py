"""Values that metrics read from the current generation at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from manallm_proxy import __version__
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.likely import reachable
from manallm_proxy.observe.metrics import Metrics


def metrics(generation: Callable[[], Generation]) -> Metrics:
    """The metrics of one process, reading its gauges from `generation`."""
    return Metrics(
        __version__,
        lambda: providers(generation()),
        lambda: keys(generation()),
        lambda: models(generation()),
        lambda: queues(generation()),
        lambda: aliases(generation()),
    )


def providers(generation: Generation) -> Iterable[tuple[str, bool, int]]:
    """Name, whether it is usable, requests in flight."""
    now = generation.registry.clock()
    for name, health in generation.registry.providers.items():
        yield name, health.is_usable(now), health.in_flight


def aliases(generation: Generation) -> Iterable[tuple[str, int]]:
    """Name, and how many of its targets may be tried now, as far as their health goes.

    An open entry counts as the model that it stands for; it does not if its provider lists nothing that fits. Nor does
    one that is not local where the alias must stay local.
    """
    passes = generation.registry.passing()
    for name, chain in generation.config.aliases.items():
        yield name, sum([passes(entry.target) for entry in reachable(generation, chain)])


def keys(generation: Generation) -> Iterable[tuple[str, int]]:
    """Name of a client key, requests in flight."""
    return ((caller.key.name, caller.in_flight) for caller in generation.keyring)


def models(generation: Generation) -> Iterable[tuple[str, str, float]]:
    """Provider, loaded model, share of its bytes in the GPU's memory (0 to 1)."""
    for name, box in generation.local.boxes.boxes.items():
        for resident in (box.residency.residents or {}).values():
            if resident.size:
                yield name, resident.name, min(resident.size_vram / resident.size, 1.0)


def queues(generation: Generation) -> Iterable[tuple[str, str, int, float]]:
    """Provider, model, number of waiting requests, seconds that another one would wait."""
    now = generation.registry.clock()
    for name, queue in generation.local.queues.items():
        for line in queue.line.models.values():
            yield name, line.name, len(line.waiting), queue.line.expected_wait(line, now)


def summary(generation: Generation) -> str:
    """One line of status."""
    usable = sum(usable for _, usable, _ in providers(generation))
    aliases, known = len(generation.config.aliases), len(generation.registry.providers)
    return f"serving {aliases} aliases, {usable} of {known} providers usable"
