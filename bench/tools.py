"""Our generator and upstream: built from C, started, driven."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from bench.machine import BenchError, Child, Layout
from bench.scenarios import BODY, Scenario

HERE = Path(__file__).parent
BUILT = HERE / ".build"


@frozen
class Run:
    """One scenario through one proxy once. Times are microseconds; ``unit`` is the scenario's."""

    cpu: float
    """User and system time per unit, of all processes of the proxy."""
    per_second: float
    p50: float
    p99: float
    """From request to last byte."""
    first_p50: float
    first_p99: float
    """From request to the first content."""
    age_p50: float
    age_p99: float
    """Of a chunk, when it arrives."""
    units: int
    errors: int
    reconnects: int
    open: int
    """Streams that were open at the end."""
    resident_mib: float
    tools: float
    """Busy share of the tools' core: near 1, units per second are a limit of the tools, or of a shared core."""
    why: str = ""
    """What the first error was."""
    idle_mib: float = 0
    """Resident memory before, as ``resident_mib`` after."""
    peak_mib: float = 0
    """The most since then."""
    stop_p50: float = 0
    """The greatest age of a chunk in a slot, half of the slots."""


def build() -> None:
    """``cc -O2``, where the source is newer."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    BUILT.mkdir(exist_ok=True)
    for name in ("load", "upstream"):
        source, program = HERE / f"{name}.c", BUILT / name
        written = max(file.stat().st_mtime for file in (source, HERE / "dialects.h"))
        if program.exists() and program.stat().st_mtime > written:
            continue
        if compiler is None:
            raise BenchError("no C compiler here (Debian: apt-get install gcc libc6-dev)")
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-o", str(program), str(source)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"{source.name} does not compile here:\n{done.stderr}")


def start_upstream(layout: Layout, folder: Path) -> tuple[Child, int]:
    """It, and its port."""
    child = Child.start([str(BUILT / "upstream")], layout.tools, folder / "upstream.log")
    for _ in range(500):
        if (said := child.log.read_text()).endswith("\n"):
            return child, int(said)
        time.sleep(0.01)
    child.end()
    raise BenchError(f"our upstream does not start: {child.tail()}")


@frozen
class Site:
    """What a generator is pointed at."""

    port: int
    request: Path
    layout: Layout
    upstream: Child
    proxy: Child | None


def start(scenario: Scenario, site: Site) -> Child:
    """The generator at work; CPU and memory are those of the proxy while it counts."""
    command = [str(BUILT / "load"), "-p", str(site.port), "-f", str(site.request), "-U", str(site.upstream.process.pid)]
    if site.proxy is not None:
        command += ["-P", ",".join(map(str, site.proxy.pids()))]
    log = site.request.with_suffix(".out")
    log.unlink(missing_ok=True)
    return Child.start([*command, *scenario.arguments()], site.layout.tools, log)


def finish(generator: Child, scenario: Scenario) -> Run:
    """What it counted, when it has ended."""
    try:
        code = generator.process.wait(scenario.warm + 4 * scenario.seconds + 30)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        generator.end()
    if code:
        raise BenchError(generator.tail(2) or "the generator did not end")
    run = read(json.loads(generator.log.read_text()), scenario)
    if not run.units or run.errors * 100 > run.units:
        raise BenchError(f"{run.errors} errors, {run.units} {scenario.unit}s; the first: {run.why}")
    return run


def drive(scenario: Scenario, site: Site, pushed: bytes) -> Run:
    """Runs the generator once. `pushed`: the request of a second one, that asks beside it; empty: there is none."""
    if not pushed:
        return finish(start(scenario, site), scenario)
    beside = evolve(site, request=site.request.with_suffix(".push"))
    beside.request.write_bytes(pushed)
    pusher = start(BODY, beside)
    try:
        return finish(start(scenario, site), scenario)
    finally:
        pusher.end()


def read(told: dict[str, Any], scenario: Scenario) -> Run:
    """What the generator counted, per unit."""
    latency, first, age = (_percentiles(told, name) for name in ("latency_us", "first_us", "age_us"))
    units = int(told["pieces"] if scenario.stream else told["requests"])
    return Run(
        cpu=round(told["cpu_us"] / max(units, 1), 3),
        per_second=round(units / told["seconds"], 1),
        p50=latency[0],
        p99=latency[1],
        first_p50=first[0],
        first_p99=first[1],
        age_p50=age[0],
        age_p99=age[1],
        units=units,
        errors=int(told["errors"]),
        reconnects=int(told["reconnects"]),
        open=int(told["open"]),
        resident_mib=round(told["resident_kib"] / 1024, 1),
        idle_mib=round(told["idle_kib"] / 1024, 1),
        peak_mib=round(told["peak_kib"] / 1024, 1),
        stop_p50=told["stop_us"]["p50"],
        tools=round((told["load_us"] + told["upstream_us"]) / told["seconds"] / 1e6, 3),
        why=str(told["why"]),
    )


def _percentiles(told: dict[str, Any], name: str) -> tuple[float, float]:
    return told[name]["p50"], told[name]["p99"]
