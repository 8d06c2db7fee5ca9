"""Hedged requests: a second target is asked if the first has not begun to answer in time. The first commit wins.

The loser is cancelled and not blamed. An attempt that fails while the other is under way is an ordinary failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.health import Permit

T = TypeVar("T")


@define(eq=False)
class Racer(Generic[T]):
    """One attempt under way. ``started``: monotonic seconds."""

    entry: Entry
    permit: Permit
    started: float
    task: asyncio.Task[T]

    def leave(self, aclose: Callable[[T], Awaitable[None]] | None) -> None:
        """Cancels it, and closes its result if it succeeded in this same loop iteration."""
        self.permit.released()
        self.task.cancel()
        self.task.add_done_callback(partial(close_unwanted, aclose))


async def next_end(racers: list[Racer[T]], seconds: float | None) -> Racer[T] | None:
    """The first of `racers` that has ended, whatever its outcome; None after `seconds`."""
    await asyncio.wait([racer.task for racer in racers], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return next((racer for racer in racers if racer.task.done()), None)


def close_unwanted(aclose: Callable[[T], Awaitable[None]] | None, task: asyncio.Task[T]) -> None:
    """Closes the result of `task`, for which nobody waits any more."""
    if task.cancelled() or task.exception() is not None or aclose is None:
        return
    closing = asyncio.ensure_future(aclose(task.result()))
    _CLOSING.add(closing)
    closing.add_done_callback(_CLOSING.discard)


_CLOSING: set[asyncio.Future[None]] = set()
"""asyncio holds tasks weakly; these are held until they have ended."""
