"""``make simulate``: a day before a box that is asked for more than it can do. LOAD, HOURS, SEED; prints a table."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.simulation.day import Asked, a_day
from bench.simulation.plot import drawing
from bench.simulation.policies import Outcome, Policy, omniscient, under
from bench.simulation.servers import CLOUD_FIRST
from bench.simulation.virtual_time import run

WAITS = (1.0, 5.0, 15.0)
SLOTS = 4
"""Of the larger box, which is asked for as many times as much."""
HEAD = "policy", "local", "of the best", "p50 s", "p95 s", "loads begun/finished/aborted", "spills"


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def row(title: str, outcome: Outcome, best: float | None = None) -> str:
    first = outcome.first_bytes
    spills = ", ".join(f"{reason} {number}" for reason, number in outcome.spilled.most_common()) or "none"
    of_best = f"{outcome.share / best:6.1%}" if best else "      "
    return (
        f"| {title:34} | {outcome.share:6.1%} | {of_best} | {statistics.median(first):7.2f} | "
        f"{percentile(first, 0.95):8.2f} | {outcome.begun:3}/{outcome.finished}/{outcome.aborted} | {spills} |"
    )


def compared(day: list[Asked], larger: list[Asked]) -> Iterator[tuple[str, Outcome, float | None]]:
    """Each policy's title and outcome, and the share of who knows everything, where that is a measure for it."""
    for wait in WAITS:
        best = omniscient(day, wait)
        yield f"omniscient, max_wait {wait:g} s", best, None
        yield f"ours, max_wait {wait:g} s", run(under(Policy(max_wait=wait), day)), best.share
    for slots, asked in ((1, day), (SLOTS, larger)):
        best = omniscient(asked, WAITS[0], slots)
        if slots > 1:
            yield f"omniscient, {slots} slots", best, None
            yield f"ours, {slots} slots, said", run(under(Policy(slots=slots), asked)), best.share
        outcome = run(under(Policy(slots=slots, learns=True), asked))
        yield f"ours, of {slots} slots learned {outcome.learned}", outcome, best.share
    yield "3 at a time, then the cloud", run(under(Policy(queues=False, limit=3), day)), None
    yield "the box alone", run(under(Policy(queues=False, spills=False), day)), None


def main() -> int:
    load, hours, seed = (float(os.environ.get(name, default)) for name, default in _SETTINGS)
    day, larger = a_day(load, hours, int(seed)), a_day(load * SLOTS, hours, int(seed))
    began = time.monotonic()
    print(f"{len(day)} requests in {hours:g} h, {load:g} times what the box can do")
    print(f"The cloud's first byte comes after {CLOUD_FIRST} s.\n")
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    drawn = {"asked for": [asked.at / 3600 for asked in day]}
    for title, outcome, best in compared(day, larger):
        print(row(title, outcome, best), flush=True)
        if f"max_wait {WAITS[-1]:g} s" in title:
            drawn[title] = [at / 3600 for at in outcome.local]
    path = Path(tempfile.gettempdir()) / "manallm-simulation.svg"
    path.write_text(drawing(max(1, round(hours)), drawn))
    print(f"\n{path}; {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


_SETTINGS = (("LOAD", "1.5"), ("HOURS", "24"), ("SEED", "1"))

if __name__ == "__main__":
    sys.exit(main())
