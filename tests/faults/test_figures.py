"""What a dead provider costs, and how soon it is back: the figures, printed; their bounds are generous."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import aiohttp
import pytest

from tests.faults.before import full_backlog
from tests.proxy import openai, process, settings
from tests.upstreams import answers, each, upstream

pytestmark = pytest.mark.built_in

MANY = 200
CONNECT = 0.5
PROBES = 1.0


async def cost(session: aiohttp.ClientSession, url: str, model: str) -> float:
    """Seconds of one chat."""
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json={"messages": [], "model": model}) as response:
        assert response.status == 200
        await response.read()
    return time.perf_counter() - started


@pytest.mark.heavy
async def test_what_a_dead_provider_costs(tmp_path: Path) -> None:
    """At most ``connect`` while nobody knows, next to nothing once its circuit is open; back within one probe."""
    listener, waiting = full_backlog()
    async with upstream(each(answers)) as good, upstream(each(answers)) as mortal:
        providers = {
            "off": openai(f"http://127.0.0.1:{listener.getsockname()[1]}", timeouts={"connect": CONNECT}),
            "mortal": openai(mortal.url),
            "good": openai(good.url),
        }
        health = {"probe_interval": PROBES, "probe_timeout": 0.2, "backoff": 600}
        config = settings(providers, ["good/m"], health=health)
        config["aliases"]["mana/off"] = {"chain": ["off/m", "good/m"]}
        config["aliases"]["mana/mortal"] = {"chain": ["mortal/m", "good/m"]}
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as session:
            first = await cost(session, running.url, "mana/off")
            while not any('"now":"unhealthy"' in line for line in running.output):
                await cost(session, running.url, "mana/off")
            alone = [await cost(session, running.url, "mana/test") for _ in range(MANY)]
            behind = [await cost(session, running.url, "mana/off") for _ in range(MANY)]
            extra = statistics.median(behind) - statistics.median(alone)
            returns = []
            for _ in range(5):
                await mortal.stop()
                while await target(session, running.url) == "mortal/m":
                    await asyncio.sleep(0.01)
                await asyncio.sleep(2 * PROBES)
                await mortal.start()
                started = time.perf_counter()
                while await target(session, running.url) != "mortal/m":
                    await asyncio.sleep(0.01)
                returns.append(time.perf_counter() - started)
    for each_socket in (listener, *waiting):
        each_socket.close()
    print(
        f"\na provider that is switched off: {1000 * first:.0f} ms the first time (connect {1000 * CONNECT:.0f} ms), "
        f"{1000 * extra:+.2f} ms once its circuit is open (medians of {MANY})"
        f"\n  one that returns is asked again after {max(returns):.2f} s at most of {len(returns)} (probes: {PROBES} s)"
    )
    assert first < CONNECT + 1
    assert extra < 0.1
    assert max(returns) < PROBES + 2


async def target(session: aiohttp.ClientSession, url: str) -> str:
    body = {"messages": [], "model": "mana/mortal"}
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.read()
        return response.headers["X-Mana-LLM-Resolved"]
