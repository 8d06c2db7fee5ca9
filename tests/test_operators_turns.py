"""What an operator asks for, of a thousand aliases: made a few rows in each turn of the loop.

That they are written in a thread: tests/test_written_in_threads.py.

The loop was held for 17 ms by the status page, 13 by ``/v1/requests``, 12 by ``/metrics`` and 5 by ``/v1/aliases``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.gateway import explain, render, reports
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.openai.large import LARGE_BYTES, collector
from manallm_proxy.process import gauges
from manallm_proxy.routing.circuit import Circuit
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream

ALIASES = 300
HTML = {"Accept": "text/html"}


def many(url: str) -> dict[str, Any]:
    """A configuration of `ALIASES` aliases, a third of them open, before two local providers."""
    config = settings({"gpu": openai(url, local=True), "cpu": openai(url, local=True)}, ["gpu/m", "cpu/m"])
    chains = {
        f"mana/a{n}": {"chain": ["gpu/*"] if n % 3 == 0 else [f"gpu/m{n}", f"cpu/m{n}"]} for n in range(ALIASES - 1)
    }
    return {**config, "aliases": {**config["aliases"], **chains}}


@pytest.mark.parametrize(
    ("made", "module", "name", "most"),
    [
        (reports.alias_list, reports, "_alias", 110),
        (reports.health_report, reports, "_note_entries", 110),
        (reports.health_report, reports, "_circuit", 110),
        (explain.explain_all, explain, "explain", 11),
    ],
)
async def test_few_rows_in_each_turn(
    made: Callable[[Generation], Awaitable[Any]],
    module: Any,
    name: str,
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works, done = getattr(module, name), [0]

    def counted(*arguments: Any) -> Any:
        done[0] += 1
        return works(*arguments)

    async with upstream(each(answers), ["m"]) as server, proxy(many(server.url), tmp_path) as p:
        monkeypatch.setattr(module, name, counted)
        seen = [0]
        making = asyncio.ensure_future(made(p.app.generation))
        while not making.done():
            await asyncio.sleep(0)
            seen.append(done[0])
        assert making.result()
    assert done[0] >= 100
    assert max(after - before for before, after in pairwise(seen)) <= most


@pytest.mark.parametrize("path", ["/metrics", "/v1/requests", "/", "/v1/aliases"])
async def test_a_long_one_is_sent_in_portions_with_the_same_headers(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that differ are of the moment."""
    async with upstream(each(answers), ["m"]) as server, proxy(many(server.url), tmp_path) as p:
        seen = []
        for bound in (LARGE_BYTES, 10):
            monkeypatch.setattr(render, "LARGE_BYTES", bound)
            for method in ("GET", "HEAD"):
                async with p.client.request(method, p.url + path, headers=HTML) as response:
                    assert response.status == 200
                    body = await response.read()
                    assert bool(body) is (method == "GET")
                    headers = {k: v for k, v in response.headers.items() if k not in ("Date", "Content-Length")}
                    assert response.headers["Content-Length"].isdecimal()
                    seen.append(headers)
    assert seen[0] == seen[1] == seen[2] == seen[3]


async def test_a_scrape_looks_at_each_provider_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each entry of each alias; and what it says is what each entry would find."""
    looks, asked = Circuit.refusal, [0]

    def counted(circuit: Circuit, now: float) -> Any:
        asked[0] += 1
        return looks(circuit, now)

    async with upstream(each(answers), ["m"]) as server, proxy(many(server.url), tmp_path) as p:
        registry = p.app.generation.registry
        far = registry.clock() + 1000
        registry.providers["cpu"].targets["m1"] = Circuit(cooling_until=far)
        registry.providers["gpu"].targets["m2"] = Circuit(open_until=far)
        registry.providers["gpu"].targets["m4"] = Circuit(open_until=1.0)  # the next one is its trial
        each_one = {
            name: sum(registry.may_pass(entry.target) for entry in chain)
            for name, chain in p.app.generation.config.aliases.items()
        }
        monkeypatch.setattr(Circuit, "refusal", counted)
        found = dict(gauges.aliases(p.app.generation))
    assert asked[0] <= 10
    assert found == each_one
    assert [found[f"mana/a{n}"] for n in (1, 2, 4, 5)] == [1, 1, 2, 2]


@pytest.mark.parametrize(("number", "told"), [(50, 0), (250, 1)])
async def test_rows_of_a_long_list_are_not_looked_at_again_and_again(number: int, told: int) -> None:
    """By the cycle collector, while more are made; a short list is no reason."""
    running: list[int] = []

    def rows() -> Iterator[int]:
        for n in range(number):
            running.append(collector.running)
            yield n

    try:
        assert await reports.in_turns(rows()) == list(range(number))
        assert (running[0], running[-1], collector.running) == (0, told, 0)
    finally:
        collector.restore()
