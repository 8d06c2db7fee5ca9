"""A mixed hour in minutes: providers die and return, configurations change each second, clients vanish."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.faults.load import PATIENCE, Pulse, pulse
from tests.faults.raw import LEAVES, client, post
from tests.proxy import Process, everything, openai, process, resident, settings
from tests.upstreams import DONE, Connection, Seen, Upstream, answers, chunk, each, upstream

pytestmark = pytest.mark.built_in

SOAK = float(os.environ.get("SOAK", "150"))
KINDS = ("chat", "stream", "embeddings", "leaver")
SEED = 4


async def human(connection: Connection, seen: Seen) -> None:
    """A stream of half a second; the rest at once."""
    if not seen.json.get("stream"):
        await answers(connection, seen)
        return
    await connection.head()
    for _ in range(10):
        await connection.chunk(chunk("word"))
        await asyncio.sleep(0.05)
    await connection.chunk(chunk(finish="stop") + DONE)
    await connection.end()


class Soak:
    """Its clients, its weather, and what they saw. ``rock`` never dies, so no request may fail before its commit."""

    def __init__(self, running: Process, path: Path, config: dict[str, Any], mortal: list[Upstream]) -> None:
        self.running, self.path, self.config, self.mortal = running, path, config, mortal
        self.outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.over = False
        self.reloads = 0
        self.memory: list[float] = []
        self.descriptors: list[int] = []
        self.dice = random.Random(SEED)

    async def run(self, seconds: float, many: int) -> Pulse:
        """`many`: clients of each kind."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            async with pulse(self.running.url) as beat:
                clients = [asyncio.ensure_future(self.clients(session, kind)) for kind in KINDS for _ in range(many)]
                weather = [asyncio.ensure_future(part) for part in (self.deaths(), self.reloading(), self.watch())]
                await asyncio.wait(clients + weather, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
                self.over = True  # not cancelled: asyncio loses a socket whose connecting is cancelled
                await asyncio.wait(clients)
                for task in clients + weather:
                    if task.done():
                        task.result()
                    task.cancel()
                await asyncio.gather(*weather, return_exceptions=True)
        return beat

    async def clients(self, session: aiohttp.ClientSession, kind: str) -> None:
        while not self.over:
            if kind == "leaver":
                await self.leave()
            else:
                await self.ask(session, kind)
            await asyncio.sleep(self.dice.uniform(0, 0.1))

    async def ask(self, session: aiohttp.ClientSession, kind: str) -> None:
        path = "/v1/embeddings" if kind == "embeddings" else "/v1/chat/completions"
        body: dict[str, Any] = {"input": "x"} if kind == "embeddings" else {"messages": [], "stream": kind == "stream"}
        try:
            async with session.post(self.running.url + path, json=body, timeout=PATIENCE) as response:
                raw = await everything(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.unexpected[f"{kind}: {type(error).__name__}"] += 1
            return
        if response.status != 200:
            self.unexpected[f"{kind}: {response.status} {raw[:200]!r}"] += 1
        elif kind != "stream" or raw.endswith(DONE):
            self.outcomes["served"] += 1
        elif b'"stream_interrupted"' in raw:
            self.outcomes["broken with its provider"] += 1
        else:
            self.unexpected[f"{kind}: a silent end {raw[-100:]!r}"] += 1

    async def leave(self) -> None:
        async with client(int(self.running.url.rpartition(":")[2])) as (reader, writer):
            writer.write(post("stream"))
            if self.dice.random() < 0.5:
                await reader.readuntil(b"word")
            LEAVES[self.dice.choice(list(LEAVES))](writer)
            self.outcomes["left"] += 1

    async def deaths(self) -> None:
        while True:
            victim = self.dice.choice(self.mortal)
            await victim.stop()
            self.outcomes["deaths"] += 1
            await asyncio.sleep(self.dice.uniform(0.2, 2))
            victim.connections.clear()
            victim.seen.clear()
            await victim.start()
            await asyncio.sleep(self.dice.uniform(0.2, 2))

    async def reloading(self) -> None:
        while True:
            chain = [f"{name}/m" for name in self.dice.sample(["one", "two"], 2)] + ["rock/m"]
            self.config["aliases"]["mana/test"] = {"chain": chain}
            self.config["providers"]["two"]["headers"] = {
                "X-Generation": str(self.reloads)
            }  # its pool is new each time
            self.path.with_suffix(".new").write_text(yaml.safe_dump(self.config))
            self.path.with_suffix(".new").rename(self.path)
            os.kill(self.running.pid, signal.SIGHUP)
            self.reloads += 1
            await asyncio.sleep(1)

    async def watch(self) -> None:
        while True:
            self.memory.append(resident(self.running.pid))
            self.descriptors.append(len(os.listdir(f"/proc/{self.running.pid}/fd")))
            await asyncio.sleep(0.25)


@pytest.mark.timeout(SOAK + 120)
@pytest.mark.parametrize(("seconds", "many"), [pytest.param(SOAK, 5, marks=pytest.mark.heavy), (2.5, 2)])
async def test_soak(tmp_path: Path, seconds: float, many: int) -> None:
    """No unexpected error; memory and descriptors flat; the loop free."""
    async with upstream(each(human)) as one, upstream(each(human)) as two, upstream(each(human)) as rock:
        providers = {name: openai(u.url) for name, u in (("one", one), ("two", two), ("rock", rock))}
        health = {"probe_interval": 0.5, "probe_timeout": 0.5, "backoff": 1}
        config = settings(providers, health=health, log={"level": "info"})
        async with process(config, tmp_path) as running:
            soak = Soak(running, tmp_path / "proxy.yaml", config, [one, two])
            beat = await soak.run(seconds, many)
            settled = time.monotonic() + 5
            while (left := len(os.listdir(f"/proc/{running.pid}/fd"))) > 40 and time.monotonic() < settled:
                await asyncio.sleep(0.1)
            half = len(soak.memory) // 2
            first, last = soak.memory[half // 2 : half], soak.memory[-(half // 2) :]
            grown = sum(last) / len(last) - sum(first) / len(first)
            print(
                f"\nsoak of {seconds:.0f} s: {dict(soak.outcomes)}, {soak.reloads} reloads; unexpected: "
                f"{dict(soak.unexpected)}\n  memory {soak.memory[-1]:.0f} MiB, {grown:+.1f} MiB from its second to its "
                f"last quarter; descriptors {max(soak.descriptors)} at most, {left} at the end\n  {beat}"
            )
            wrong = [line for line in running.output if '"level":"error"' in line or "Traceback" in line]
            assert not wrong, wrong[:3]
            assert not soak.unexpected
            assert soak.outcomes["served"] > 2 * seconds
            assert beat.failed == 0
            assert left <= 40
            if seconds >= 60:
                assert grown < 8
            assert beat.percentile(0.99) < (1.0 if seconds >= 60 else 5.0)  # few beats, on a machine that may be busy
