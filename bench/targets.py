"""What was promised: each line's value, the least that is wanted, and the aim."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from attrs import frozen

from bench.measure import Results


@frozen
class Target:
    title: str
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


TARGETS = [
    Target("CPU per request: LiteLLM's over ours", 60, 150, "x", _ratio("many", "litellm", "ours"), more=True),
    Target("CPU per request: Portkey's over ours", 10, 25, "x", _ratio("many", "portkey", "ours"), more=True),
    Target("CPU per request: ours over sglang-router's", 2.5, 1, "x", _ratio("many", "ours", "sglang-router")),
    Target("CPU per request: ours over nginx's", 15, 6, "x", _ratio("many", "ours", "nginx")),
    Target("CPU per paced chunk: ours over nginx's", 2.6, 1.5, "x", _ratio("paced", "ours", "nginx")),
    Target("CPU per request with a 200 KB body: ours over nginx's", 15, 5, "x", _ratio("body", "ours", "nginx")),
    Target("added time to first byte, p50, one client", 0.3, 0.12, "ms", _added_first),
    Target("memory, idle", 55, 45, "MiB", _idle),
    Target("memory, 1,000 open streams", 120, 80, "MiB", lambda results: results.of("held", "ours", "resident_mib")),
    Target("exec to first answer", 0.8, 0.35, "s", lambda results: results.starts.get("ours", [])),
]


def verdicts(results: Results) -> list[Verdict]:
    found = []
    for target in TARGETS:
        values = target.value(results)
        value = statistics.median(values) if values else None
        found.append(
            Verdict(
                title=target.title,
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
