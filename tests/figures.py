"""Metrics and health reports as tests make and read them, the metrics by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.contract.events import RequestEnded
from manallm_proxy.observe.metrics import Metrics

ENDED = RequestEnded(
    request_id="1",
    endpoint="chat/completions",
    requested="mana/test",
    alias="mana/test",
    provider="gpu",
    model="m",
    streaming=True,
    status=200,
    outcome="ok",
    attempts=1,
    bytes_sent=10,
    duration=2.0,
    to_first_byte=0.5,
    prompt_tokens=7,
    completion_tokens=30,
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

WELL = {"status": "healthy", "consecutive_failures": 0, "last_error": None, "last_check": None, "unhealthy_until": None}


def samples(text: str) -> Samples:
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert len({(s.name, frozenset(s.labels.items())) for s in found}) == len(found), "a series appears twice"
    return {(s.name, frozenset(s.labels.items())): s.value for s in found}


def value(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


def worker(requests: int, *, usable: bool = True, in_flight: int = 0, model: str = "m") -> str:
    """The text of a worker that has served so many."""
    metrics = Metrics("1", lambda: [("gpu", usable, in_flight)], lambda: [("alice", in_flight)])
    for _ in range(requests):
        metrics(evolve(ENDED, model=model))
    return metrics.render()[0].decode()


def report(overall: str = "healthy", **row: Any) -> dict[str, Any]:
    return {"status": overall, "providers": {"gpu": {**WELL, "in_flight": 1, **row}}}
