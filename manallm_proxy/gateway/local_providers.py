"""Builds `routing.local_providers` from a configuration; what is known of a server outlives a reload."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.contract.events import Observer
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Entry
from manallm_proxy.gateway.opening import address_of
from manallm_proxy.gateway.speaking import speaks_openai
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.providers.ollama.host import OllamaHost
from manallm_proxy.providers.openai.router_host import RouterHost
from manallm_proxy.routing.boxes import Box, Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.health_registry import Clock, HealthRegistry
from manallm_proxy.routing.line import Line
from manallm_proxy.routing.local_providers import LocalProviders
from manallm_proxy.routing.queues import Queue
from manallm_proxy.routing.shared_line import AllWorkers

SETTING_LONGEST: Final = 4096
"""Max bytes of a client's setting that is looked at."""


def new_local_providers(
    config: Config,
    catalog: Catalog,
    registry: HealthRegistry,
    before: LocalProviders | None = None,
    was: Config | None = None,
    workers: AllWorkers | None = None,
) -> LocalProviders:
    """The gates for `config`. A server whose address is the same in `was`, the configuration of `before`, keeps its
    loads and its queue. `workers`: what this process shares with other workers; None: as `before`.
    """
    workers = workers or (before.workers if before is not None else None)
    boxes: dict[str, Box] = {}
    queues: dict[str, Queue] = {}
    for name, provider in config.providers.items():
        if not provider.local or not provider.configured:
            continue
        old = was.providers.get(name) if was is not None else None
        kept = before if old is not None and address_of(old) == address_of(provider) else None
        queue = kept.queues.get(name) if kept is not None else None
        queues[name] = queue or Queue(registry.clock, registry.providers[name], _new_line(provider, workers))
        if provider.loads_models:
            box = kept.boxes.boxes.get(name) if kept is not None else None
            boxes[name] = box or _new_box(provider, registry.clock, registry.observe, workers)
    return LocalProviders(catalog, Boxes(boxes), queues, workers, partial(_own_window, config, catalog))


def _own_window(config: Config, catalog: Catalog, call: Call, entry: Entry) -> float | None:
    """See `LocalProviders.own_window`. Of a request to an Ollama, by what `providers.ollama.settings` lets pass."""
    provider = config.providers[entry.target.provider]
    if provider.kind != "ollama" or speaks_openai(provider):
        return None
    cuts = _asked(call, "truncate")
    if cuts is True or (cuts is None and entry.options.get("truncate") is True):
        return inf
    options = _asked(call, "options") if provider.client_options and "num_ctx" not in entry.options else None
    window = options.get("num_ctx") if isinstance(options, dict) else None
    if type(window) is not int:
        return None
    listed = catalog.find(entry.target)
    return min(window, (listed.context_length if listed is not None else 0) or window)


def _asked(call: Call, key: str) -> Any:
    """The client's value of `key`; None also for one that is too long to be a setting."""
    if key in call.ollama:
        return call.ollama[key]
    start, end = call.summary.spans.get(key, (0, 0))
    if not 0 < end - start <= SETTING_LONGEST:
        return None
    with suppress(*DecodeErrors):
        return decode(call.body[start:end])
    return None


def adopt(local: LocalProviders, config: Config, registry: HealthRegistry) -> None:
    """Applies `config`, which serves from now on, to servers that were kept. Cannot fail."""
    for name, queue in local.queues.items():
        queue.line.configure(config.providers[name].parallel, queue.clock())
        queue.follow(registry.providers[name])
    for name, box in local.boxes.boxes.items():
        queue = local.queues[name]
        box.on_slots, queue.on_back = queue.report_slots, box.wake
        box.on_reached = partial(registry.probed, name, None)  # long before the next probe
        box.slow_last = config.providers[name].degraded_cpu == "last"
        box.warm = tuple(entry for entry in config.warm if entry.target.provider == name)


def _new_line(provider: ProviderConfig, workers: AllWorkers | None) -> Line:
    learns = provider.kind == "ollama"
    if workers is None:
        return Line(provider.parallel, learns=learns)
    return workers.lines.line(_server(provider), provider.parallel, learns=learns)


def _new_box(provider: ProviderConfig, clock: Clock, observe: Observer, workers: AllWorkers | None) -> Box:
    host = OllamaHost if provider.kind == "ollama" else RouterHost
    server, alone = _server(provider), host is RouterHost
    return Box(provider.name, host(address_of(provider)), clock, observe, loads=workers, server=server, alone=alone)


def _server(provider: ProviderConfig) -> str:
    """An id of the server that is the same in all workers."""
    return f"{provider.name} {provider.base_url}"
