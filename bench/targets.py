"""What was promised: each line's value, the least that is wanted, and the aim."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from attrs import frozen

from bench.measure import Results
from bench.peers import OURS
from bench.scenarios import FLIGHT


@frozen
class Target:
    title: str
    was: float | None
    """When the target was set (2026-11-28); None: nobody had measured it."""
    least: float
    aim: float
    unit: str
    value: Callable[[Results], list[float]]
    """One value for each round."""
    more: bool = False
    """More is better."""

    def reached(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.more else value <= wanted


@frozen
class Verdict:
    title: str
    was: float | None
    value: float | None
    """None: not measured in this run."""
    spread: tuple[float, float]
    least: float
    aim: float
    unit: str
    least_reached: bool
    aim_reached: bool
    more: bool


def _ratio(scenario: str, above: str, below: str) -> Callable[[Results], list[float]]:
    return lambda results: results.ratios(scenario, above, below)


def _added_first(results: Results) -> list[float]:
    through, straight = results.of("first", "ours", "first_p50"), results.of("first", "direct", "first_p50")
    return [(a - b) / 1000 for a, b in zip(through, straight, strict=False)]


def _idle(results: Results) -> list[float]:
    return [results.idle_mib["ours"]] if "ours" in results.idle_mib else []


def _stop(results: Results) -> list[float]:
    """What a stop of the loop adds to a chunk's age, in ms."""
    through, straight = results.of("stop", "ours", "stop_p50"), results.of("stop", "direct", "stop_p50")
    return [(a - b) / 1000 for a, b in zip(through, straight, strict=False)]


def _flight(results: Results) -> list[float]:
    """The most memory with all of them in flight, less the idle process, over the bodies' own size."""
    size = len(FLIGHT.request(OURS, 0)) * FLIGHT.connections / 2**20
    peaks, idle = results.of("flight", "ours", "peak_mib"), results.of("flight", "ours", "idle_mib")
    return [(peak - before) / size for peak, before in zip(peaks, idle, strict=True)]


def _across(above: str, below: str) -> Callable[[Results], list[float]]:
    return lambda results: results.across(above, below, "ours")


TARGETS = [
    Target("200 KB prompt: CPU over nginx's", 8.0, 3.0, 2.0, "x", _ratio("body", "ours", "nginx")),
    Target("2 MB body: CPU over that of the build before", 1, 0.35, 0.2, "x", _ratio("picture", "ours", "before")),
    Target("longest stop of the loop by one 2 MB body", None, 2, 1, "ms", _stop),
    Target("64 bodies of 2 MB in flight: memory over their sum", 2.1, 1.4, 1.15, "x", _flight),
    Target(
        "request, 64 at once: CPU over sglang-router's", 1.38, 1.0, 0.7, "x", _ratio("many", "ours", "sglang-router")
    ),
    Target("request, one at a time: CPU over nginx's", 7.7, 5, 4, "x", _ratio("one", "ours", "nginx")),
    Target("request, a connection each: CPU over nginx's", 8.1, 5.5, 4, "x", _ratio("new", "ours", "nginx")),
    Target("request, 64 at once: CPU over nginx's", None, 15, 6, "x", _ratio("many", "ours", "nginx")),
    Target("paced chunk: CPU over nginx's", 2.16, 1.7, 1.4, "x", _ratio("paced", "ours", "nginx")),
    Target("fast chunk: CPU over nginx's", 4.4, 2.5, 1.5, "x", _ratio("fast", "ours", "nginx")),
    Target("paced chunk from Ollama over a relayed one", 1.75, 1.3, 1.1, "x", _across("paced from-ollama", "paced")),
    Target("memory, idle", 46, 45, 40, "MiB", _idle),
    Target(
        "memory, 1,000 open streams", None, 120, 80, "MiB", lambda results: results.of("held", "ours", "resident_mib")
    ),
    Target("added time to first byte, p50, one client", None, 0.3, 0.12, "ms", _added_first),
    Target("exec to first answer", None, 0.8, 0.35, "s", lambda results: results.starts.get("ours", [])),
    Target("request: LiteLLM's CPU over ours", None, 60, 150, "x", _ratio("many", "litellm", "ours"), more=True),
    Target("request: Portkey's CPU over ours", None, 10, 25, "x", _ratio("many", "portkey", "ours"), more=True),
]


def verdicts(results: Results) -> list[Verdict]:
    found = []
    for target in TARGETS:
        values = target.value(results)
        value = statistics.median(values) if values else None
        found.append(
            Verdict(
                title=target.title,
                was=target.was,
                value=value,
                spread=(min(values), max(values)) if values else (0, 0),
                least=target.least,
                aim=target.aim,
                unit=target.unit,
                least_reached=value is not None and target.reached(value, target.least),
                aim_reached=value is not None and target.reached(value, target.aim),
                more=target.more,
            )
        )
    return found
