"""Probes each provider periodically: is it alive, and which models does it list?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from manallm_proxy.contract.events import Crashed, ListUnreadable
from manallm_proxy.contract.provider import ModelList, Provider
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.routing.catalog import Catalog, Listed
from manallm_proxy.routing.health_registry import HealthRegistry

MANY: Final = 100
"""Models from which on a list takes milliseconds to learn, and is learnt in a thread."""


@define
class Prober:
    """Probes all configured providers at once, each within ``timeout``, every ``interval`` seconds."""

    providers: Mapping[str, Provider]
    registry: HealthRegistry
    catalog: Catalog
    interval: float
    timeout: float

    async def run(self) -> None:
        """Probes until cancelled. The caller must have run `once` first."""
        while True:
            await asyncio.sleep(self.interval)
            await self.once()

    async def once(self) -> None:
        """Runs one round in parallel; returns when the slowest provider has answered or timed out."""
        await asyncio.gather(*(self._probe(name, provider) for name, provider in self.providers.items()))

    async def _probe(self, name: str, provider: Provider) -> None:
        sent_at = self.registry.clock()
        try:
            listed = await provider.probe(self.timeout)
        except ProviderError as error:
            self.registry.probed(name, error, sent_at)
        except Exception as error:  # a bug in one probe must not end the others
            self.registry.observe(Crashed(f"probe of {name}", error))
        else:
            if listed is None:
                self.registry.note(name)
                return
            await self._learn(name, listed)
            self.registry.probed(name, None, sent_at)

    async def _learn(self, name: str, listed: ModelList) -> None:
        """Stores the list. Reports its fault once, and again only when it changes."""
        if len(listed.models) > MANY:
            before = self.catalog.listed(name)
            self.catalog.adopt(name, await asyncio.to_thread(Listed.after, before, listed.models))
        else:
            self.catalog.learn(name, listed.models)
        if listed.fault is None:
            self.catalog.faults.pop(name, None)
        elif self.catalog.faults.get(name) != listed.fault:
            self.catalog.faults[name] = listed.fault
            self.registry.observe(ListUnreadable(name, listed.fault))
