"""Ask each provider now and then: is it alive, and what does it have?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from attrs import define

from manallm_proxy.board import Board
from manallm_proxy.catalog import Catalog
from manallm_proxy.errors import ConnectTimeout, ProviderError
from manallm_proxy.events import Crashed
from manallm_proxy.upstream import Upstream


@define
class Prober:
    """Probes all configured providers at once, each within ``timeout``, every ``interval`` seconds."""

    upstreams: Mapping[str, Upstream]
    board: Board
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

    async def _probe(self, name: str, upstream: Upstream) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                models = await upstream.probe()
        except TimeoutError:
            self.board.probed(name, ConnectTimeout(f"{name}: its probe got no answer in {self.timeout:g} s"))
        except ProviderError as error:
            self.board.probed(name, error)
        except Exception as error:  # a bug in one probe must not end the others
            self.board.observe(Crashed(f"probe of {name}", error))
        else:
            if models is None:
                self.board.note(name)
                return
            self.catalog.learn(name, models)
            self.board.probed(name, None)
