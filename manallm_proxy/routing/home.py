"""Gates for local providers, in addition to health: does the request fit, is the queue short, is the model loaded?

In this order: a prompt that cannot fit the model's context window is not sent; a request that would wait too long
moves on; one whose model is cold waits for it or moves on, as its entry says. Without local providers none of it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from attrs import define, evolve, field

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.routing.boxes import Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.queues import Queue, waited_too_long
from manallm_proxy.routing.relay import Opened
from manallm_proxy.routing.shared_line import AllWorkers

A = TypeVar("A", Answer, Opened)
Ask = Callable[[Entry], Awaitable[A]]


@define
class Home:
    """All local providers. ``queues``: one for each, by name. ``boxes``: those that load models on demand. ``workers``:
    what this process shares with others."""

    catalog: Catalog = field(factory=Catalog)
    boxes: Boxes = field(factory=Boxes)
    queues: Mapping[str, Queue] = field(factory=dict)
    workers: AllWorkers | None = None

    def visit(self, call: Call, chain: Chain) -> Visit:
        """The gates for one request along `chain`."""
        return Visit(self, call, chain.entries[-1])

    def refusal(self, entry: Entry, last: bool) -> Skip | None:
        """Why a short request would skip `entry` now; None if it would not. Begins no load."""
        queue = self.queues.get(entry.target.provider)
        return (queue.refusal(entry, last) if queue is not None else None) or self.boxes.refusal(entry, last)

    def _too_long(self, entry: Entry, queue: Queue, size: int) -> Skip | None:
        window = self.window(entry)
        if window is None:
            return None
        tokens = queue.line.of(entry.target.model).pace.least_tokens(size)
        if tokens <= window:
            return None
        return Skip("too_long", detail=f"at least {tokens} tokens, its window has {window}")

    def window(self, entry: Entry) -> int | None:
        """Tokens that `entry`'s model can read: as configured, in force or listed; None if unknown."""
        asked = entry.options.get("num_ctx")
        if isinstance(asked, int):
            listed = self.catalog.find(entry.target)
            return min(asked, listed.context_length or asked) if listed is not None else asked
        box = self.boxes.boxes.get(entry.target.provider)
        if box is not None and (in_force := box.residency.window(entry.target.model)):
            return in_force
        listed = self.catalog.find(entry.target)
        return listed.context_length if listed is not None and listed.context_length else None


@define(eq=False)
class Visit:
    """One request at the gates. ``last``: the last entry of its chain."""

    home: Home
    call: Call = field(repr=False)
    last: Entry
    _size: int | None = None
    _ready: Entry | None = None
    """The one whose model the gate has found loaded, a moment ago."""

    @property
    def size(self) -> int:
        """Bytes, see `Call.text_size`. Computed when first used: only requests to a local provider pay for it."""
        if self._size is None:
            self._size = self.call.text_size()
        return self._size

    def gate(self, entry: Entry, last: bool) -> Skip | None:
        """See `Walk.gate`."""
        queue = self.home.queues.get(entry.target.provider)
        if queue is None:
            return None
        skip = self.home._too_long(entry, queue, self.size) or queue.refusal(entry, last, self.call.summary.stream)
        if skip is not None:
            return skip
        box = self.home.boxes.boxes.get(entry.target.provider)
        if box is None or box.is_ready(entry):
            self._ready = entry
            return None
        return box.gate(entry, last)

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """Makes `ask` wait until the model is loaded and the request's turn has come. Its timeouts begin then."""
        if not self.home.queues:
            return ask

        async def wait_and_ask(entry: Entry) -> A:
            queue = self.home.queues.get(entry.target.provider)
            if queue is None:
                return await ask(entry)
            if self._ready is not entry:
                await self.home.boxes.loaded(entry)
            self._ready = None
            has_pictures = self.size != len(self.call.body)
            last, streams = entry is self.last, self.call.summary.stream
            served = await queue.turn(entry, last, self.size, streams=streams, learns_bytes=not has_pictures)
            try:
                value = await (ask(entry) if served.patience is None else _within(served.patience, entry, ask))
            except BaseException:
                served.end(None)
                raise
            if isinstance(value, Opened):
                served.began()
                return evolve(value, left=served.end)
            served.end(value.usage or Usage())
            return value

        return wait_and_ask


async def _within(seconds: float, entry: Entry, ask: Ask[A]) -> A:
    """What `ask` returns. Raises WaitedTooLong after `seconds`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await ask(entry)
    except TimeoutError:
        if not limit.expired():
            raise
        raise waited_too_long(entry, seconds) from None
