"""Many workers' numbers and reports become one. Pure: texts and reports in, one of them out.

Metrics are merged as text, so that nobody's counters need know of it. Counters and histograms are added up. What
a gauge of all workers is depends on what it tells, see `GAUGES`; one that is not listed is the highest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import define, field

Gauge = Callable[[float, float], float]


def _first(one: float, _other: float) -> float:
    return one


def _sum(one: float, other: float) -> float:
    return one + other


GAUGES: Final[Mapping[str, Gauge]] = {
    "mana_llm_requests_in_flight": _sum,
    "mana_llm_key_requests_in_flight": _sum,
    "mana_llm_config_last_reload_timestamp_seconds": _first,  # the supervisor's: it reads the configuration
    "process_resident_memory_bytes": _sum,  # pages that processes share are counted for each
    "process_virtual_memory_bytes": _sum,
    "process_start_time_seconds": _first,
    "process_max_fds": min,  # with the next: how near the nearest of them is to its limit
    "process_open_fds": max,
}
ADDED: Final = frozenset({"counter", "histogram"})


@define
class Family:
    """One metric: its lines of comment, and its samples by name and labels as they are written."""

    kind: str = "untyped"
    comments: list[str] = field(factory=list)
    samples: dict[str, float] = field(factory=dict)


Families = dict[str, Family]


def parse(text: str) -> Families:
    """Prometheus' text format, as we write it: ``# HELP`` and ``# TYPE``, then the samples, without times."""
    families: Families = {}
    family = Family()
    for line in text.split("\n"):  # not splitlines, which knows more line breaks than Prometheus
        if line.startswith("# "):
            _, word, name, rest = (*line.split(" ", 3), "", "")[:4]
            family = families.setdefault(name, Family())
            family.comments.append(line)
            family.kind = rest if word == "TYPE" else family.kind
        elif line:
            sample, _, value = line.rpartition(" ")
            family.samples[sample] = float(value)
    return families


def render(families: Families) -> str:
    """The text of `families`. What is whole is written so."""
    lines: list[str] = []
    for family in families.values():
        lines += family.comments
        lines += [f"{sample} {_written(value)}" for sample, value in family.samples.items()]
    return "\n".join(lines) + "\n"


def _written(value: float) -> str:
    return str(int(value)) if value.is_integer() else "+Inf" if value == math.inf else repr(value)


def add(total: Families, part: Families, *, counted_only: bool = False) -> None:
    """Adds `part` to `total`. ``counted_only``: what a worker that is gone has left behind, its gauges not."""
    for name, family in part.items():
        merged = total.setdefault(name, Family(family.kind, family.comments))
        if family.kind in ADDED:
            join: Gauge = _sum
        elif counted_only:
            continue
        else:
            join = GAUGES.get(name, max)
        for sample, value in family.samples.items():
            known = merged.samples.get(sample)
            merged.samples[sample] = value if known is None else join(known, value)


def merged_health(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One body of ``GET /v1/health`` from each worker's own. Workers that do not agree make a provider *degraded*."""
    each = list(reports)
    names = {name: None for report in each for name in report["providers"]}
    providers = {name: _merged_row([r["providers"][name] for r in each if name in r["providers"]]) for name in names}
    words = {row["status"] for row in providers.values()} - {"unconfigured"}
    if all(report["status"] == "unhealthy" for report in each):
        status = "unhealthy"
    else:
        status = "healthy" if words == {"healthy"} else "degraded"
    return {"status": status, "providers": providers}


def _merged_row(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    latest = max(rows, key=lambda row: row["last_check"] or "")
    merged: dict[str, Any] = {**latest, "status": _word(row["status"] for row in rows)}
    merged["consecutive_failures"] = max(row["consecutive_failures"] for row in rows)
    for until in ("unhealthy_until", "cooling_until"):  # RFC 3339 in UTC: the greatest text is the latest time
        if any(until in row for row in rows):
            merged[until] = max((row.get(until) or "" for row in rows), default="") or None
    if "in_flight" in latest:
        merged["in_flight"] = sum(row["in_flight"] for row in rows)
    names = {name: None for row in rows for name in row.get("targets", ())}
    if names:
        merged["targets"] = {
            name: _merged_row([row.get("targets", {}).get(name, _WELL) for row in rows]) for name in names
        }
    return merged


_WELL: Final[Mapping[str, Any]] = {
    "status": "healthy",
    "consecutive_failures": 0,
    "last_error": None,
    "last_check": None,
    "unhealthy_until": None,
}
"""A target that a worker has nothing to say of."""


def _word(words: Iterable[str]) -> str:
    different = set(words)
    return different.pop() if len(different) == 1 else "degraded"
