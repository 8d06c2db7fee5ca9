"""The live feed (``GET /v1/events``): events of requests, health and reloads, sent to its readers as they happen.

1. Without readers nothing is done: no event is even shaped.
2. Each reader has a bounded queue. A reader that does not keep up is dropped, never waited for.
3. The latest events are kept, so that a reader that reconnects continues where it was. They are dropped `LINGER`
   seconds after the last reader has left; ids from before are then as unknown as those of another proxy.
4. At most `RATE` requests a second are shown; the others are only counted, since nobody can read faster. Their number
   is reported when the second is over, whether another request follows or not.
5. Several workers: while one of them has readers, all exchange their events and keep them (``share``), so that a
   reader may reconnect to any of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from attrs import field

from manallm_proxy.contract.events import (
    Event,
    HealthChanged,
    ModelLoad,
    Reloaded,
    RequestBegun,
    RequestCommitted,
    RequestEnded,
)
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.observe.request_log import is_for_a_model, legible, summary

Kind = Literal["request", "health", "load", "reload", "reset", "skipped"]
LINGER: Final = 60.0
RATE: Final = 50
SECOND: Final = 1.0
KEPT: Final = 500
"""Latest events that are kept for a reader that reconnects."""
OVERLAP: Final = 2.0
"""Seconds by which the order of events may differ between two workers. A reader that reconnects to another worker gets
the events of this time again, under the same ids, rather than miss any."""
QUEUE: Final = 1000
"""Max events queued for one reader."""


@frozen
class FeedEvent:
    """One event of the feed. ``data`` is a JSON object."""

    id: str
    kind: str
    data: str


@define(eq=False)
class Ids:
    """Makes ids of events, in order. No other process makes the same."""

    _token: str = field(factory=lambda: secrets.token_hex(6))
    _number: int = 0

    def next(self) -> str:
        self._number += 1
        return f"{self._token}-{self._number}"


def _is_up_to(id_: str, last_id: str) -> bool:
    """Whether both are of one process, and `id_` is not the later one."""
    token, _, number = id_.rpartition("-")
    last_token, _, last_number = last_id.rpartition("-")
    return token == last_token and int(number) <= int(last_number)


def shaped(event: Event) -> tuple[Kind, Mapping[str, Any]] | None:
    """Kind and data of `event` in the feed; None if the feed does not show it."""
    match event:
        case RequestBegun():
            return "request", _phase("begun", event.request_id, event.requested, event.alias, None)
        case RequestCommitted():
            target = str(event.target)
            return "request", _phase("committed", event.request_id, event.requested, event.alias, target)
        case RequestEnded() if is_for_a_model(event):
            return "request", {"phase": "ended", **summary(time.time(), event)}
        case HealthChanged():
            was_now = {"was": event.was, "now": event.now, "reason": event.reason}
            return "health", {"provider": event.provider, "model": event.model, **was_now}
        case ModelLoad():
            return "load", {"provider": event.provider, "model": event.model, "event": event.event}
        case Reloaded():
            return "reload", {"result": "refused" if event.mistakes else "ok"}
    return None


def _phase(phase: str, id_: str, requested: str, alias: str | None, target: str | None) -> dict[str, Any]:
    named = {"model": legible(requested), "alias": alias, "target": target, "outcome": None}
    return {"phase": phase, "id": id_, **named}


@define(eq=False)
class Reader:
    """One reader of the feed, and its queue. ``drop`` ends its connection at once."""

    drop: Callable[[], None]
    _waiting: deque[FeedEvent] = field(factory=deque, repr=False)
    _wake: asyncio.Event = field(factory=asyncio.Event)
    _over: bool = False

    def put(self, event: FeedEvent) -> None:
        """Queues an event. Never waits: a reader with QUEUE events in its queue is too slow, and dropped."""
        if self._over:
            return
        if len(self._waiting) >= QUEUE:
            self._waiting.clear()
            self.end()
            self.drop()
            return
        self._waiting.append(event)
        self._wake.set()

    def end(self) -> None:
        """Ends the feed after the events in the queue."""
        self._over = True
        self._wake.set()

    async def next(self) -> list[FeedEvent] | None:
        """All events in the queue, at least one; None at the end."""
        while not self._waiting:
            if self._over:
                return None
            self._wake.clear()
            await self._wake.wait()
        events = list(self._waiting)
        self._waiting.clear()
        return events


@define(eq=False)
class LiveFeed:
    """An observer of all events. ``follow`` is called with whether there are readers, here or elsewhere. ``clock``:
    monotonic seconds."""

    clock: Callable[[], float]
    follow: Callable[[bool], None] = lambda on: None
    share: Callable[[str, str, str], None] | None = None
    """Passes id, kind and data to the other workers."""
    call_out: Callable[[bool], None] | None = None
    """Reports to the other workers whether there are readers here."""
    elsewhere: bool = False
    """Whether another worker has readers."""
    readers: set[Reader] = field(factory=set)
    _listening: bool = False
    """Whether there are readers here, or were less than `LINGER` seconds ago."""
    _ids: Ids = field(factory=Ids)
    _start: str = ""
    """An id for the moment before the first event of ``_kept``; empty once that event has made room for a later one."""
    _kept: deque[tuple[float, FeedEvent]] = field(factory=lambda: deque(maxlen=KEPT), repr=False)
    """Events with the time at which each arrived here."""
    _linger: asyncio.TimerHandle | None = None
    _second: int = 0
    _shown: int = 0
    """Requests shown in this second; ``_skipped``: those that were not."""
    _skipped: int = 0
    _end_of_second: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        if not (self._listening or self.elsewhere):  # without a call, since this runs for every request
            return
        found = shaped(event) if self._within_rate(event) else None
        if found is not None:
            self.publish(found[0], msgspec.json.encode(found[1]).decode())

    def publish(self, kind: str, data: str) -> None:
        """Sends an event to the readers of all workers."""
        event = FeedEvent(self._ids.next(), kind, data)
        self.deliver(event)
        if self.share is not None:
            self.share(event.id, kind, data)

    def deliver(self, event: FeedEvent) -> None:
        """Sends an event to the readers here."""
        if self._is_followed:
            if len(self._kept) == KEPT:
                self._start = ""
            self._kept.append((self.clock(), event))
            for reader in list(self.readers):
                reader.put(event)

    def watch_elsewhere(self, on: bool) -> None:
        """Sets whether another worker has readers."""
        self.elsewhere = on
        self._changed()

    def subscribe(self, last_id: str | None, drop: Callable[[], None]) -> Reader:
        """A new reader, which continues after `last_id`; if that is unknown, it starts over with a ``reset`` event."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        reader = Reader(drop)
        if not self._listening:
            self._listening = True
            self._changed()
            if self.call_out is not None:
                self.call_out(True)
        if last_id:
            for event in self._since(last_id):
                reader.put(event)
        self.readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """`reader` has gone."""
        self.readers.discard(reader)
        if not self.readers and self._listening and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER, self._stop)

    def close(self) -> None:
        """The process drains: every reader comes to its end."""
        for timer in (self._linger, self._end_of_second):
            if timer is not None:
                timer.cancel()
        self._linger = self._end_of_second = None
        for reader in self.readers:
            reader.end()

    def _stop(self) -> None:
        """No reader has come back. Events from now on are not kept, so earlier ids can no longer be continued."""
        self._linger, self._listening = None, False
        self._changed()
        if self.call_out is not None:
            self.call_out(False)

    @property
    def _is_followed(self) -> bool:
        """Whether there are readers, here or elsewhere."""
        return self._listening or self.elsewhere

    def _changed(self) -> None:
        """The first reader came, or the last one has gone."""
        if not self._is_followed:
            self._kept.clear()
            self._start = ""
            self._shown = self._skipped = 0
        elif not self._kept and not self._start:
            self._start = self._ids.next()
        self.follow(self._is_followed)

    def _since(self, last_id: str) -> list[FeedEvent]:
        if last_id == self._start:
            return [event for _, event in self._kept]
        came = next((at for at, event in self._kept if event.id == last_id), None)
        if came is not None:
            return [event for at, event in self._kept if at >= came - OVERLAP and not _is_up_to(event.id, last_id)]
        why = {"reason": "this id is of another proxy, or too old: the feed begins anew"}
        now = self._kept[-1][1].id if self._kept else self._start
        return [FeedEvent(now, "reset", msgspec.json.encode(why).decode())]

    def _within_rate(self, event: Event) -> bool:
        """Whether `event` is shown. Above the rate, beginnings of requests are not even reported (``follow``)."""
        if not isinstance(event, RequestBegun | RequestCommitted | RequestEnded):
            return True
        self._begin_second()
        if isinstance(event, RequestEnded):
            self._shown += 1
        if self._shown <= RATE:
            return True
        if not self._skipped:
            self.follow(False)
        if self._end_of_second is None:
            self._end_of_second = asyncio.get_running_loop().call_later(SECOND, self._second_ended)
        self._skipped += isinstance(event, RequestEnded)
        return False

    def _second_ended(self) -> None:
        self._end_of_second = None
        self._begin_second()
        if self._skipped:  # this second began with more than are shown, too
            self._end_of_second = asyncio.get_running_loop().call_later(SECOND, self._second_ended)

    def _begin_second(self) -> None:
        """If a second is over, reports how many requests were not shown in it."""
        second = int(self.clock())
        if second == self._second:
            return
        skipped, self._second, self._shown, self._skipped = self._skipped, second, 0, 0
        if skipped:
            self.follow(True)
            self.publish("skipped", msgspec.json.encode({"requests": skipped}).decode())
