"""Two providers, a faulty one and a good one after it, one proxy, one client; and what holds after every case."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from attrs import define, field, frozen
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.dialects import KEY, Asked, Dialect
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import Connection, Script, Seen, Upstream, answers, chunk, each, upstream

PROMPT = "PROMPT-CANARY"
CLIENT_KEY = "sk-CANARY-client"
HEALTH_LIMIT = 0.5
"""Seconds for /health while a fault lasts: 0.1 on a machine of one's own."""
LONG = aiohttp.ClientTimeout(total=30)
SETTLED = 2.0
"""Seconds in which everything that a fault has touched is given back."""


@frozen
class Reply:
    """What a client got, and when."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def resolved(self) -> str | None:
        return self.headers.get("x-mana-llm-resolved")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-mana-llm-attempts", 0))


def request(asked: Asked, model: str = "mana/test") -> tuple[str, dict[str, Any]]:
    """Path and body."""
    if asked == "embeddings":
        return "/v1/embeddings", {"model": model, "input": [PROMPT]}
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": asked == "stream"}
    return "/v1/chat/completions", body


async def ask(p: Proxy, asked: Asked, model: str = "mana/test") -> Reply:
    """One request, to its last byte."""
    path, body = request(asked, model)
    started = asyncio.get_running_loop().time()
    async with p.client.post(
        p.url + path, json=body, headers={"Authorization": f"Bearer {CLIENT_KEY}"}, timeout=LONG
    ) as response:
        raw = await everything(response)
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status, headers, raw, asyncio.get_running_loop().time() - started)


@define
class Scene:
    """``faulty`` is `bad` in the configuration, and first of the chain of `alias`; ``good`` the other."""

    p: Proxy
    faulty: Upstream
    good: Upstream
    bad: str = "bad"
    well: str = "good"
    alias: str = "mana/test"
    replies: list[Reply] = field(factory=list)

    async def ask(self, asked: Asked, model: str | None = None) -> Reply:
        """A request, while which /health answers."""
        asking = asyncio.ensure_future(ask(self.p, asked, self.alias if model is None else model))
        started, busy = asyncio.get_running_loop().time(), time.thread_time()
        assert (await self.p.get("/health"))[0] == 200
        assert time.thread_time() - busy < HEALTH_LIMIT
        assert asyncio.get_running_loop().time() - started < 10 * HEALTH_LIMIT  # others use this machine, too
        reply = await asyncio.wait_for(asking, 20)
        self.replies.append(reply)
        return reply

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.p.log.getvalue().splitlines()]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    async def health(self) -> dict[str, Any]:
        """What /v1/health says of the faulty provider."""
        row: dict[str, Any] = (await self.p.get("/v1/health"))[1]["providers"][self.bad]
        return row

    async def metric(self, name: str, **labels: str) -> float:
        """See `total`."""
        return total(await metrics(self.p), name, **labels)

    async def closed(self, within: float = 1.0) -> None:
        """Every connection over which the faulty provider was asked has been closed."""
        async with asyncio.timeout(within):
            for connection in self.faulty.connections:
                if connection.answering:
                    await connection.closed.wait()


async def hold(scenes: Sequence[Scene]) -> None:
    """What is true after every case over one proxy, whatever it was."""
    p = scenes[0].p
    async with asyncio.timeout(SETTLED):
        while total(told := await metrics(p), "mana_llm_requests_in_flight") or p.app.gateway.pipeline.exchanges:
            await asyncio.sleep(0.01)
    told += p.log.getvalue()
    for at in scenes:
        told += "".join(f"{reply.headers}{reply.body!r}" for reply in at.replies)
        for seen in (*at.faulty.seen, *at.good.seen):
            assert CLIENT_KEY not in str(seen.headers)
    for secret in (KEY, CLIENT_KEY, PROMPT):
        assert secret not in told
    wrong = [line for line in scenes[0].log if line["level"] == "error" or line["event"] == "library"]
    assert not wrong, wrong


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have `labels`, in what /metrics says."""
    rows = [row for row in text.splitlines() if row.startswith(name)]  # parsing all takes 5 ms
    return sum(
        sample.value
        for family in text_string_to_metric_families("\n".join(rows) + "\n")
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def metrics(p: Proxy) -> str:
    async with p.client.get(p.url + "/metrics") as response:
        return await response.text()


@asynccontextmanager
async def scene(dialect: Dialect, script: Script, folder: Path, **more: Any) -> AsyncIterator[Scene]:
    """The faulty provider speaks `dialect` and plays `script`; `more` are its settings, ``proxy`` the proxy's."""
    ours = more.pop("proxy", {})
    async with upstream(script) as faulty, upstream(each(answers)) as good:
        providers = {"bad": dialect.config(faulty.url, **more), "good": openai(good.url)}
        ours = {"health": {"probe_timeout": 5}, **ours}
        async with proxy(settings(providers, **ours), folder) as p:
            made = Scene(p, faulty, good)
            yield made
            await hold([made])


@asynccontextmanager
async def scenes(
    pairs: Sequence[tuple[Dialect, str]], script: Script, folder: Path, **more: Any
) -> AsyncIterator[list[Scene]]:
    """One proxy, and for each dialect a faulty provider and an alias of its own, over connections of that name.

    A provider's name ends in that of its connections, by which conftest.py chooses them.
    """
    async with AsyncExitStack() as stack, upstream(each(answers)) as good:
        faulty = [await stack.enter_async_context(upstream(script)) for _ in pairs]
        names = [(f"bad-{number}-{connection}", f"good-{connection}") for number, (_, connection) in enumerate(pairs)]
        providers = {well: openai(good.url) for _, well in names}
        for (bad, _), (dialect, _), at in zip(names, pairs, faulty, strict=True):
            providers[bad] = dialect.config(at.url, **more)
        config = settings(providers, health={"probe_timeout": 5})
        config["aliases"] |= {f"mana/{bad}": {"chain": [f"{bad}/m", f"{well}/m"]} for bad, well in names}
        async with proxy(config, folder) as p:
            made = [Scene(p, at, good, bad, well, f"mana/{bad}") for (bad, well), at in zip(names, faulty, strict=True)]
            yield made
            await hold(made)


async def probed_or_asked(connection: Connection) -> Any:
    """The next POST on a connection, its probes answered; None where the peer has gone."""
    while (seen := await connection.request()) is not None:
        if seen.method == "POST":
            return seen
        await connection.upstream.probe(connection)
    return None


async def slow(connection: Connection, seen: Seen) -> None:
    """Begins a stream and keeps it open; a whole answer it never gives."""
    if seen.json.get("stream") and connection.upstream.go.is_set():
        await connection.head()
        await connection.chunk(chunk("one"))
    await connection.gone()
