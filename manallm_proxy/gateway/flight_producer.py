"""Asks for an answer on behalf of all requests that share a flight, and caches it if it is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from attrs import field

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.door import Reply, TakesLong
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Stream
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.doors.replay.forms import Replay
from manallm_proxy.gateway.client_stream import events_of
from manallm_proxy.gateway.dispatch import Dispatch, written
from manallm_proxy.openai.large import LARGE_BYTES, offload
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.routing.relay import Relay
from manallm_proxy.state.answer_store import CachedAnswer, Key
from manallm_proxy.state.flights import Flight


@define
class FlightProducer:
    """Produces one answer. ``seconds``: provider -> how long its answer is cached; None: not at all."""

    dispatch: Dispatch
    key: Key
    reply: Reply = field(repr=False)
    replay: Replay
    seconds: Callable[[str], float | None]

    async def run(self, flight: Flight) -> None:
        """Runs to the end of the answer. Raises what `Dispatch` raises if no answer begins."""
        flight.reply = self.reply
        await self.dispatch.plan.reserve()
        await (self._stream(flight) if flight.form.stream else self._complete(flight))

    async def _complete(self, flight: Flight) -> None:
        answer, entry = await self.dispatch.complete()
        flight.entry, flight.usage = entry, answer.usage
        failed = any(choice.finish == "error" for choice in answer.choices)
        body = await written(self.reply, entry.target, answer)
        kept = CachedAnswer(body, entry.target, answer.content_type, answer.usage)
        if not failed and self.replay.is_success(body):
            self._keep(kept, entry)
        flight.complete(kept)

    async def _stream(self, flight: Flight) -> None:
        beat = _Beat(flight, self.reply, self.dispatch.generation.config.streaming.heartbeat)
        async with await self.dispatch.opened(beat.early) as attempt:
            flight.entry = attempt.entry
            self.reply.start(attempt.entry.target)
            stream = attempt.value.stream
            carrier, sink = Relay(attempt), _Sink(self, flight, stream, beat)
            beat.start()
            try:
                await carrier.run(sink)
            finally:
                beat.stop()
                flight.usage = stream.usage
        if carrier.error is not None:
            flight.break_off(sink.error, carrier.error.error_type)

    async def end(self, flight: Flight, stream: Stream) -> None:
        """The end of a complete stream."""
        last = await offload(self.reply.ends_long, self.reply.end, stream.usage)
        said, usage = flight.held(), stream.usage
        whole = None
        if said:  # else it is too much to be kept, or nothing
            whole = await offload(len(said) > LARGE_BYTES, self.replay.to_whole, said + last, usage)
        entry = flight.entry
        assert entry is not None
        kept = CachedAnswer(whole, entry.target, usage=usage) if whole is not None else None
        if kept is not None:
            self._keep(kept, entry)
        flight.complete(kept, last)

    def _keep(self, kept: CachedAnswer, entry: Entry) -> None:
        seconds = self.seconds(entry.target.provider)
        if seconds is not None and not isinstance(
            self.dispatch.generation.providers[entry.target.provider], LoopbackProvider
        ):
            self.dispatch.generation.answers.store.keep(self.key, kept, seconds)


@define
class _Sink:
    """See `relay.Sink`. ``error``: the end of a stream that broke."""

    producer: FlightProducer
    flight: Flight
    stream: Stream
    beat: _Beat
    error: bytes = field(default=b"", repr=False)

    async def send(self, batch: StreamBatch) -> None:
        self.beat.is_held = True
        try:
            self.flight.put(await events_of(self.producer.reply, batch))
        finally:
            self.beat.is_held = False
        await self.flight.room()

    def try_write(self, batch: StreamBatch | bytes) -> bool:
        if not self.flight.has_room:
            return False
        try:
            self.flight.put(batch if isinstance(batch, bytes) else self.producer.reply.events(batch))
        except (ProviderError, TakesLong):  # as in `ClientStream`
            return False
        return True

    async def finish(self) -> None:
        self.beat.stop()
        await self.producer.end(self.flight, self.stream)

    async def fail(self, error: ProxyError) -> None:
        self.beat.stop()
        reply = self.producer.reply
        self.error = await offload(reply.ends_long, reply.error, error)


@define
class _Beat:
    """Heartbeats for all who read the flight, since a single reply writes its events. ``interval``: seconds."""

    flight: Flight
    reply: Reply = field(repr=False)
    interval: float
    is_held: bool = False
    """None is made: the reply makes other events, perhaps in a thread."""
    _timer: asyncio.TimerHandle | None = None
    _seen: int = 0

    async def early(self) -> None:
        """A heartbeat before any target has answered."""
        self.flight.put(self.reply.heartbeat())

    def start(self) -> None:
        if self.interval:
            self._seen = self.flight.part_count
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._check)

    def _check(self) -> None:
        if self.flight.part_count == self._seen and not self.is_held:
            self.flight.put(self.reply.heartbeat())
        self.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
