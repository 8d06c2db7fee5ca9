"""Merges the metrics and the health of all workers, from each one's part.

`parts`: the answers of the workers that answered in time, by number.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """When the beat was sent that it has not answered; None if it has answered."""
    joined: bool = False
    """Whether it has sent anything yet, so that it can be asked."""
    serving: bool = False
    leaving: bool = False
    ended_at: float | None = None
    """When it was last signalled to end because it was silent."""
    counted: Families = field(factory=dict)
    """The metrics that it last reported."""

    @property
    def state(self) -> str:
        """One word, for people."""
        return "leaving" if self.leaving else "serving" if self.serving else "starting"


def all_metrics(
    own: str, past: Families, workers: Mapping[int, Worker], numbers: range, parts: Mapping[int, str]
) -> str:
    """The supervisor's `own`, those of the workers, and the `past` of workers that are gone."""
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
