"""Faults after the first event: an error event, no [DONE], nothing of another provider, and the provider is blamed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults.after import BROKEN, ENDLESS, Broken, endless, script
from tests.faults.before import LIMIT
from tests.faults.dialects import DIALECTS
from tests.faults.matrix import CONNECTIONS, together
from tests.faults.scene import LONG, Reply, Scene, request, scene, scenes
from tests.proxy import everything
from tests.upstreams import DONE, Connection, Seen, chunk, each
from tests.waiting import until

Row = tuple[str, str]
"""A kind of provider, and by which HTTP client."""
CASES = [
    row
    for number, broken in enumerate(BROKEN)
    for row in together(
        broken,
        [
            ((kind, connection), kind == "openai" or (number + place + turn) % 2 == 0)
            for place, kind in enumerate(DIALECTS)
            for turn, connection in enumerate(CONNECTIONS)
        ],
        broken.name,
    )
]


@pytest.mark.parametrize(("broken", "rows", "connection"), CASES)
async def test_a_fault_after_the_first_event(tmp_path: Path, broken: Broken, rows: list[Row]) -> None:
    """At once, or at ``idle``; the log says *broken*; the connection to the provider is closed."""
    times = {"timeouts": {"idle": LIMIT}} if broken.costs else {}
    pairs = [(DIALECTS[kind], connection) for kind, connection in rows]

    async def play(connection: Connection, seen: Seen) -> None:
        kind, _ = rows[providers.index(connection.upstream)]
        await script(broken, DIALECTS[kind])(connection, seen)

    async with scenes(pairs, each(play), tmp_path, **times) as made:
        providers = [at.faulty for at in made]
        for at in made:
            await breaks(at, broken)


async def breaks(at: Scene, broken: Broken) -> None:
    """What one case looks like."""
    path, body = request("stream", at.alias)
    async with at.p.client.post(at.p.url + path, json=body, timeout=LONG) as response:
        first = await response.content.readany()
        assert b"one" in first
        at.faulty.go.set()
        started = asyncio.get_running_loop().time()
        raw = first + await asyncio.wait_for(everything(response), 10)
        took = asyncio.get_running_loop().time() - started
    at.replies.append(Reply(response.status, {}, raw, took))
    assert took <= broken.costs + 1.0
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: ")]
    assert events[-1]["error"]["target"] == f"{at.bad}/m"
    assert raw.endswith(b"\n\n")
    assert DONE not in raw
    assert raw.count(b"one") == 1
    assert b"two" not in raw
    assert at.good.posts == []
    if not broken.is_whole:
        await at.closed()
    row = await at.health()
    targets = sum(target["consecutive_failures"] for target in row.get("targets", {}).values())
    assert row["consecutive_failures"] + targets == 1
    await until(lambda: ended(at), 2)
    assert ended(at)[0]["outcome"] == "broken"


def ended(at: Scene) -> list[dict[str, Any]]:
    return [line for line in at.logged("request") if line["requested"] == at.alias]


async def test_heartbeats_come_only_between_events(tmp_path: Path) -> None:
    """A provider that stops in the middle of an event gets its time, and its event arrives in one piece."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.head()
        data = chunk("one")
        await connection.chunk(chunk("zero") + data[:20])
        await asyncio.sleep(0.35)
        await connection.chunk(data[20:] + chunk(finish="stop") + DONE)
        await connection.end()

    async with scene(DIALECTS["openai"], each(answer), tmp_path, proxy={"streaming": {"heartbeat": 0.1}}) as at:
        reply = await at.ask("stream")
        frames = reply.body.split(b"\n\n")
        assert any(frame.startswith(b": ") for frame in frames)
        assert all(frame.startswith((b": ", b"data: ")) for frame in frames if frame)
        assert b'"one"' in reply.body


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_event_without_end_is_broken_off(tmp_path: Path, what: str) -> None:
    """The next of the chain answers, and the connection is closed; for its memory see test_resources."""
    async with scene(DIALECTS["openai"], each(endless(what)), tmp_path, timeouts={"first_byte": 3}) as at:
        reply = await at.ask("stream")
        assert (reply.status, reply.resolved) == (200, "good/m")
        await at.closed(2)
