"""What one process keeps of answers: those that are complete, and those on their way."""

from __future__ import annotations

import asyncio

from attrs import define, field

from manallm_proxy.state.flights import Flights
from manallm_proxy.state.kept import AnswerStore


@define(eq=False)
class Answers:
    """It outlives reloads. ``url``: of the server that keeps them, if one does."""

    store: AnswerStore
    flights: Flights = field(factory=Flights)
    url: str | None = field(default=None, repr=False)
    _closing: asyncio.Task[None] | None = None

    def replace(self, store: AnswerStore, url: str | None) -> None:
        """`store` keeps them from now on."""
        old, self.store, self.url = self.store, store, url
        self._closing = asyncio.get_running_loop().create_task(old.close())

    async def close(self) -> None:
        await self.store.close()
