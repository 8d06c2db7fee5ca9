"""Requests that end in one turn of the event loop are reported together, and nobody sees them unreported."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.gateway.exchange import Exchange
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, completion, each, upstream
from tests.waiting import until

ALL = 24


async def counted(p: Proxy) -> float:
    async with p.client.get(f"{p.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return sum(s.value for f in families for s in f.samples if s.name == "mana_llm_llm_requests_total")


async def test_many_at_once_are_all_counted_before_the_next_request_is(tmp_path: Path) -> None:
    """Also while another is in flight, which is then the last, and reported as soon as it has its answer."""

    async def in_step(connection: Connection, seen: Seen) -> None:
        await (last if seen.json["model"] == "last" else go).wait()
        await connection.reply(completion())

    go, last = asyncio.Event(), asyncio.Event()
    async with upstream(each(in_step)) as u, proxy(settings({"gpu": openai(u.url)}), tmp_path) as p:
        at_the_end = asyncio.ensure_future(p.chat(model="gpu/last"))
        chats = [asyncio.ensure_future(p.chat(model="gpu/m")) for _ in range(ALL)]
        await until(lambda: len(p.app.gateway.pipeline.placed) == ALL + 1)
        go.set()
        assert {status for status, _, _ in await asyncio.gather(*chats)} == {200}
        assert await counted(p) == ALL
        last.set()
        assert (await at_the_end)[0] == 200
        assert await counted(p) == ALL + 1
        lines = [json.loads(line) for line in p.log.getvalue().splitlines() if '"event":"request"' in line]
    chat = [line for line in lines if line["endpoint"] == "chat/completions"]
    assert len({line["request_id"] for line in chat}) == len(chat) == ALL + 1
    assert chat[-1]["target"] == "gpu/last"


async def test_a_bug_in_one_report_costs_no_other_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says what happened, and has the lines of the others."""

    async def in_step(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.reply(completion())

    def report(self: Exchange, **options: Any) -> None:
        if self.resolved is not None and self.resolved.target.model == "odd":
            raise RuntimeError("a bug")
        real(self, **options)

    go, real = asyncio.Event(), Exchange.report
    monkeypatch.setattr(Exchange, "report", report)
    async with upstream(each(in_step)) as u, proxy(settings({"gpu": openai(u.url)}), tmp_path) as p:
        models = ["gpu/m", "gpu/odd", "gpu/m", "gpu/m"]
        chats = [asyncio.ensure_future(p.chat(model=model)) for model in models]
        await until(lambda: len(p.app.gateway.pipeline.placed) == len(models))
        go.set()
        assert {status for status, _, _ in await asyncio.gather(*chats)} == {200}
        assert await counted(p) == 3
        lines = [json.loads(line) for line in p.log.getvalue().splitlines()]
    assert [line["target"] for line in lines if line["event"] == "request"] == ["gpu/m"] * 3
    assert [line["where"] for line in lines if line["event"] == "internal error"] == ["request report"]
