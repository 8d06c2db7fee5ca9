"""A real Prometheus scrapes a running proxy: it takes all of it, the rules evaluate, the dashboard's queries answer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.command import ROOT
from tests.needs import require
from tests.ollama_box import box
from tests.ports import free_port
from tests.proxy import openai, proxy, settings
from tests.upstreams import DONE, USAGE, Connection, Seen, answers, chunk, each, status, upstream

pytestmark = [pytest.mark.packages, pytest.mark.built_in]

RULES = ROOT / "config/prometheus/rules.yml"
PANELS: list[dict[str, Any]] = json.loads((ROOT / "config/grafana/manallm.json").read_text())["panels"]
EVERY = 0.2
"""Seconds between two scrapes."""
EMPTY = {"Tokens by key", "Refused keys, clients that left, workers restarted"}
"""Panels with a query that has nothing to show here: no client keys, one worker."""


@asynccontextmanager
async def prometheus(target: str, folder: Path) -> AsyncIterator[str]:
    """Debian's, which scrapes `target` and evaluates our rules; its address."""
    program = require("prometheus", "Debian: apt-get install prometheus")
    config = {
        "global": {"scrape_interval": f"{EVERY}s", "scrape_timeout": f"{EVERY}s", "evaluation_interval": f"{EVERY}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "manallm", "static_configs": [{"targets": [target.removeprefix("http://")]}]}],
    }
    text = yaml.safe_dump(config).replace(f"{EVERY}s", f"{EVERY * 1000:.0f}ms")
    (folder / "prometheus.yml").write_text(text)
    at = f"127.0.0.1:{free_port()}"
    child = await asyncio.create_subprocess_exec(
        program,
        *(f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address={at}", "--log.level=warn"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://{at}"
    finally:
        child.kill()
        await child.wait()


async def takes_time(connection: Connection, seen: Seen) -> None:
    """A stream that is long enough to have a rate."""
    if not seen.json.get("stream"):
        await answers(connection, seen)
        return
    await connection.head()
    await connection.chunk(chunk("one"))
    await asyncio.sleep(0.03)
    await connection.chunk(chunk("two", finish="stop") + USAGE + DONE)
    await connection.end()


async def test_it_understands_all_of_it(tmp_path: Path) -> None:
    """Each query of each panel has an answer, each rule evaluates, and a provider that is down makes its alert wait."""
    no = status("503 No", {"error": {"message": "no"}})
    async with upstream(each(no)) as bad, upstream(each(takes_time)) as good, box() as gpu:
        gpu.put("m")
        providers = {"bad": openai(bad.url), "good": openai(good.url), "box": gpu.provider(parallel=1)}
        providers["down"] = openai("http://127.0.0.1:9")
        config = settings(providers, ["down/m", "bad/m", "good/m"])
        config["aliases"]["mana/down"] = {"chain": ["down/m"]}
        priced = {"target": "good/m", "price": {"input": 3, "output": 5}}
        config["aliases"]["mana/home"] = {"chain": ["box/m", priced]}
        config["aliases"]["mana/kept"] = {"chain": [priced], "cache": {"ttl": "1h"}}
        async with proxy(config, tmp_path) as p, prometheus(p.url, tmp_path) as at, aiohttp.ClientSession() as client:

            async def answer(path: str, **query: str) -> Any:
                async with client.get(f"{at}/api/v1/{path}", params=query) as response:
                    found = await response.json()
                    assert found["status"] == "success", found
                    return found["data"]

            async def traffic() -> None:
                for name in ("mana/test", "box/m", "mana/down", "mana/home", "mana/kept"):
                    await p.chat(model=name)
                    await p.stream(model=name)

            async def rules() -> dict[str, dict[str, Any]]:
                """Each alert with its state, and whether it evaluates; none while Prometheus is not ready."""
                try:
                    groups = (await answer("rules"))["groups"]
                except (aiohttp.ClientError, ValueError):
                    return {}
                return {rule["name"]: rule for group in groups for rule in group["rules"]}

            waiting: set[str] = set()
            async with asyncio.timeout(30):
                while not {"ManallmProviderDown", "ManallmAliasDown"} <= waiting:
                    await traffic()
                    await asyncio.sleep(EVERY)
                    waiting = {name for name, rule in (await rules()).items() if rule["state"] == "pending"}
            for _ in range(5):  # so that every rate has something to go by
                await traffic()
                await asyncio.sleep(EVERY)
            assert {rule["health"] for rule in (await rules()).values()} == {"ok"}
            [target] = (await answer("targets"))["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            for panel in PANELS:
                for query in (target["expr"] for target in panel["targets"]):
                    filled = re.sub(r"\[\$__\w+\]", "[10s]", query).replace("$instance", ".*")
                    rows = (await answer("query", query=filled))["result"]
                    assert rows or panel["title"] in EMPTY, panel["title"]
