"""Faults before the first byte: the next of the chain serves; without one, 503 that says why; then a skip."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.faults.before import FAULTS, LIMIT, Fault, armed
from tests.faults.dialects import DIALECTS, Asked
from tests.faults.matrix import CONNECTIONS, together
from tests.faults.scene import Reply, Scene, metrics, scenes, total
from tests.upstreams import Upstream

SLACK = 1.0
"""Seconds over what a fault costs: 0.05 on a machine of one's own."""
TIMES = {"first_byte_timeout": {"first_byte": LIMIT}, "read_timeout": {"idle": LIMIT}}
"""By reason: the limit that the fault exceeds is short, no other that a busy machine might."""
ASKED: tuple[Asked, ...] = ("chat", "stream", "embeddings")


Row = tuple[str, Asked, str]
"""A kind of provider, what is asked for, and by which HTTP client."""


def cases() -> Iterator[Any]:
    """The product; see matrix.py for what is chosen of it."""
    for number, fault in enumerate(FAULTS):
        yield from together(fault, rows(fault, number), fault.name)


def rows(fault: Fault, number: int) -> Iterator[tuple[Row, bool]]:
    asked_for = [asked for asked in ASKED if asked in fault.asked]
    for place, kind in enumerate(kind for kind in DIALECTS if kind in fault.kinds):
        turn = number + place
        for asked, connection in product(asked_for, CONNECTIONS):
            is_its_turn = connection == CONNECTIONS[turn % 2]
            next_asked = asked_for[(turn + (not is_its_turn)) % len(asked_for)]
            both = fault.is_below_http and kind == "openai"
            yield (kind, asked, connection), asked == next_asked and (is_its_turn or both)


@pytest.mark.parametrize(("fault", "rows", "connection"), list(cases()))
async def test_a_fault_before_the_first_byte(tmp_path: Path, fault: Fault, rows: list[Row]) -> None:
    """Falls back within what the fault costs; alone it is a 503 with the reason; then it is skipped; all is closed."""
    times = TIMES[fault.reason] if fault.costs else {}
    pairs = [(DIALECTS[kind], connection) for kind, _, connection in rows]
    async with scenes(pairs, armed(fault), tmp_path, timeouts=times) as made:
        reasons = [await told(at, fault, *row) for at, row in zip(made, rows, strict=True)]
        text = await metrics(made[0].p)
        for at, reason in zip(made, reasons, strict=True):
            asked_alone = fault.blames != "cools"
            assert total(text, "mana_llm_fallback_total", from_model=f"{at.bad}/m", reason=reason) == 1
            assert total(text, "mana_llm_llm_errors_total", provider=at.bad, error_type=reason) == 1 + asked_alone


async def told(at: Scene, fault: Fault, kind: str, asked: Asked, connection: str) -> str:
    """The reason that is told of one case."""
    await arm(at.faulty)
    fell_back(at, await at.ask(asked), fault.costs)
    [failed] = [line for line in at.logged("attempt failed") if line["provider"] == at.bad]
    reason = str(failed["reason"])
    assert fault.allows(reason, kind), failed
    assert await blamed(at, fault) == (0 if fault.blames == "cools" else 1)

    alone = await at.ask(asked, f"{at.bad}/m")
    assert alone.status == (429 if reason == "rate_limited" else 503)
    assert [a["reason"] for a in alone.json["error"]["attempts"]] == ["cooling" if fault.blames == "cools" else reason]
    assert int(alone.headers["retry-after"]) >= 1

    skipped = await at.ask(asked)
    fell_back(at, skipped, 0.0)
    assert skipped.attempts == 1
    if not fault.act.__qualname__.startswith("answers."):
        await at.closed()
    return reason


def fell_back(at: Scene, reply: Reply, costs: float) -> None:
    assert (reply.status, reply.resolved) == (200, f"{at.well}/m"), (at.bad, reply)
    assert costs - 0.05 <= reply.seconds <= costs + SLACK


async def blamed(at: Scene, fault: Fault) -> int:
    """Failures in a row of the target. A connection was made, so none is the provider's."""
    row = await at.health()
    target = row["targets"]["m"]
    assert fault.blames == "target" or target["status"] == "cooling"
    assert row["consecutive_failures"] == 0
    return int(target["consecutive_failures"])


async def arm(faulty: Upstream) -> None:
    """From here on it misbehaves; connections of its good time are closed."""
    faulty.go.set()
    for connection in faulty.connections:
        connection.writer.close()
    async with asyncio.timeout(2):
        for connection in faulty.connections:
            await connection.closed.wait()
