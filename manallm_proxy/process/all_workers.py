"""Merges the metrics and the health reports of all workers.

`parts`: the replies of the workers that answered in time, by number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.observe.metrics_merge import Families, Family, add, merged_health, parse, render


@define(eq=False)
class Worker:
    """One running worker."""

    number: int
    pid: int
    began: float
    silent_since: float | None
    """When the unanswered ping was sent; None if the last one was answered."""
    joined: bool = False
    """Whether it has sent anything yet, and so can be asked."""
    serving: bool = False
    outdated: Collection[str] = ()
    """Providers that the configuration which it is about to adopt has changed."""
    leaving: bool = False
    ended_at: float | None = None
    """When it was last signalled to end because it had stalled."""
    counted: Families = field(factory=dict)
    """Its last reported metrics."""

    @property
    def state(self) -> str:
        """Its state in one word, for people."""
        return "leaving" if self.leaving else "serving" if self.serving else "starting"


def all_metrics(
    own: str, past: Families, workers: Mapping[int, Worker], numbers: range, parts: Mapping[int, str]
) -> str:
    """The metrics of the supervisor (`own`), of the workers, and of workers that are gone (`past`)."""
    total = parse(own)
    for number, worker in workers.items():
        if number in parts:
            worker.counted = parse(parts[number])
        add(total, worker.counted, counted_only=number not in parts)
    add(total, past, counted_only=True)
    up = {f'mana_llm_worker_up{{worker="{number}"}}': float(number in parts) for number in numbers}
    head = ["# HELP mana_llm_worker_up Whether the worker answers", "# TYPE mana_llm_worker_up gauge"]
    total["mana_llm_worker_up"] = Family("gauge", head, up)
    total["mana_llm_worker_restarts_total"].samples.setdefault("mana_llm_worker_restarts_total", 0.0)
    return render(total)


def all_health(workers: Mapping[int, Worker], numbers: range, parts: Mapping[int, str]) -> str:
    """The body of ``/v1/health``."""
    report = merged_health(msgspec.json.decode(part) for part in parts.values())
    report["workers"] = {str(number): _state(workers.get(number), number in parts) for number in numbers}
    return msgspec.json.encode(report).decode()


def _state(worker: Worker | None, answered: bool) -> dict[str, Any]:
    if worker is None:
        return {"status": "down", "pid": None}
    return {"status": worker.state if answered or not worker.joined else "silent", "pid": worker.pid}
