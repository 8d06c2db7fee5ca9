"""The step of an exchange before any provider is asked: serves a cached answer, or joins one that is in flight.

Without either, the exchange asks in a flight of its own, which others may join, and a complete answer is cached.
Failures are not shared: a request that waited for another's answer then asks for itself.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Protocol, cast

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.door import Door, Reply, StatefulReply
from manallm_proxy.contract.errors import InternalError, ProxyError
from manallm_proxy.contract.events import CacheOutcome, Outcome
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.doors.replay.forms import REPLAYS, Replay
from manallm_proxy.gateway.answers import key_of
from manallm_proxy.gateway.cache_control import CacheControl
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.dispatch import Dispatch
from manallm_proxy.gateway.flight_producer import FlightProducer
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.http_server import web
from manallm_proxy.http_server.stream_writer import StreamWriter
from manallm_proxy.openai.large import LARGE_BYTES, offload
from manallm_proxy.state.answer_store import CachedAnswer, Key
from manallm_proxy.state.flights import Flight, Form, Seat


class Served(Protocol):
    """What the step needs from its `Exchange`."""

    request: web.BaseRequest
    door: Door
    generation: Generation
    caller: Caller | None
    resolved: Entry | None
    usage: Usage | None
    cache: CacheOutcome | None
    saved_usage: Usage | None
    pays_later: bool

    async def ask(self, dispatch: Dispatch, reply: Reply) -> web.StreamResponse: ...

    async def send(self, body: bytes, content_type: str) -> web.StreamResponse: ...

    def stream_writer(self, reply: Reply, *, beats: bool = True) -> StreamWriter: ...

    def commit(self, entry: Entry, reply: Reply) -> None: ...

    def end(self, outcome: Outcome, status: int, error: str | None = None) -> None: ...

    async def fail(self, error: ProxyError, reply: Reply | None = None) -> web.StreamResponse: ...


@define
class CacheStep:
    """The step for one exchange whose chain caches answers. ``body``: the request's body, as the client sent it."""

    exchange: Served
    dispatch: Dispatch
    reply: Reply = field(repr=False)
    chain: Chain
    body: bytes = field(repr=False)

    @property
    def is_cacheable(self) -> bool:
        """Whether answers to this request are cached at all."""
        assert self.chain.cache is not None
        covered = self.chain.cache.ttl is not None or self._is_embedding
        return covered and self.exchange.door.name in REPLAYS

    @property
    def _is_embedding(self) -> bool:
        return self.dispatch.call.endpoint is Endpoint.EMBEDDINGS

    @property
    def _replay(self) -> Replay:
        return REPLAYS[self.exchange.door.name]

    @property
    def _form(self) -> Form:
        summary = self.dispatch.call.summary
        return Form(summary.stream, summary.stream and summary.wants_usage)

    async def answer(self) -> web.StreamResponse:
        """The response, cached, shared or new. Raises what `Dispatch` raises."""
        exchange, answers = self.exchange, self.exchange.generation.answers
        directives = CacheControl.of(exchange.request.headers)
        key = await self._key() if directives.may_store else None
        if key is None:
            exchange.cache = "bypass"
            return await exchange.ask(self.dispatch, self.reply)
        kept = await self._find(key, directives) if directives.may_read else None
        if kept is not None and (response := await self._give(kept)) is not None:
            return response
        flight = answers.flights.find(key) if directives.may_read else None
        if flight is not None and (response := await self._follow(flight)) is not None:
            return response
        exchange.cache = "miss"
        return await self._lead(key, is_shared=directives.may_read and flight is None)

    async def _key(self) -> Key | None:
        exchange = self.exchange
        caller = exchange.caller.key.name if exchange.caller is not None else None
        chain = exchange.generation.fingerprint(self.chain)
        body, self.body = self.body, b""
        call, door = self.dispatch.call, type(exchange.door).__qualname__
        if call.headers:  # they decide how a provider reads the request
            door += repr(sorted(call.headers.items()))
        return await offload(call.is_large, key_of, body, door, chain, caller)

    async def _find(self, key: Key, directives: CacheControl) -> CachedAnswer | None:
        store = self.exchange.generation.answers.store
        found = await store.find(key)
        if found is None:
            return None
        most = self._seconds(found.kept.target.provider)
        if most is None or found.age >= most:  # a reload has shortened it
            return None
        if directives.max_age is not None and found.age > directives.max_age:
            return None
        reply = self.reply
        if _is_stateful(type(reply)) and not await cast("StatefulReply", reply).is_known(found.kept.body):
            store.drop(key)
            return None
        return found.kept

    def _seconds(self, provider: str) -> float | None:
        assert self.chain.cache is not None
        return self.chain.cache.seconds(provider, is_embedding=self._is_embedding)

    async def _give(self, kept: CachedAnswer) -> web.StreamResponse | None:
        """Sends a cached answer in the form that the client asked for; None if it cannot be converted to that form."""
        exchange, data = self.exchange, None
        if self._form.stream:
            large = len(kept.body) > LARGE_BYTES
            data = await offload(large, self._replay.to_stream, kept.body, self._form.with_usage)
            if data is None:
                return None
        exchange.cache, exchange.saved_usage = "hit", kept.usage
        entry = next((each for each in self.chain if each.target == kept.target), None) or Entry(kept.target)
        exchange.commit(entry, self.reply)
        if data is None:
            return await exchange.send(kept.body, kept.content_type)
        writer = exchange.stream_writer(self.reply, beats=False)
        await writer.finish(data)
        return response_of(writer)

    async def _follow(self, flight: Flight) -> web.StreamResponse | None:
        """Sends the answer of another request's flight; None if this request must ask for itself."""
        exchange = self.exchange
        exchange.cache = "hit"
        with flight.join() as seat:
            if flight.form == self._form and flight.form.stream:
                response = await self._hear(flight, seat)
                exchange.saved_usage = flight.usage
                if response is None and seat.read and _is_stateful(type(self.reply)):
                    # it heard heartbeats that began the flight's answer, with an id that no other one has
                    error = flight.error if isinstance(flight.error, ProxyError) else InternalError()
                    response = await exchange.fail(error, flight.reply)
            else:
                await seat.over()
                response = await self._give(flight.kept) if flight.kept is not None else None
            if response is not None and flight.leader_left and (usage := flight.claim()) is not None:
                exchange.usage, exchange.saved_usage = usage, None  # who left pays, but has been reported by now
            return response

    async def _lead(self, key: Key, *, is_shared: bool) -> web.StreamResponse:
        """Asks in a flight of its own, which others may join if it `is_shared`."""
        exchange = self.exchange
        flight, generation, dispatch = Flight(self._form), exchange.generation, self.dispatch
        flights = generation.answers.flights
        producer = FlightProducer(self.dispatch, key, self.reply, self._replay, self._seconds)
        generation.hold()

        def landed() -> None:
            flight.has_landed = True
            if flight.is_paid_on_landing:
                _pay(flight, dispatch)
            flights.remove(key, flight)
            generation.release()

        with flight.join() as seat:
            flight.start(producer.run, landed)
            if is_shared:
                flights.add(key, flight)
            try:
                if flight.form.stream:
                    response = await self._hear(flight, seat)
                else:
                    await seat.over()
                    response = await self._send(flight)
            except BaseException as error:
                flight.leader_left = True
                if flight.has_landed:  # it is complete, however little of it this client has read
                    exchange.usage = flight.claim()
                elif isinstance(error, asyncio.CancelledError | ConnectionResetError):
                    # others may hear the rest: what it costs in all is known at its end
                    flight.is_paid_on_landing = exchange.pays_later = True
                raise
            if response is None:
                assert flight.error is not None
                raise flight.error
            exchange.usage = flight.claim()
            return response

    async def _send(self, flight: Flight) -> web.StreamResponse | None:
        kept, entry = flight.kept, flight.entry
        if kept is None or entry is None:
            return None
        self.exchange.commit(entry, self.reply)
        return await self.exchange.send(kept.body, kept.content_type)

    async def _hear(self, flight: Flight, seat: Seat) -> web.StreamResponse | None:
        """Forwards a flight's stream as it arrives; None if no target answered."""
        exchange = self.exchange
        writer: StreamWriter | None = None
        async for data in seat.parts():
            self._commit(flight)
            writer = exchange.stream_writer(self.reply, beats=False)
            await writer.write(data)
        if flight.error is not None and flight.entry is None:
            return None
        if flight.error is not None:
            raise flight.error
        self._commit(flight)
        writer = exchange.stream_writer(self.reply, beats=False)
        if flight.broken is not None:
            data, error = flight.broken
            exchange.end("broken", 200, error)
            await writer.break_off(data)
        else:
            await writer.finish(flight.last)
        return response_of(writer)

    def _commit(self, flight: Flight) -> None:
        if flight.entry is not None and self.exchange.resolved is None:
            assert flight.reply is not None
            self.exchange.commit(flight.entry, flight.reply)


def _pay(flight: Flight, dispatch: Dispatch) -> None:
    """Settles what a flight has cost, on behalf of the client that began it and has left."""
    sent = len(flight.kept.body) if flight.kept is not None else flight.bytes_put
    dispatch.plan.settle(flight.entry, flight.usage, sent)


@cache
def _is_stateful(kind: type[Reply]) -> bool:
    """Cached per door: `isinstance` of a runtime protocol takes as long as all other steps of a cache hit together."""
    return issubclass(kind, StatefulReply)


def response_of(writer: StreamWriter) -> web.StreamResponse:
    """The response of a stream that has begun."""
    response = writer.response
    assert response is not None
    return response
