"""Gates for local providers, in addition to health: does the request fit, is the queue short, is the model loaded?

In this order: a prompt that cannot fit the model's context window is not sent; a request that would wait too long moves
on; one whose model is cold waits for the load or moves on, as its entry says. Without local providers none of it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from attrs import field
from msgspec import Struct

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.provider import VISION, Call
from manallm_proxy.contract.provider_errors import Blame, FirstByteTimeout, ProviderError, QueueTimeout
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.routing.boxes import Box, Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Declined, Skip
from manallm_proxy.routing.line import ModelLine, Turn
from manallm_proxy.routing.pace import Pictures
from manallm_proxy.routing.queues import Queue, queue_timeout
from manallm_proxy.routing.relay import Opened
from manallm_proxy.routing.shared_line import AllWorkers

_NOT_COUNTED: Final = Usage()
A = TypeVar("A", Answer, Opened)
Ask = Callable[[Entry], Awaitable[A]]


@define
class LocalProviders:
    """All local providers. ``queues``: one per provider, by name. ``boxes``: those that load models on demand.
    ``workers``: what this process shares with other workers."""

    catalog: Catalog = field(factory=Catalog)
    boxes: Boxes = field(factory=Boxes)
    queues: Mapping[str, Queue] = field(factory=dict)
    workers: AllWorkers | None = None
    own_window: Callable[[Call, Entry], float | None] = lambda call, entry: None
    """The window in tokens that a request itself leads to at `entry`, inf if it may be cut; None: the usual one.
    Called only where a prompt is longer than that."""

    def gates(self, call: Call) -> RequestGates:
        """The gates for one request."""
        return RequestGates(self, call)

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """Why a short request would skip `entry` now; None if it would not. Starts no load."""
        queue, skip = self.queues.get(entry.target.provider), None
        if queue is not None and not last:
            skip = queue.refusal(entry, queue.line.of(entry.target.model), queue.clock())
        return skip or self.boxes.refusal(entry, last)

    def window(self, entry: Entry, box: Box | None) -> int | None:
        """Context window of `entry`'s model, in tokens: as configured, in force (`box`) or listed; None: unknown."""
        if entry.options and isinstance(asked := entry.options.get("num_ctx"), int):
            listed = self.catalog.find(entry.target)
            return min(asked, listed.context_length or asked) if listed is not None else asked
        if box is not None and (in_force := box.residency.window(entry.target.model)):
            return in_force
        listed = self.catalog.find(entry.target)
        return listed.context_length if listed is not None and listed.context_length else None


