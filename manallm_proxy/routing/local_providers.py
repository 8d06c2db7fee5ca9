"""Gates for local providers, in addition to health: does the request fit, is the queue short, is the model loaded?

In this order: a prompt that cannot fit the model's context window is not sent; a request that would wait too long moves
on; one whose model is cold waits for the load or moves on, as its entry says. Where no later entry could be tried, it
waits in any case. Without local providers none of it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from attrs import field
from msgspec import Struct

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.provider import VISION, Call
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.routing.boxes import Box, Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.line import Turn
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

    def gates(self, call: Call, chain: Chain, may_pass: Callable[[Target], bool]) -> RequestGates:
        """The gates for one request along `chain`. `may_pass`: whether health lets a target be tried now."""
        return RequestGates(self, call, chain.entries, may_pass)

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
    """The gates for one request. ``entries``: its chain's. ``may_pass``: see `LocalProviders.gates`."""

    local: LocalProviders
    call: Call
    entries: Sequence[Entry]
    may_pass: Callable[[Target], bool]
    too_dear: Callable[[Entry], Skip | None] | None = None
    """Why a budget leaves too little for an entry, if there is one."""
    _size: int = 0
    """Size in bytes, see `Call.text_size`; 0: not measured yet."""
    _pictures: Pictures | None = None
    _ready: Entry | None = None
    """The entry whose model `gate` has just found loaded."""
    _last: Entry | None = None
    """The entry behind which `gate` has found none that could be tried."""

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

    def gate(self, entry: Entry) -> Skip | None:
        """See `Walk.gate`."""
        local, provider = self.local, entry.target.provider
        queue = local.queues.get(provider)
        if queue is None:
            return None
        if (skip := self._too_long(entry, queue)) is not None:
            return skip
        now, line, box = queue.clock(), queue.line.of(entry.target.model), local.boxes.boxes.get(provider)
        last = is_last(entry, self.entries, self._may_be_tried)
        if last:
            self._last = entry
        streams = self.call.summary.stream or None  # for a whole answer, nobody would notice a trial that waits
        if not (last or queue.line.is_open(line, streams, now)) and (skip := queue.refusal(entry, line, now)):
            return skip
        if box is None or box.is_ready(entry, now):
            self._ready = entry
            return None
        return box.gate(entry, last)

    def _too_long(self, entry: Entry, queue: Queue) -> Skip | None:
        size, box = self._size or self._measure(), self.local.boxes.boxes.get(entry.target.provider)
        in_force = 0 if box is None or entry.options else box.residency.window(entry.target.model)
        window = in_force or self.local.window(entry, box)
        if window is None:
            return None
        tokens = queue.line.of(entry.target.model).pace.least_tokens(size, self._pictures)
        return (
            Skip("too_long", detail=f"at least {tokens} tokens, its window has {window}") if tokens > window else None
        )

    def _may_be_tried(self, entry: Entry) -> bool:
        if not self.may_pass(entry.target) or (self.too_dear is not None and self.too_dear(entry) is not None):
            return False
        queue = self.local.queues.get(entry.target.provider)
        return queue is None or self._too_long(entry, queue) is None

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """Wraps `ask`: it waits until the model is loaded and the request's turn has come, then starts its timeouts."""
        if not self.local.queues:
            return ask

        async def wait_and_ask(entry: Entry) -> A:
            queue = self.local.queues.get(entry.target.provider)
            if queue is None:
                return await ask(entry)
            if self._ready is not entry:
                await self.local.boxes.loaded(entry)
            self._ready, size, streams = None, self._size or self._measure(), self.call.summary.stream
            turn = queue.enter(entry, entry is self._last, size, streams, self._pictures)
            if turn.began_at is None:
                await queue.wait_for_turn(turn, entry)
            try:
                value = await (_on_trial(queue, turn, entry, ask) if turn.is_trial else ask(entry))
            except BaseException:
                queue.end(turn, None)
                raise
            if isinstance(value, Opened):
                queue.began(turn)
                value.left = partial(queue.end, turn)
            else:
                queue.end(turn, value.usage or _NOT_COUNTED)
            return value

        return wait_and_ask


def is_last(entry: Entry, entries: Sequence[Entry], may_be_tried: Callable[[Entry], bool]) -> bool:
    """Whether no entry after `entry` could be tried now, so that moving on would only be an error."""
    later = entries[next(n for n, each in enumerate(entries) if each is entry) + 1 :]
    return not any(may_be_tried(each) for each in later if not each.target.is_open)


async def _on_trial(queue: Queue, turn: Turn, entry: Entry, ask: Ask[A]) -> A:
    """The result of `ask` for a trial. Raises QueueTimeout if it may still be waiting at the server when it should move
    on; for a stream, when its first content is overdue."""
    if turn.until is None:
        return await ask(entry)
    grace = turn.trial_timeout if turn.streams else 0.0
    seconds = max(turn.until - queue.clock(), 0.0) + grace
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
