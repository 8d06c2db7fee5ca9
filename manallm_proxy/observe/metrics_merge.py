"""Merges the metrics and the health reports of all workers. Pure functions.

Metrics are merged as text, so that counters need not know about workers. Counters and histograms are summed. `GAUGES`
defines how each gauge is merged; for those not listed, the maximum is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define

Merge = Callable[[float, float], float]


def _first(one: float, _other: float) -> float:
    return one


def _sum(one: float, other: float) -> float:
    return one + other


GAUGES: Final[Mapping[str, Merge]] = {
    "mana_llm_requests_in_flight": _sum,
    "mana_llm_key_requests_in_flight": _sum,
    "mana_llm_queue_length": _sum,
    "mana_llm_config_last_reload_timestamp_seconds": _first,  # the supervisor's, which loads the configuration
    "process_resident_memory_bytes": _sum,  # an upper bound: shared pages are counted once per process
    "process_virtual_memory_bytes": _sum,
    "process_start_time_seconds": _first,
    "process_max_fds": min,  # with `process_open_fds`: the worker closest to its limit
    "process_open_fds": max,
}
SUMMED: Final = frozenset({"counter", "histogram"})


@define
class Family:
    """One metric: its comment lines, and its samples. A sample's key is its name and labels as they are in the text."""

    kind: str = "untyped"
    comments: list[str] = field(factory=list)
    samples: dict[str, float] = field(factory=dict)


Families = dict[str, Family]


def parse(text: str) -> Families:
    """Reads Prometheus' text format as we write it: ``# HELP``, ``# TYPE``, then samples without timestamps."""
    families: Families = {}
    family = Family()
    for line in text.split("\n"):  # splitlines would also split at U+2028 and others
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
    """Writes `families` as text, integral numbers without a decimal point."""
    lines: list[str] = []
    for family in families.values():
        lines += family.comments
        lines += [f"{sample} {_number_text(value)}" for sample, value in family.samples.items()]
    return "\n".join(lines) + "\n"


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else "+Inf" if value == math.inf else repr(value)


def add(total: Families, part: Families, *, counted_only: bool = False) -> None:
    """Merges `part` into `total`. ``counted_only``: skips gauges, as for a worker that has exited."""
    for name, family in part.items():
        merged = total.setdefault(name, Family(family.kind, family.comments))
        if family.kind in SUMMED:
            merge: Merge = _sum
        elif counted_only:
            continue
        else:
            merge = GAUGES.get(name, max)
        for sample, value in family.samples.items():
            known = merged.samples.get(sample)
            merged.samples[sample] = value if known is None else merge(known, value)


def merged_health(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of ``GET /v1/health`` from those of all workers. If they disagree, a provider is *degraded*."""
    bodies = list(reports)
    names = {name: None for body in bodies for name in body["providers"]}
    providers = {
        name: _merged_row([body["providers"][name] for body in bodies if name in body["providers"]]) for name in names
    }
    statuses = {row["status"] for row in providers.values()} - {"unconfigured"}
    if all(body["status"] == "unhealthy" for body in bodies):
        status = "unhealthy"
    else:
        status = "healthy" if statuses == {"healthy"} else "degraded"
    return {"status": status, "providers": providers}


def _merged_row(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    latest = max(rows, key=lambda row: row["last_check"] or "")
    merged: dict[str, Any] = {**latest, "status": _status(row["status"] for row in rows)}
    merged["consecutive_failures"] = max(row["consecutive_failures"] for row in rows)
    for until in ("unhealthy_until", "cooling_until"):  # RFC 3339 in UTC: the greatest text is the latest time
        if any(until in row for row in rows):
            merged[until] = max((row.get(until) or "" for row in rows), default="") or None
    for name, merge in _ROW.items():
        if any(name in row for row in rows):
            merged[name] = merge(row[name] for row in rows if name in row)
    names = {name: None for row in rows for name in row.get("targets", ())}
    if names:
        merged["targets"] = {
            name: _merged_row([row.get("targets", {}).get(name, _HEALTHY) for row in rows]) for name in names
        }
    return merged


_ROW: Final[Mapping[str, Callable[[Iterable[Any]], Any]]] = {
    "in_flight": sum,
    "queue": sum,
    "expected_wait": max,
    "loading": any,
}
_HEALTHY: Final[Mapping[str, Any]] = {
    "status": "healthy",
    "consecutive_failures": 0,
    "last_error": None,
    "last_check": None,
    "unhealthy_until": None,
}
"""The row of a target that a worker does not list."""


def _status(statuses: Iterable[str]) -> str:
    different = set(statuses)
    return different.pop() if len(different) == 1 else "degraded"