class RequestGates(Struct, eq=False):  # made in half the time of attrs' classes, for each request
    """The gates for one request."""

    local: LocalProviders
    call: Call
    _size: int = 0
    """Size in bytes, see `Call.text_size`; 0: not measured yet."""
    _pictures: Pictures | None = None
    _ready: Entry | None = None
    """The entry whose model `gate` has just found loaded."""

    __repr__ = object.__repr__

    def _measure(self) -> int:
        """Sets ``_size`` and ``_pictures``, on first use, so that only requests for local targets pay for it."""
        call, number = self.call, 0
        self._size = size = len(call.body)
        if VISION in call.summary.needs:
            self._size, number = call.sizes()
        if number:
            self._pictures = Pictures(number, size - self._size)
        return self._size

    def gate(self, entry: Entry, is_last: Callable[[Entry], bool]) -> Skip | None:
        """See `Walk.gate`. To know which entry is last takes some microseconds, so that is asked where it matters."""
        local, provider = self.local, entry.target.provider
        queue = local.queues.get(provider)
        if queue is None:
            return None
        now, line, box = queue.clock(), queue.line.of(entry.target.model), local.boxes.boxes.get(provider)
        if (skip := self._too_long(entry, line, box)) is not None:
            return skip
        streams = self.call.summary.stream or None  # for a whole answer, nobody would notice a trial that waits
        is_open = queue.line.is_open(line, streams, now)
        if not is_open and (skip := queue.refusal(entry, line, now)) is not None and not is_last(entry):
            return skip
        if box is None or box.is_ready(entry, now):
            self._ready = entry
            return None
        return box.gate(entry, is_last(entry))

    def may_serve(self, entry: Entry) -> bool:
        """Whether `entry` could serve now: its list denies nothing that the request needs, and `gate` would let it pass
        if it were the last one. Starts no load."""
        listed = self.local.catalog.find(entry.target)
        if listed is not None and listed.capabilities and self.call.summary.needs_beside(listed.capabilities):
            return False
        queue = self.local.queues.get(entry.target.provider)
        if queue is None:
            return True
        box = self.local.boxes.boxes.get(entry.target.provider)
        skip = self._too_long(entry, queue.line.of(entry.target.model), box)
        return skip is None and (box is None or box.refusal(entry, last=True) is None)

    def _too_long(self, entry: Entry, line: ModelLine, box: Box | None) -> Skip | None:
        """Why the prompt cannot fit the window of `entry`'s model; None if it may."""
        size = self._size or self._measure()
        in_force = 0 if box is None or entry.options else box.residency.window(entry.target.model)
        window = in_force or self.local.window(entry, box)
        if window is None or (tokens := line.pace.least_tokens(size, self._pictures)) <= window:
            return None
        own = self.local.own_window(self.call, entry)
        if own is not None and tokens <= own:
            return None
        return Skip("too_long", detail=f"at least {tokens} tokens, its window has {window if own is None else own}")

    def in_turn(self, ask: Ask[A], is_last: Callable[[Entry], bool]) -> Ask[A]:
        """Wraps `ask`: it waits until the model is loaded and the request's turn has come, then starts its timeouts.

        `is_last`: see `Walk.is_last`.
        """
        if not self.local.queues:
            return ask

        async def wait_and_ask(entry: Entry) -> A:
            queue = self.local.queues.get(entry.target.provider)
            if queue is None:
                return await ask(entry)
            if self._ready is not entry:
                await queue.while_well(entry, self.local.boxes.loaded(entry))
            self._ready, size, streams = None, self._size or self._measure(), self.call.summary.stream
            is_free = self.local.workers is None and queue.line.of(entry.target.model).is_idle
            turn = queue.enter(entry, is_free or is_last(entry), size, streams, self._pictures)
            while True:
                if turn.began_at is None:
                    await queue.wait_for_turn(turn, entry, is_last)
                    await self._loaded_still(queue, turn, entry, is_last)
                try:
                    value = await (_on_trial(queue, turn, entry, ask) if turn.is_trial else ask(entry))
                    break
                except QueueTimeout:  # it has waited at the server
                    queue.end(turn, None)
                    if not is_last(entry):
                        raise
                    turn = queue.enter(entry, True, size, streams, self._pictures, again=True)
                except BaseException as error:
                    queue.end(turn, None)
                    box = self.local.boxes.boxes.get(entry.target.provider)
                    if box is not None and isinstance(error, ProviderError) and error.blame is Blame.REACH:
                        box.lost()
                    raise
            if isinstance(value, Opened):
                queue.began(turn)
                value.left = partial(queue.end, turn)
            else:
                queue.end(turn, value.usage or _NOT_COUNTED)
            return value

        return wait_and_ask

    async def _loaded_still(self, queue: Queue, turn: Turn, entry: Entry, is_last: Callable[[Entry], bool]) -> None:
        """Returns once the model is loaded, which may have been unloaded while `turn` was waited for. If it raises, as
        `Boxes.loaded` does, or Declined as `Box.gate` says, `turn` is given up."""
        box = self.local.boxes.boxes.get(entry.target.provider)
        if box is None or box.is_ready(entry, queue.clock()):
            return
        try:
            if (skip := box.gate(entry, is_last(entry))) is not None:
                raise Declined(skip)
            await queue.while_well(entry, box.loaded(entry))
        except BaseException:
            queue.end(turn, None)
            raise
        turn.began_at = queue.clock()  # what the load has taken says nothing of the next answer


async def _on_trial(queue: Queue, turn: Turn, entry: Entry, ask: Ask[A]) -> A:
    """The result of `ask` for a trial. Raises QueueTimeout if it may still be waiting at the server when it should move
    on (for a stream, when its first content is overdue), or after ``first_byte``, which there is nobody's fault."""
    sent = queue.clock()
    try:
        return await (ask(entry) if turn.until is None else _for_a_while(queue, turn, turn.until, entry, ask))
    except FirstByteTimeout:
        if not turn.waits:
            raise
        raise queue_timeout(entry, queue.clock() - sent) from None


async def _for_a_while(queue: Queue, turn: Turn, until: float, entry: Entry, ask: Ask[A]) -> A:
    grace = turn.trial_timeout if turn.streams else 0.0
    seconds = max(until - queue.clock(), 0.0) + grace
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time()) if turn.waits else None)
            try:
                return await ask(entry)
            finally:
                timer.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        raise queue_timeout(entry, entry.max_wait + grace) from None  # since it came, as where it waits here
