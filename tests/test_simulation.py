"""The queue over a simulated day, in virtual time: nobody waits too long, little leaves the box."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.simulation.day import a_day
from bench.simulation.plot import drawing
from bench.simulation.policies import Policy, omniscient, under
from bench.simulation.servers import CLOUD_FIRST
from bench.simulation.virtual_time import run


async def _hour() -> float:
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(3600)
    return asyncio.get_running_loop().time() - began


def test_an_hour_passes_at_once() -> None:
    began = time.monotonic()
    assert run(_hour()) == pytest.approx(3600)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("wait", [1.0, 15.0])
def test_at_more_than_the_box_can_do(wait: float) -> None:
    """Nobody waits longer than they may; nearly all stays local that could; no load is aborted."""
    day = a_day(1.5, 2, 7)
    best, ours = omniscient(day, wait), run(under(Policy(max_wait=wait), day))
    assert len(ours.first_bytes) == len(day)
    spilled = sorted(ours.first_bytes)[-len(day) // 20]
    assert spilled <= wait + CLOUD_FIRST + 1e-6
    assert ours.share >= 0.93 * best.share  # of a short day; `make simulate` has a long one
    assert (ours.aborted, ours.begun) == (0, ours.finished)
    assert set(ours.spilled) == {"saturated"}


def test_with_time_to_spare_all_stays_local() -> None:
    """What the box can do it does, and the first request of the day waits for its load."""
    day = a_day(0.05, 2, 7)
    ours = run(under(Policy(max_wait=300.0), day))
    assert ours.share == 1
    assert ours.begun == ours.finished > 0


def test_a_day_is_drawn() -> None:
    """Hour by hour."""
    assert drawing(2, {"asked for": [0.1, 0.2, 1.9, 2.5]}).count("<polyline") == 1


@pytest.mark.parametrize("slots", [1, 3])
def test_nobody_has_to_say_how_many_slots_there_are(slots: int) -> None:
    """They are learned, and hardly anything is lost meanwhile: in wait, or to the cloud."""
    day = a_day(1.5 * slots, 1, 7)
    best, ours = omniscient(day, 1.0, slots), run(under(Policy(learns=True, slots=slots), day))
    assert ours.learned == slots
    assert ours.most <= 1
    assert sorted(ours.first_bytes)[-len(day) // 20] <= 1.0 + CLOUD_FIRST + 1e-6
    assert ours.share >= 0.93 * best.share
    assert (ours.aborted, ours.begun) == (0, ours.finished)
