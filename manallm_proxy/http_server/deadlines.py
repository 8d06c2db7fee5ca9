"""Many waits of the same length under one timer of the event loop.

A timer for each would be four objects and a place in the loop's heap, made and let go with every connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import field

from manallm_proxy.contract.records import define

T = TypeVar("T")


@define(eq=False)
class Deadlines(Generic[T]):
    """Calls ``overdue`` with each that has waited for ``seconds()``.

    If ``seconds`` becomes less, whoever begins after that may wait as long as those who wait already.
    """

    seconds: Callable[[], float]
    overdue: Callable[[T], None]
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop, repr=False)
    _due: dict[T, float] = field(factory=dict, repr=False)
    """Loop times; the first is the next."""
    _timer: asyncio.TimerHandle | None = None

    def begin(self, waiting: T) -> None:
        """From now on; if it waits already, anew."""
        self._due.pop(waiting, None)
        self._due[waiting] = due = self._loop.time() + self.seconds()
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def end(self, waiting: T) -> None:
        """It waits no more. Harmless if it did not."""
        self._due.pop(waiting, None)

    def _look(self) -> None:
        now = self._loop.time()
        over: list[T] = []
        for waiting, due in self._due.items():  # which are in order: of ten thousand few are looked at
            if due > now:
                break
            over.append(waiting)
        for each in over:
            del self._due[each]
            self._loop.call_soon(self.overdue, each)  # so that one that fails leaves the others theirs
        self._timer = self._loop.call_at(next(iter(self._due.values())), self._look) if self._due else None
