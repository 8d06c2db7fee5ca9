"""One client's request from its arrival to its last byte.

`Exchange.answer` is the sequence: read the body, let the door read it, resolve the chain, walk it, relay. It ends in
one `RequestEnded`, and the client learns of a failure by status or in-band, never both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from functools import partial

from attrs import evolve, field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.door import Client, Door, Reply
from manallm_proxy.contract.errors import InternalError, ProxyError
from manallm_proxy.contract.events import (
    CacheOutcome,
    Crashed,
    Outcome,
    RequestBegun,
    RequestCommitted,
    RequestEnded,
)
from manallm_proxy.contract.provider import Call, RequestSummary
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.contract.targets import Entry
from manallm_proxy.contract.trace import Trace
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.gateway.advice import add_advice
from manallm_proxy.gateway.body_reader import read_request
from manallm_proxy.gateway.cache_step import CacheStep, response_of
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.client_stream import ClientStream
from manallm_proxy.gateway.dispatch import Dispatch, written
from manallm_proxy.gateway.exchange_state import MANY, State
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.request_plan import chain_of, plan_request
from manallm_proxy.gateway.shared_limits import SharedLimits
from manallm_proxy.http_server import web
from manallm_proxy.http_server.aiohttp_internals import running_task
from manallm_proxy.http_server.body_writer import write_json
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.http_server.stream_writer import StreamWriter
from manallm_proxy.openai.allocator import APART
from manallm_proxy.openai.large import LARGE_BYTES, free_aside, offload
from manallm_proxy.routing import relay
from manallm_proxy.routing.failover import Walk


@define(eq=False)
class Exchange:
    """One request in flight. ``started``: monotonic seconds."""

    request: web.BaseRequest
    door: Door
    generation: Generation
    renderer: Renderer
    request_id: str
    started: float
    in_flight: Sized = field(repr=False)
    """All requests of this process, this one included."""
    take_place: Callable[[Exchange], None]
    """Called once its body is complete. Raises Overloaded and KeyLimited if there is no place."""
    caller: Caller | None = None
    """The holder of its key; None if no key is required."""
    trace: Trace | None = None
    hops: int = 0
    walk: Walk | None = None
    resolved: Entry | None = None
    usage: Usage | None = None
    state: State = State.WAITING
    outcome: Outcome = "ok"
    status: int = 200
    error: str | None = None
    bytes_sent: int = 0
    duration: float = 0.0
    """Seconds, once it is closed."""
    first_byte_at: float | None = None
    interrupted: ProxyError | None = None
    """The error by which `interrupt` ended it."""
    cache: CacheOutcome | None = None
    saved_usage: Usage | None = None
    """Tokens that a cached answer saved."""
    pays_later: bool = False
    """Whether its expense is settled when the flight that it began is over, and not by `close`."""
    body: bytes = field(default=b"", repr=False)
    """The request's body if answers may be cached, until it is known whether this one may."""
    _response: RawResponse | None = None
    """A complete answer that is being sent."""
    _freed_aside: bool = False
    _summary: RequestSummary | None = None
    _dispatch: Dispatch | None = None
    _remarks: list[str] = field(factory=list)
    _reply: Reply | None = field(default=None, repr=False)
    _writer: StreamWriter | None = None
    _task: asyncio.Task[object] | None = None
    """The one that answers."""

    async def answer(self, limits: SharedLimits | None = None) -> web.StreamResponse:
        """The response; for a stream, once it is complete. `limits`: if given, counts the request first."""
        self._task = running_task(self.request)
        try:
            if limits is not None and self.caller is not None:
                await limits.ask(self.caller, self.started)
            return await self._answer()
        except asyncio.CancelledError as cancelled:
            if self.interrupted is None:
                self.end("client_gone", 499)
                clear_tracebacks(cancelled)
                raise
            assert self._task is not None
            self._task.uncancel()
            return await self.fail(self.interrupted)
        except ConnectionResetError:  # a write to a client that has left, or was cut off since it did not read
            self.end("client_gone", 499)
            return self._cut()
        except ProxyError as error:
            return await self.fail(error)
        except Exception as error:
            self.generation.registry.observe(Crashed(f"{self.door.name} request", error, self.request_id))
            clear_tracebacks(error)
            return await self.fail(InternalError())
        finally:
            reply, self._reply = [self._reply], None  # its frames may hold the request
            self._task = None  # if it was cancelled, it holds frames that hold this exchange
            if self._summary is not None:
                self._summary.forget()
            if self._writer is not None:
                self._writer.close()
                self.bytes_sent, self.first_byte_at = self._writer.bytes_sent, self._writer.first_at
            free_aside(reply, self._freed_aside or self.bytes_sent > LARGE_BYTES)

    def refuse(self, error: ProxyError) -> web.Response:
        """The response if the exchange may not begin, or no target could answer."""
        self.end("error", error.status, _kind(error))
        return self.renderer.error(self.request, error, self.door.error_body, self.headers())

    def interrupt(self, error: ProxyError) -> None:
        """Ends the exchange from outside: reports `error` to the client, leaves the provider. Repeats do nothing."""
        if self.interrupted is None and self._task is not None:
            self.interrupted = error
            self._task.cancel()

    def headers(self) -> dict[str, str]:
        """Headers of every answer of the pipeline, as far as they are known by now."""
        headers = {"X-Request-Id": self.request_id, **self.door.headers(self.request_id)}
        if self.walk is not None:
            headers["X-Mana-LLM-Attempts"] = str(self.walk.tried)
        if self.resolved is not None:
            headers["X-Mana-LLM-Resolved"] = str(self.resolved.target)
        if self.cache is not None:
            headers["X-Mana-LLM-Cache"] = self.cache
        if self.caller is not None:
            headers |= self.caller.rate_headers(self.generation.registry.clock())
        return headers

    async def _answer(self) -> web.StreamResponse:
        key = self.caller.key.name if self.caller else None
        client = Client(self.request_id, key, self.request.headers, self.generation.dialects, self.generation.bounds)
        read, arrived = partial(self._read, client=client), partial(self.take_place, self)
        config = self.generation.config
        reading, large = await read_request(self.request, config.limits, read, arrived, scans=self.door.scans)
        call, self._reply = reading if isinstance(reading, tuple) else await reading
        del reading
        call.is_large = call.is_large or large
        self._freed_aside = large if self.door.scans else call.is_large
        self._summary = call.summary
        chain = chain_of(self.generation, call, self.caller, self.request.headers)
        if call.native is not None and False in (speak := self.generation.speaking(chain, call.native.dialect.path)):
            call = await offload(call.is_large, call.translated, for_all=True not in speak)
        self._remarks = call.remarks
        if len(self.in_flight) > MANY:
            await asyncio.sleep(0)
        plan = plan_request(self.generation, call, self.caller, chain)
        self.walk = plan.walk
        self._dispatch = dispatch = Dispatch(self.generation, call, plan, self.caller is None, self.trace)
        dispatch.notes, dispatch.hops = call.notes, self.hops
        if self.renderer.serving.followed:
            self.generation.registry.observe(RequestBegun(self.request_id, call.summary.model, chain.alias))
        if call.answer is not None:
            whole = self._reply.whole(chain.entries[0].target, call.answer)
            return await self.send(whole, call.answer.content_type)
        body, self.body = self.body, b""
        if chain.cache is not None:
            kept = CacheStep(self, dispatch, self._reply, chain, body)
            if kept.is_cacheable:
                return await kept.answer()
        return await self.ask(dispatch, self._reply)

    def _read(
        self, body: bytes, short: Shortened | None, client: Client
    ) -> tuple[Call, Reply] | Awaitable[tuple[Call, Reply]]:
        if self.generation.caches:
            self.body = body
        return self.door.read(body, client if short is None else evolve(client, short=short))

    async def ask(self, dispatch: Dispatch, reply: Reply) -> web.StreamResponse:
        """The response made of the first target's answer."""
        if dispatch.plan.expense is not None:
            await dispatch.plan.reserve()
        if dispatch.call.summary.stream:
            return await self._stream(dispatch, reply)
        answer, self.resolved = await dispatch.complete()
        self.note_commit(self.resolved)
        self.usage = answer.usage
        if len(self.in_flight) > MANY:
            await asyncio.sleep(0)
        return await self.send(await written(reply, self.resolved.target, answer), answer.content_type)

    async def send(self, body: bytes, content_type: str) -> web.StreamResponse:
        """Sends a whole answer."""
        self.first_byte_at = self.generation.registry.clock()
        self.bytes_sent, self.state = len(body), State.COMMITTED
        headers = {"Content-Type": content_type, **self.renderer.common_headers(self.request), **self.headers()}
        self._response = response = RawResponse(self.request, headers, len(body))
        await write_json(self.request, response, body, self.generation.config.limits)
        large, held = len(body) > APART, [body]
        del body  # which else were freed here, in one go
        free_aside(held, large)
        return response

    async def _stream(self, dispatch: Dispatch, reply: Reply) -> web.StreamResponse:
        async with await dispatch.opened(self._early_heartbeat) as attempt:
            self.resolved, self.state = attempt.entry, State.COMMITTED
            self.note_commit(self.resolved)
            reply.start(attempt.entry.target)
            reply.content_type = attempt.value.content_type or reply.content_type
            stream = attempt.value.stream
            carrier = relay.Relay(attempt)
            writer = self.stream_writer(reply)
            try:
                await carrier.run(ClientStream(reply, writer, stream))
            finally:
                self.usage = stream.usage
        if carrier.error is not None:
            self.end("broken", 200, carrier.error.error_type)
        return response_of(writer)

    def note_commit(self, entry: Entry) -> None:
        """Reports the commit if the live feed has readers; other listeners need only the end."""
        if self.renderer.serving.followed and self.walk is not None and self._summary is not None:
            asked, alias = self._summary.model, self.walk.chain.alias
            self.generation.registry.observe(RequestCommitted(self.request_id, asked, alias, entry.target))

    async def _early_heartbeat(self) -> None:
        """200 and a heartbeat while the walk goes on: from now on a failure is reported in-band."""
        assert self._reply is not None
        await self.stream_writer(self._reply).beat()

    def commit(self, entry: Entry, reply: Reply) -> None:
        """The commit: `entry` answers, and `reply` writes its answer."""
        self.resolved, self.state, self._reply = entry, State.COMMITTED, reply
        self.note_commit(entry)

    def stream_writer(self, reply: Reply, *, beats: bool = True) -> StreamWriter:
        if self._writer is None:
            headers = {"Content-Type": reply.content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            headers |= self.renderer.common_headers(self.request) | self.headers()
            timing = self.renderer.serving.timing_of(self.generation.config)
            self._writer = StreamWriter(self.request, headers, timing, reply.heartbeat if beats else bytes)
        return self._writer

    async def fail(self, error: ProxyError, reply: Reply | None = None) -> web.StreamResponse:
        """Reports `error` to the client: in-band if a stream has begun, by `reply` or its own; else by status."""
        clear_tracebacks(error)
        self._reply = reply or self._reply
        if self.walk is not None and self._summary is not None:
            add_advice(error, self.generation, self.walk.chain, self._summary.model, self.caller)
        if isinstance(error, ProviderError) and self.walk is not None and error.target:
            self.resolved = next((e for e in self.walk.chain if str(e.target) == error.target), self.resolved)
        if self._response is not None:  # its head has been sent: no second answer may follow
            self.end("broken", self.status, _kind(error))
            return self._cut()
        if (writer := self._writer) is None or writer.response is None:
            return self.refuse(error)
        assert self._reply is not None
        self.end("broken" if self.state is State.COMMITTED else "error", 200, _kind(error))
        if writer.response.ended:
            return self._cut()
        try:
            await writer.break_off(self._reply.error(error))
        except ConnectionResetError:
            return self._cut()
        return writer.response

    def _cut(self) -> web.StreamResponse:
        """Closes the connection without a last chunk, so that no client takes the answer for complete."""
        if self.request.transport is not None:
            self.request.transport.abort()
        response = self._writer.response if self._writer is not None else self._response
        return response if response is not None else web.Response(status=499)

    def end(self, outcome: Outcome, status: int, error: str | None = None) -> None:
        self.state, self.outcome, self.status, self.error = State.ENDED, outcome, status, error

    def close(self) -> None:
        """The exchange is over: settles its expense."""
        self.duration = self.generation.registry.clock() - self.started
        if self._dispatch is not None and self._dispatch.plan.expense is not None and not self.pays_later:
            paid = self.outcome != "error" and self.cache != "hit"
            self._dispatch.plan.settle(self.resolved if paid else None, self.usage, self.bytes_sent)

    def report(self, *, more: bool = False) -> None:
        """The one fact that metrics and log receive of this request, once it is closed. `more`: see `RequestEnded`."""
        generation, walk, summary, dispatch = self.generation, self.walk, self._summary, self._dispatch
        usage, resolved, first = self.usage, self.resolved, self.first_byte_at
        target = resolved.target if resolved is not None else None
        notes = dispatch.notes if dispatch is not None else ()
        ended = RequestEnded(
            request_id=self.request_id,
            endpoint=self.door.name,
            requested=summary.model if summary is not None else "",
            alias=walk.chain.alias if walk is not None else None,
            provider=target.provider if target is not None else None,
            model=target.model if target is not None else None,
            streaming=summary is not None and summary.stream,
            status=self.status,
            outcome=self.outcome,
            attempts=walk.tried if walk is not None else 0,
            bytes_sent=self.bytes_sent,
            duration=self.duration,
            to_first_byte=first - self.started if first is not None else None,
            prompt_tokens=usage.prompt if usage is not None else None,
            completion_tokens=usage.completion if usage is not None else None,
        )
        # of more than 15 keywords Python would make a dict first
        ended.error, ended.more, ended.started = self.error, more, self.started
        ended.key = self.caller.key.name if self.caller is not None else None
        ended.notes = (*notes, *dict.fromkeys(self._remarks)) if self._remarks else notes
        if walk is not None:
            ended.log, ended.last, ended.last_at = walk.log, walk.trying, walk.trying_at
        ended.cost, ended.avoided = generation.costs(resolved, usage)
        ended.cache, ended.trace = self.cache, self.trace
        if self.saved_usage is not None:
            ended.saved_usage = self.saved_usage
            ended.saved_cost = generation.costs(resolved, self.saved_usage)[0] or 0.0
        generation.registry.observe(ended)
        held = [dispatch]
        self._dispatch = self.walk = dispatch = walk = None  # they hold the prompt; a cancelled task's frames hold this
        free_aside(held, self._freed_aside)


def _kind(error: ProxyError) -> str:
    """The error's word for metrics and log."""
    return error.error_type if isinstance(error, ProviderError) else error.code or error.type
