"""One client's request from its arrival to its last byte: the sequence that floors below only know parts of.

`Exchange.answer` runs it: read the head, resolve the chain, walk it, relay. Whatever happens, it ends in one
`RequestEnded`, and the client is told in-band or by status, never both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from attrs import define, field

from manallm_proxy.contract.errors import InternalError, ProxyError
from manallm_proxy.contract.events import Crashed, DimensionsDiffer, Outcome, RequestEnded
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary, Usage
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.http_server.body_writer import json_response, write_json
from manallm_proxy.http_server.stream_writer import ComposedSink, Pace, StreamWriter
from manallm_proxy.openai.schema import EMBEDDING, read_summary, vector_length
from manallm_proxy.routing import relay
from manallm_proxy.routing.failover import Served, Walk

REQUIRED: Final[dict[Endpoint, tuple[str, type | tuple[type, ...]]]] = {
    Endpoint.CHAT: ("messages", list),
    Endpoint.COMPLETIONS: ("prompt", (str, list, type(None))),
    Endpoint.EMBEDDINGS: ("input", (str, list)),
}
"""The key without which no provider need be asked, and its types."""


@define(eq=False)
class Exchange:
    """State of one request in flight."""

    request: web.Request
    endpoint: Endpoint
    generation: Generation
    request_id: str
    read_body: Callable[[], Awaitable[bytes]]
    common: Callable[[web.Request], dict[str, str]]
    """Headers of every answer of this server, as of now."""
    started: float
    caller: Caller | None = None
    """Whose key it came with; None where none is asked for."""
    head: RequestSummary | None = None
    walk: Walk | None = None
    resolved: Entry | None = None
    usage: Usage | None = None
    outcome: Outcome = "ok"
    status: int = 200
    error: str | None = None
    bytes_sent: int = 0
    first_byte_at: float | None = None
    interrupted: ProxyError | None = None
    """Why it was ended from outside."""
    _committed: bool = False
    _whole: web.StreamResponse | None = None
    """A complete answer that is being sent."""
    _task: asyncio.Task[object] | None = field(factory=asyncio.current_task)
    _sink: StreamWriter | ComposedSink | None = None

    async def answer(self) -> web.StreamResponse:
        """The response, complete where it is a stream. ProxyError where no byte of one has left."""
        try:
            return await self._answer()
        except asyncio.CancelledError:
            if self.interrupted is None:
                self._ended("client_gone", 499)
                raise
            assert self._task is not None
            self._task.uncancel()
            return await self._told(self.interrupted)
        except ConnectionResetError:
            # a write to a client that left, or that has been cut since it did not read
            self._ended("client_gone", 499)
            return self._cut()
        except ProxyError as error:
            return await self._told(error)
        except Exception as error:
            self.generation.registry.observe(Crashed(f"{self.endpoint.path} request", error, self.request_id))
            return await self._told(InternalError("an internal error; the proxy's log has the details"))
        finally:
            if self._sink is not None:
                self._sink.close()
                self.bytes_sent = self._sink.bytes_sent
                self.first_byte_at = self._sink.first_at

    def refuse(self, error: ProxyError) -> None:
        """The exchange does not even begin."""
        self._ended("error", error.status, error.code)
        self.report()

    def interrupt(self, error: ProxyError) -> None:
        """Ends the exchange from outside: the client is told of `error`, its provider is left. Once is enough."""
        if self.interrupted is None and self._task is not None:
            self.interrupted = error
            self._task.cancel()

    def headers(self) -> dict[str, str]:
        """What every answer of the pipeline carries, as far as it is known by now."""
        headers = self.common(self.request)
        headers["X-Request-Id"] = self.request_id
        if self.walk is not None:
            headers["X-Mana-LLM-Attempts"] = str(self.walk.tried)
        if self.resolved is not None:
            headers["X-Mana-LLM-Resolved"] = str(self.resolved.target)
        if self.caller is not None:
            headers |= self.caller.rate_headers(self.generation.registry.clock())
        return headers

    async def _answer(self) -> web.StreamResponse:
        body = await self.read_body()
        need = EMBEDDING if self.endpoint is Endpoint.EMBEDDINGS else None
        self.head = read_summary(body, REQUIRED[self.endpoint], need)
        call = Call(self.endpoint, self.head, body, self.request_id)
        chain = self.generation.resolve(self.head.model, self.caller)
        self.walk = Walk(chain, self.generation.registry, self.request_id)
        if self.head.stream and self.endpoint is not Endpoint.EMBEDDINGS:
            return await self._stream(call, self.walk)
        return await self._complete(call, self.walk)

    async def _complete(self, call: Call, walk: Walk) -> web.StreamResponse:
        catalog, upstreams = self.generation.catalog, self.generation.upstreams
        served = await walk.run(
            lambda entry: relay.complete(upstreams[entry.target.provider], catalog, call, entry), self._asked
        )
        self.resolved = served.entry
        self.generation.registry.served(served.entry.target, served.permit)
        self.usage = served.value.usage
        body = served.value.body
        self.first_byte_at = self.generation.registry.clock()
        self.bytes_sent = len(body)
        if call.endpoint is Endpoint.EMBEDDINGS and walk.chain.alias:
            self._compare_dimensions(walk.chain.alias, vector_length(body))
        self._whole = response = json_response(self.request, body, self.headers())
        await write_json(self.request, response, body, self.generation.config.limits.write_timeout)
        return response

    async def _stream(self, call: Call, walk: Walk) -> web.StreamResponse:
        catalog, upstreams = self.generation.catalog, self.generation.upstreams

        def attempt(entry: Entry) -> Awaitable[relay.Opened]:
            return relay.open_stream(upstreams[entry.target.provider], catalog, call, entry)

        patience = self.generation.config.streaming.early_heartbeat
        if patience > 0:
            served = await self._walk_aloud(walk.run(attempt, self._asked), patience)
        else:
            served = await walk.run(attempt, self._asked)
        self.resolved, self._committed = served.entry, True
        carrier = relay.Relay(served, self.generation.registry)
        try:
            sink = self._sink_for(served)
            await carrier.run(sink)
        finally:
            self.usage = served.value.stream.usage
            served.permit.released()  # harmless where the relay said how it ended
        if carrier.error is not None:
            self._ended("broken", 200, carrier.error.error_type)
        response = sink.response
        assert response is not None
        return response

    async def _walk_aloud(self, walking: Awaitable[Served[relay.Opened]], patience: float) -> Served[relay.Opened]:
        """The walk, with 200 and comments once it takes over `patience` seconds (``early_heartbeat``).

        The status is given away by that: from then on a failure is told in-band.
        """
        task = asyncio.ensure_future(walking)
        try:
            while True:
                done, _ = await asyncio.wait([task], timeout=patience)
                if done:
                    return task.result()
                if self._sink is None:
                    self._sink = StreamWriter(self.request, self.headers(), self._pace)
                assert isinstance(self._sink, StreamWriter)
                await self._sink.say_something()
        except BaseException:
            task.cancel()
            [served] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(served, Served):  # it ended well at the very moment that the client left
                await served.value.stream.aclose()
                served.permit.released()
            raise

    def _sink_for(self, served: Served[relay.Opened]) -> StreamWriter | ComposedSink:
        stream = served.value.stream
        if self._sink is None:
            composed = any(batch.events for batch in served.value.held)
            self._sink = (ComposedSink if composed else StreamWriter)(self.request, self.headers(), self._pace)
        if isinstance(self._sink, StreamWriter):
            self._sink.commentable = lambda: stream.commentable
        return self._sink

    @property
    def _pace(self) -> Pace:
        config = self.generation.config
        return Pace(config.streaming.heartbeat, config.limits.write_timeout)

    @property
    def _asked(self) -> str:
        """What the message of a 503 calls it: a known alias or target, or nothing of the client's."""
        assert self.walk is not None
        return self.walk.chain.alias or str(self.walk.chain.entries[0].target)

    def _compare_dimensions(self, alias: str, dimensions: int | None) -> None:
        assert self.resolved is not None
        if dimensions is None:
            return
        target = str(self.resolved.target)
        first, length = self.generation.dimensions.setdefault(alias, (target, dimensions))
        if length != dimensions:
            self.generation.registry.observe(DimensionsDiffer(alias, first, length, target, dimensions))

    async def _told(self, error: ProxyError) -> web.StreamResponse:
        """The client hears of `error`: in-band where a stream has begun, else whoever renders statuses does."""
        kind = error.error_type if isinstance(error, ProviderError) else error.code or error.type
        if isinstance(error, ProviderError) and self.walk is not None and error.target:
            self.resolved = next((e for e in self.walk.chain if str(e.target) == error.target), self.resolved)
        if self._whole is not None:  # its head has left: no second answer may follow
            self._ended("broken", self.status, kind)
            return self._cut()
        committed = self._committed
        sink = self._sink
        if sink is None or sink.response is None:
            self._ended("error", error.status, kind)
            raise error
        self._ended("broken" if committed else "error", 200, kind)
        try:
            await sink.fail(error)
        except ConnectionResetError:
            return self._cut()
        return sink.response

    def _cut(self) -> web.StreamResponse:
        """The connection is of no use any more: no last chunk, so that nobody takes it for an end."""
        if self.request.transport is not None:
            self.request.transport.abort()
        response = self._sink.response if self._sink is not None else self._whole
        return response if response is not None else web.Response(status=499)

    def _ended(self, outcome: Outcome, status: int, error: str | None = None) -> None:
        self.outcome, self.status, self.error = outcome, status, error

    def report(self) -> None:
        """The one fact that metrics and log hear of this request."""
        registry = self.generation.registry
        now = registry.clock()
        target = self.resolved.target if self.resolved is not None else None
        first = self.first_byte_at
        registry.observe(
            RequestEnded(
                request_id=self.request_id,
                endpoint=self.endpoint.path,
                requested=self.head.model if self.head is not None else "",
                alias=self.walk.chain.alias if self.walk is not None else None,
                provider=target.provider if target is not None else None,
                model=target.model if target is not None else None,
                streaming=bool(self.head is not None and self.head.stream),
                status=self.status,
                outcome=self.outcome,
                attempts=self.walk.tried if self.walk is not None else 0,
                bytes_sent=self.bytes_sent,
                duration=now - self.started,
                to_first_byte=first - self.started if first is not None else None,
                prompt_tokens=self.usage.prompt if self.usage is not None else None,
                completion_tokens=self.usage.completion if self.usage is not None else None,
                error=self.error,
                key=self.caller.key.name if self.caller is not None else None,
            )
        )
