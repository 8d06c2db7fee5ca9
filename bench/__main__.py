"""``make bench``: measures the proxy beside its peers. QUICK=1: two minutes, nginx alone; KEEP=1: keeps the results.

ONLY: names of peers; WORK: names and families of scenarios; BEFORE: a commit that is measured, too; ROUNDS, CORES.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from bench import machine, report, scenarios, tools
from bench.measure import Bench, Results, prepare, say
from bench.peers import everyone

DESCRIPTORS = 4096
"""Descriptors that 1,000 streams through one process need, and some."""


def chosen(name: str) -> str:
    """A word of the environment; "0" is none."""
    word = os.environ.get(name, "")
    return "" if word == "0" else word


def interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(results: Results, layout: machine.Layout, *, quick: bool) -> None:
    """Everything but installing. Whatever happens, what was started ends."""
    rounds = int(chosen("ROUNDS") or (2 if quick else 3))
    with tempfile.TemporaryDirectory(prefix="manallm-bench-") as name:
        upstream, port = tools.start_upstream(layout, Path(name))
        bench = Bench(Path(name), layout, results, upstream, port)
        try:
            bench.begin([peer for peer in everyone(port) if peer.name in results.versions], 3 if quick else 5)
            words = chosen("WORK").split()
            work = scenarios.QUICK if quick else scenarios.FULL
            bench.rounds([each for each in work if not words or {each.name, each.family} & {*words}], rounds)
        finally:
            bench.end()


def main() -> int:
    quick = bool(chosen("QUICK"))
    names = chosen("ONLY").split() or (
        ["ours", "before", "nginx"] if quick else [peer.name for peer in everyone(0) if not peer.asked]
    )
    layout = machine.Layout.choose(chosen("CORES"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard) if hard > 0 else DESCRIPTORS, hard))
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background a shell may have had SIGINT ignored
        signal.signal(number, interrupted)
    began = time.monotonic()
    results = Results({**machine.described(), "cores": str(layout)})
    try:
        if (carried := machine.carried()) is None:
            tools.build()
            prepare([peer for peer in everyone(0) if peer.name in names], results)
            machine.alone(json.dumps([results.versions, results.missing]))
            results.facts["network"] = "the machine's, by loopback addresses only (no unshare here)"
            for peer in everyone(0):
                if peer.everywhere and peer.name in results.versions:
                    del results.versions[peer.name]
                    results.missing[peer.name] = "listens on all addresses, so not without a network namespace"
        else:
            results.versions, results.missing = json.loads(carried)
            results.facts["network"] = "a namespace with loopback and nothing else"
        measure(results, layout, quick=quick)
    except machine.BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted; what it started has ended")
        return 130
    say(f"{time.monotonic() - began:.0f} s")
    print(report.markdown(results))
    print(report.condensed(results))
    if chosen("KEEP"):
        report.keep(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
