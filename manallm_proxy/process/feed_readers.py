"""Tracks which workers have readers of the live feed: events are sent between workers only while there are any."""

from __future__ import annotations

from collections.abc import Collection

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.process.worker_messages import Watch


@define(eq=False)
class FeedReaders:
    """The supervisor's record. Its methods return (worker, message) pairs to send."""

    watching: set[int] = field(factory=set)
    """Numbers of the workers that have readers."""

    def set(self, number: int, on: bool, workers: Collection[int]) -> list[tuple[int, Watch]]:
        """Worker `number` got its first reader, or lost its last. Messages for those of `workers` that it concerns."""
        if on == (number in self.watching):
            return []
        before = {each: self._for(each) for each in workers}
        (self.watching.add if on else self.watching.discard)(number)
        return [(each, Watch(self._for(each))) for each in workers if self._for(each) != before[each]]

    def started(self, number: int) -> list[tuple[int, Watch]]:
        """Worker `number` is new."""
        return [(number, Watch(True))] if self._for(number) else []

    def _for(self, number: int) -> bool:
        return bool(self.watching - {number})
