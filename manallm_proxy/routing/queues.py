"""The queue in front of each local server: a request waits for its turn, or moves on if that would take too long.

`line` decides which is next, `pace` estimates how long each takes; this file waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attrs import define, field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider_errors import WaitedTooLong
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import Clock
from manallm_proxy.routing.line import Line, Turn


@define(eq=False)
class Served:
    """A request whose turn has come. `end` gives its place to the next."""

    queue: Queue
    turn: Turn
    size: int
    learns_bytes: bool
    patience: float | None = None
    """Seconds after which it has waited too long with the server itself; None: it does not wait there."""
    first_at: float | None = None

    def began(self) -> None:
        """A stream's first content has arrived."""
        self.first_at = self.queue.clock()
        self.queue.line.began(self.turn, self.first_at)

    def end(self, usage: Usage | None) -> None:
        """The answer has ended; `usage` is None if it was not complete. Harmless when repeated."""
        now, turn = self.queue.clock(), self.turn
        if turn.ended or turn.began_at is None:
            return
        if usage is not None and not turn.is_trial:  # that may have waited with the server
            first = self.first_at - turn.began_at if self.first_at is not None else None
            size = self.size if self.learns_bytes else None
            pace = self.queue.line.of(turn.model).pace
            pace.learn(size, usage.prompt, usage.completion, first, now - turn.began_at)
        tokens = usage.completion if usage is not None else 0
        self.queue.line.leave(turn, now, answered=usage is not None, tokens=tokens)


@define(eq=False)
class Queue:
    """The queue of one server. ``health`` shows when the server came back from an outage."""

    clock: Clock
    health: Health
    line: Line
    on_back: Callable[[], None] = lambda: None
    """Called when the server has come back: what it has loaded, and how many slots, may have changed."""
    _recoveries: int = field(init=False)

    @_recoveries.default
    def _recoveries_now(self) -> int:
        return self.health.recoveries

    def refusal(self, entry: Entry, last: bool, streams: bool | None = None) -> Skip | None:
        """Why a request should not wait here; None if it may, or need not. `last`: in its chain; `streams`: see
        `Line.expected_wait`."""
        if last:
            return None
        wait = self.line.expected_wait(entry.target.model, self.clock(), streams=streams)
        if wait <= entry.max_wait:
            return None
        return Skip("saturated", wait, f"expected wait {wait:.1f} s, max_wait {entry.max_wait:g} s")

    async def turn(self, entry: Entry, last: bool, size: int, *, streams: bool, learns_bytes: bool) -> Served:
        """Waits until the request may be sent. Raises WaitedTooLong after ``max_wait`` seconds, unless it is `last`.

        `streams`: its first content can be seen.
        `learns_bytes`: whether `size`, in bytes, tells how many tokens the prompt has. Cancelling it frees the place.
        """
        if self.health.recoveries != self._recoveries:
            self._recoveries = self.health.recoveries
            self.line.came_back()
            self.on_back()
        entered = self.clock()
        turn = Turn(entry.target.model, self.line.of(entry.target.model).pace.seconds(size), streams)
        self.line.enter(turn, entered)
        if turn.began_at is None:
            try:
                async with asyncio.timeout(None if last else entry.max_wait):
                    await _turn_comes(turn)
            except TimeoutError:
                self.line.leave(turn, self.clock(), answered=False)
                raise waited_too_long(entry, entry.max_wait) from None
            except BaseException:
                self.line.leave(turn, self.clock(), answered=False)
                raise
        if last or not streams or not turn.is_trial:
            return Served(self, turn, size, learns_bytes)
        left = max(entered + entry.max_wait - self.clock(), 0.0)
        return Served(self, turn, size, learns_bytes, left + turn.patience)


def waited_too_long(entry: Entry, seconds: float) -> WaitedTooLong:
    """After `seconds`."""
    return WaitedTooLong(f"{entry.target} is busy with other requests", detail=f"waited {seconds:.3g} s")


async def _turn_comes(turn: Turn) -> None:
    """Returns when `turn` is served."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    turn.on_turn = lambda: None if future.done() else future.set_result(None)
    await future
