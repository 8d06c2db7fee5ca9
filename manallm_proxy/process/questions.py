"""A question about all workers, while they answer it."""

from __future__ import annotations

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.process.all_workers import Worker

Asker = tuple[Worker, int]
"""A worker, and the id of its question."""


@define(eq=False)
class Question:
    """``until``: when it is answered with the parts that have come. ``waiting``: workers that have not answered."""

    id: int
    askers: list[Asker]
    until: float
    waiting: set[int]
    parts: dict[int, str] = field(factory=dict)
