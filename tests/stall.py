"""How long the event loop stood still while something went on: a task that ticks, and the longest gap between ticks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define

TICK = 0.001
"""Seconds between two ticks of a loop that is idle."""


@define
class Stall:
    """``longest``: seconds."""

    longest: float = 0.0

    @property
    def ms(self) -> float:
        return self.longest * 1000


@asynccontextmanager
async def stall() -> AsyncIterator[Stall]:
    """Measures until it is left. Proxy, provider and client share the loop: what they cost counts for the proxy."""
    seen = Stall()

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            seen.longest = max(seen.longest, now - last - TICK)
            last = now

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(TICK * 3)
    seen.longest = 0.0
    try:
        yield seen
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
