"""How one new configuration reaches all workers: every one prepares it before any adopts it.

1. It is adopted once every worker that is waited for has prepared it.
2. It is abandoned by all if one of them refuses it, or has not answered after `PREPARING`.
3. A worker that ends or drains is not waited for any more; one that starts meanwhile prepares it too.

Nothing here waits, and the time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from attrs import define

from manallm_proxy.process.worker_messages import Prepare, Prepared

PREPARING: Final = 15.0
"""Seconds within which every worker must have prepared a new configuration: less than a worker may be silent."""


@define(eq=False)
class Rollout:
    """One configuration. ``changed`` are the providers that are not the same in it as in the one that serves."""

    prepare: Prepare
    changed: Collection[str]
    waiting: set[int]
    """Numbers of the workers that have not answered yet."""
    until: float
    mistakes: tuple[str, ...] = ()
    """Not empty: it is refused."""

    @property
    def over(self) -> bool:
        """Whether it can be adopted or must be abandoned."""
        return bool(self.mistakes) or not self.waiting

    def started(self, number: int) -> None:
        self.waiting.add(number)

    def answered(self, number: int, message: Prepared) -> None:
        """An answer to an earlier configuration does not count."""
        if message.number == self.prepare.number:
            self.mistakes = self.mistakes or message.mistakes
            self.waiting.discard(number)

    def left(self, number: int) -> None:
        self.waiting.discard(number)

    def due(self, now: float) -> None:
        if now >= self.until:
            late = ", ".join(f"worker {number}" for number in sorted(self.waiting))
            self.mistakes = (f"{late} did not open the new configuration within {PREPARING:g} s",)
