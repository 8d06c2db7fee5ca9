"""Ask each provider now and then: is it alive, and what does it have?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from attrs import define

from manallm_proxy.contract.events import Crashed
from manallm_proxy.contract.provider import Provider
from manallm_proxy.contract.provider_errors import ConnectTimeout, ProviderError
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.health_registry import HealthRegistry


@define
class Prober:
    """Probes all configured providers at once, each within ``timeout``, every ``interval`` seconds."""

    upstreams: Mapping[str, Provider]
    registry: HealthRegistry
    catalog: Catalog
    interval: float
    timeout: float

    async def run(self) -> None:
        """For ever, until cancelled. The first round is `once`, which whoever starts this has done."""
        while True:
            await asyncio.sleep(self.interval)
            await self.once()

    async def once(self) -> None:
        """One round, in parallel; over when the slowest has answered or timed out."""
        await asyncio.gather(*(self._probe(name, upstream) for name, upstream in self.upstreams.items()))

    async def _probe(self, name: str, upstream: Provider) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                models = await upstream.probe()
        except TimeoutError:
            self.registry.probed(name, ConnectTimeout(f"{name}: its probe got no answer in {self.timeout:g} s"))
        except ProviderError as error:
            self.registry.probed(name, error)
        except Exception as error:  # a bug in one probe must not end the others
            self.registry.observe(Crashed(f"probe of {name}", error))
        else:
            if models is None:
                self.registry.note(name)
                return
            self.catalog.learn(name, models)
            self.registry.probed(name, None)
