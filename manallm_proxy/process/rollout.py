"""The rollout of one new configuration to all workers: each of them prepares it before any adopts it.

1. All workers adopt it when every one has prepared it.
2. All workers abandon it if one refuses it, or does not answer within `PREPARING`.
3. A worker that ends or drains meanwhile is left out; one that starts meanwhile prepares it too.

Nothing here waits, and the time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from manallm_proxy.contract.records import define
from manallm_proxy.process.worker_messages import Prepare, Prepared

PREPARING: Final = 15.0
"""Max seconds for every worker to prepare; less than the stall timeout, so that a stuck worker refuses first."""


@define(eq=False)
class Rollout:
    """The rollout of one configuration. ``changed``: providers that differ from the current configuration."""

    prepare: Prepare
    changed: Collection[str]
    waiting: set[int]
    """Numbers of workers that have not answered yet."""
    until: float
    mistakes: tuple[str, ...] = ()
    """Why it is refused; empty if it is not."""

    @property
    def over(self) -> bool:
        """Whether it is decided."""
        return bool(self.mistakes) or not self.waiting

    def started(self, number: int) -> None:
        self.waiting.add(number)

    def answered(self, number: int, message: Prepared) -> None:
        """Records a worker's answer. Ignores answers to an earlier configuration."""
        if message.number == self.prepare.number:
            self.mistakes = self.mistakes or message.mistakes
            self.waiting.discard(number)

    def left(self, number: int) -> None:
        self.waiting.discard(number)

    def due(self, now: float) -> None:
        if now >= self.until:
            late = ", ".join(f"worker {number}" for number in sorted(self.waiting))
            self.mistakes = (f"{late} did not open the new configuration within {PREPARING:g} s",)
