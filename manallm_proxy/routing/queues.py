"""The queue in front of each local server: a request waits for its turn, or moves on if that would take too long.

`line` decides which is next, `pace` estimates how long each takes; this file waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider_errors import ConnectTimeout, FirstByteTimeout, QueueTimeout, ReadTimeout
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.circuit import Declined, Skip
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import Clock
from manallm_proxy.routing.line import Line, ModelLine, Turn
from manallm_proxy.routing.pace import Pictures

_SLOW: Final = (ConnectTimeout.reason, FirstByteTimeout.reason, ReadTimeout.reason)
"""Failures of a server or a model that is away, or hangs. After others, such as a runner that crashed, the next request
may be served."""
LOOK_AGAIN: Final = 1.0
"""Seconds after which who waits looks again: whether the server is still well, and at the last entry, whether another
one can be asked by now."""


@define(eq=False)
class Queue:
    """The queue of one server. ``health`` shows when the server came back from an outage."""

    clock: Clock
    health: Health
    line: Line
    on_back: Callable[[], None] = lambda: None
    """Called after an outage: the loaded models and the number of slots may have changed."""
    _recoveries: int = field(init=False)

    @_recoveries.default
    def _recoveries_now(self) -> int:
        return self.health.provider.recoveries

    def follow(self, health: Health) -> None:
        """Goes by `health` from now on, as after a reload. A recovery that was noticed is none a second time."""
        self._recoveries += health.provider.recoveries - self.health.provider.recoveries
        self.health = health

    def refusal(self, entry: Entry, line: ModelLine, now: float) -> Skip | None:
        """Why a request should not wait in `line`, the line of `entry`'s model; None if it may wait, or need not."""
        wait = self.line.expected_wait(line, now)
        if wait <= entry.max_wait:
            return None
        return Skip("saturated", wait, f"expected wait {wait:.1f} s, max_wait {entry.max_wait:g} s")

    def enter(
        self,
        entry: Entry,
        last: bool,
        size: int,
        streams: bool,
        pictures: Pictures | None = None,
        *,
        again: bool = False,
    ) -> Turn:
        """A request's place in line: served if there is room, else waiting, see `wait_for_turn`.

        `last`: `entry` ends its chain; `size`: bytes without `pictures`; `streams`: its first content can be observed;
        `again`: see `Turn`.
        """
        if self.health.provider.recoveries != self._recoveries:
            self._recoveries = self.health.provider.recoveries
            self.line.server_recovered()
            self.on_back()
        line, now = self.line.of(entry.target.model), self.clock()
        until = None if last else now + entry.max_wait
        turn = Turn(line, line.pace.seconds(size, pictures), streams, size, pictures, until, again)
        self.line.enter(turn, now)
        return turn

    async def wait_for_turn(self, turn: Turn, entry: Entry, is_last: Callable[[Entry], bool]) -> None:
        """Returns when `turn` is served. Raises QueueTimeout after ``max_wait``, once `entry` is not the last one, and
        Declined once its server or model is away: those who wait would find that out one after the other.

        Which entry is the last that can be asked may change meanwhile. Cancelling it frees the place.
        """
        if turn.began_at is not None:
            return
        served, began, left, stayed = _served(turn), self.clock(), entry.max_wait, False
        try:
            while not await self._is_done(served, entry, min(left, LOOK_AGAIN)):
                left -= LOOK_AGAIN
                if left > 0:
                    continue
                if not is_last(entry):
                    raise queue_timeout(entry, self.clock() - began if stayed else entry.max_wait)
                turn.until, left, stayed = None, LOOK_AGAIN, True
        except BaseException:
            self.line.leave(turn, self.clock(), answered=False)
            raise

    async def while_well(self, entry: Entry, waiting: Coroutine[Any, Any, None]) -> None:
        """Waits for the end of `waiting`, which is for `entry`'s model. Raises what it raises, and Declined as
        `wait_for_turn`."""
        task = asyncio.ensure_future(waiting)
        try:
            while not await self._is_done(task, entry, LOOK_AGAIN):
                pass
        except BaseException:
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # asyncio would log that
            raise
        task.result()

    async def _is_done(self, awaited: asyncio.Future[None], entry: Entry, seconds: float) -> bool:
        """Whether `awaited` is done within `seconds`. Raises Declined if it is not, and the server is away."""
        if (await asyncio.wait([awaited], timeout=seconds))[0]:
            return True
        if (skip := _outage(self.health, entry.target.model, self.clock())) is not None:
            raise Declined(skip)
        return False

    def report_slots(self, slots: Mapping[str, int]) -> None:
        """See `Line.report`."""
        self.line.report(slots, self.clock())

    def began(self, turn: Turn) -> None:
        """Its stream's first content has arrived."""
        turn.first_at = now = self.clock()
        self.line.began(turn, now)

    def end(self, turn: Turn, usage: Usage | None) -> None:
        """Its answer has ended; `usage` None: incomplete. Serves the next request. Harmless when repeated."""
        began = turn.began_at
        if began is None or turn.ended_at is not None:
            return
        now = self.clock()
        if usage is None:
            self.line.leave(turn, now, answered=False)
            return
        if not turn.is_trial:  # which may have waited at the server
            first = turn.first_at - began if turn.first_at is not None else None
            turn.line.pace.learn(turn.size, usage.prompt, usage.completion, first, now - began, turn.pictures)
        self.line.leave(turn, now, answered=True, tokens=usage.completion)


def queue_timeout(entry: Entry, seconds: float) -> QueueTimeout:
    """The error for a request that waited `seconds`."""
    return QueueTimeout(f"{entry.target} is busy with other requests", detail=f"waited {seconds:.3g} s")


def _outage(health: Health, model: str, now: float) -> Skip | None:
    """Why those who wait for `model` should not be sent, as each would find out slowly; None if only a trial may be, or
    if all that is known is that the list of models is slow, as of a server that is busy with those before them."""
    circuits = [health.targets.get(model)]
    if health.provider.witnessed or health.unlisted != "unclear":
        circuits.append(health.provider)
    for circuit in circuits:
        if circuit is not None and circuit.last_error in _SLOW and now < (circuit.open_until or now):
            return circuit.refusal(now)
    return None


def _served(turn: Turn) -> asyncio.Future[None]:
    """Done when `turn` is served."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    turn.on_turn = lambda: None if future.done() else future.set_result(None)
    return future
