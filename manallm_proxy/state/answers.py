"""The answers of one process: those cached, and those in flight."""

from __future__ import annotations

import asyncio

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.state.answer_store import AnswerStore
from manallm_proxy.state.flights import Flights
from manallm_proxy.state.link import Link


@define(eq=False)
class Answers:
    """Outlives reloads. ``link``: to the server at ``url`` through which instances share the cache, if any."""

    store: AnswerStore
    flights: Flights = field(factory=Flights)
    url: str | None = field(default=None, repr=False)
    link: Link | None = None
    _closing: asyncio.Task[None] | None = None

    def replace(self, store: AnswerStore, url: str | None, link: Link | None) -> None:
        """Uses `store` from now on, and closes the previous one."""
        self._closing = asyncio.get_running_loop().create_task(_close(self.store, self.link))
        self.store, self.url, self.link = store, url, link

    async def close(self) -> None:
        await _close(self.store, self.link)


async def _close(store: AnswerStore, link: Link | None) -> None:
    await store.close()
    if link is not None:
        await link.close()
