"""Clients that count: every request's outcome, at a rate, over new and kept connections, streamed and not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from attrs import define, field

from tests.proxy import everything

KEPT: Final = 16
PATIENCE: Final = aiohttp.ClientTimeout(total=60)
MESSAGES: Final = [{"role": "user", "content": "hi"}]


@define(eq=False)
class Tally:
    """What became of the requests. ``lost``: what no client may see. ``slowest``: seconds."""

    served: int = 0
    lost: Counter[str] = field(factory=Counter)
    slowest: float = 0.0
    by_target: Counter[str] = field(factory=Counter)

    def note(self, why: str | None, target: str, seconds: float) -> None:
        self.slowest = max(self.slowest, seconds)
        if why is None:
            self.served += 1
            self.by_target[target] += 1
        else:
            self.lost[why] += 1

    def __str__(self) -> str:
        return f"{self.served} served, {sum(self.lost.values())} lost {dict(self.lost)}, slowest {self.slowest:.2f} s"


async def one(session: aiohttp.ClientSession, url: str, tally: Tally, **body: Any) -> None:
    """One chat, to its last byte."""
    started = time.perf_counter()
    target, why = "", None
    try:
        payload = {"messages": MESSAGES, **body}
        async with session.post(f"{url}/v1/chat/completions", json=payload, timeout=PATIENCE) as response:
            target = response.headers.get("X-Mana-LLM-Resolved", "")
            raw = await everything(response)
            if response.status != 200:
                why = f"status {response.status}: {raw[:300]!r}"
            elif body.get("stream") and not raw.endswith(b"data: [DONE]\n\n"):
                why = f"cut: {raw[-300:]!r}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
    tally.note(why, target, time.perf_counter() - started)


@asynccontextmanager
async def load(url: str, rate: float, tally: Tally, **body: Any) -> AsyncIterator[None]:
    """`rate` requests a second while the block runs: half over new connections, half over kept ones, half streamed.

    The kept ones are few and busy, as behind nginx. One that has been idle for long can always be closed by a server
    at the very moment at which its client uses it again; HTTP/1.1 has no word against that.
    """
    running: set[asyncio.Task[None]] = set()
    over = asyncio.Event()

    async def pace(kept: aiohttp.ClientSession, fresh: aiohttp.ClientSession) -> None:
        started, number = time.perf_counter(), 0
        while not over.is_set():
            due = int((time.perf_counter() - started) * rate)
            while number < due:  # as many as the clock asks for
                number += 1
                session = kept if number % 2 else fresh
                task = asyncio.ensure_future(one(session, url, tally, stream=number % 4 < 2, **body))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(0.005)

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=KEPT)) as kept,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as fresh,
    ):
        pacing = asyncio.ensure_future(pace(kept, fresh))
        try:
            yield
        finally:
            over.set()
            await pacing
            await asyncio.gather(*running)


@define(eq=False)
class Pulse:
    """Latency of /health at 50 Hz: what the event loop of the proxy makes everybody wait."""

    url: str
    samples: list[float] = field(factory=list)
    failed: int = 0

    async def beat(self) -> None:
        """Until cancelled, over one connection."""
        async with aiohttp.ClientSession() as session:
            while True:
                started = time.perf_counter()
                try:
                    async with session.get(f"{self.url}/health", timeout=PATIENCE) as response:
                        await everything(response)
                    self.samples.append(time.perf_counter() - started)
                except aiohttp.ClientError:
                    self.failed += 1
                await asyncio.sleep(max(0.0, started + 0.02 - time.perf_counter()))

    def percentile(self, part: float) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]

    def __str__(self) -> str:
        p50, p99, most = (1000 * self.percentile(part) for part in (0.5, 0.99, 1.0))
        return f"/health p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms of {len(self.samples)}"


@asynccontextmanager
async def pulse(url: str) -> AsyncIterator[Pulse]:
    made = Pulse(url)
    beating = asyncio.ensure_future(made.beat())
    try:
        yield made
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
