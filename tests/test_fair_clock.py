"""The clock of the tests' event loops."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import fair_clock


def test_waiting_for_a_processor_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never goes back, looks rarely, and goes on where the kernel says nothing."""
    told, wall = tmp_path / "schedstat", SimpleNamespace(now=0.0)
    monkeypatch.setattr(fair_clock, "TOLD", str(told))
    monkeypatch.setattr(fair_clock, "time", SimpleNamespace(monotonic=lambda: wall.now))
    clock = fair_clock.FairTime()
    shown = []
    for now, waited in (
        (100.0, 0),
        (101.0, 400_000_000),
        (101.001, 900_000_000),
        (102.0, 3_400_000_000),
        (105.0, None),
    ):
        wall.now = now
        if waited is None:
            told.unlink()
        else:
            told.write_text(f"123 {waited} 4\n")
        shown.append(round(clock(), 6))
    assert shown == [100.0, 100.6, 100.601, 100.601001, 101.6]


async def test_loops_go_by_it() -> None:
    """Each by its own; what runs and what sleeps takes its time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop.time, fair_clock.FairTime)
    wall = time.monotonic()
    began = loop.time()
    await asyncio.sleep(0.03)
    assert 0.0299 <= loop.time() - began <= time.monotonic() - wall


def test_what_took_a_moment_took_some_time() -> None:
    """Also while the clock waits for the time that it has shown already: a duration of 0 is one that is not known."""
    clock = fair_clock.FairTime()
    clock()
    clock.waited += 60.0
    clock.looked = float("inf")  # it learns no more
    told = [clock() for _ in range(100)]
    assert all(later > earlier for earlier, later in pairwise(told))
    assert told[-1] - told[0] < 0.001
