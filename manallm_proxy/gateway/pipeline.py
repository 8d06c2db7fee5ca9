"""The way of every request for a model: authentication, limits, one exchange, one report."""

from __future__ import annotations

import asyncio

from attrs import field

from manallm_proxy.contract.door import Door
from manallm_proxy.contract.errors import KeyRevoked, LoopDetected, OriginNotAllowed, Overloaded, ProxyError
from manallm_proxy.contract.events import Crashed
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.credentials import key_of, request_id_of
from manallm_proxy.gateway.exchange import Exchange
from manallm_proxy.gateway.hops import MOST as MOST_HOPS
from manallm_proxy.gateway.hops import hops_of
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.route_table import Handler
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.gateway.shared_limits import SharedLimits
from manallm_proxy.gateway.trace_context import start_trace
from manallm_proxy.http_server import web


@define(eq=False)
class Pipeline:
    """``exchanges`` are in flight.

    A request takes a place only once its body is complete, so that slow senders keep nobody out.
    """

    serving: Serving
    renderer: Renderer
    exchanges: set[Exchange] = field(factory=set)
    placed: set[Exchange] = field(factory=set)
    """Exchanges that have a place."""
    _closed: list[Exchange] = field(factory=list, repr=False)
    """Those that are over but not yet reported."""
    _last: asyncio.Future[None] | None = field(default=None, repr=False)
    """Of `until_idle`."""

    def handler(self, door: Door) -> Handler:
        """The handler for POST requests to `door`."""

        async def handle(request: web.BaseRequest, _rest: str) -> web.StreamResponse:
            generation = self.serving.generation
            id_, now = request_id_of(request), generation.registry.clock()
            exchange = Exchange(request, door, generation, self.renderer, id_, now, self.exchanges, self._take)
            if hops := hops_of(request.headers):
                exchange.hops = hops
            if self.serving.traced:
                exchange.trace = start_trace(request.headers)
            try:
                shared = self._admit(exchange)
            except ProxyError as error:
                response = exchange.refuse(error)
                exchange.close()
                exchange.report()
                return response
            self.exchanges.add(exchange)
            generation.hold()
            try:
                return await exchange.answer(shared)
            finally:
                self.leave(exchange)
                generation.release()
                exchange.close()
                self._report(exchange)

        return handle

    def leave(self, exchange: Exchange) -> None:
        """`exchange` is no longer in flight."""
        self.exchanges.discard(exchange)
        if exchange in self.placed:
            self.placed.discard(exchange)
            if exchange.caller is not None:
                exchange.caller.leave()
        if self._last is not None and not self.exchanges and not self._last.done():
            self._last.set_result(None)

    async def until_idle(self) -> None:
        """Returns once nothing was in flight, for a moment at least. One at a time may wait for that."""
        if self.exchanges:
            self._last = asyncio.get_running_loop().create_future()
            await self._last

    def _admit(self, exchange: Exchange) -> SharedLimits | None:
        """Raises the ProxyError that keeps the exchange out before its body is read.

        Returns the shared counter of the key's requests, if this process does not count them alone.
        """
        request, generation = exchange.request, exchange.generation
        if generation.keyring.callers:
            exchange.caller = generation.keyring.caller(key_of(request))
        elif "Origin" in request.headers and self.renderer.allowed_origin(request) is None:
            raise OriginNotAllowed("web pages of this origin may not call: cors.origins does not name it")
        if exchange.hops > MOST_HOPS:
            raise LoopDetected(exchange.hops)
        if len(self.placed) >= (most := generation.config.limits.concurrent_requests):
            raise _full(most)
        if exchange.caller is None:
            return None
        if exchange.caller.window is not None and generation.limits.link is not None:
            return generation.limits
        exchange.caller.ask(exchange.started)
        return None

    def _take(self, exchange: Exchange) -> None:
        """Takes a place for an exchange whose body is complete, and one of its key. Raises Overloaded, KeyLimited."""
        if len(self.placed) >= (most := exchange.generation.config.limits.concurrent_requests):
            raise _full(most)
        if exchange.caller is not None:
            exchange.caller.enter()
        self.placed.add(exchange)

    def _report(self, exchange: Exchange) -> None:
        """Reports all that end in one turn of the event loop together: what runs many times in a row stays in the
        processor's cache. The last in flight reports at once, so that nobody alone pays for another turn."""
        self._closed.append(exchange)
        if not self.exchanges:
            self._report_closed()
        elif len(self._closed) == 1:
            asyncio.get_running_loop().call_soon(self._report_closed)

    def _report_closed(self) -> None:
        closed, self._closed = self._closed, []
        for number, exchange in enumerate(closed, 1):
            try:
                exchange.report(more=number < len(closed))
            except Exception as error:  # a bug in the report of one is not to cost the others theirs
                exchange.generation.registry.observe(Crashed("request report", error, exchange.request_id))

    def end_revoked(self) -> None:
        """After a reload: ends the requests whose key was removed, each with that error."""
        keyring = self.serving.generation.keyring
        for exchange in list(self.exchanges):
            if exchange.caller is not None and exchange.caller not in keyring:
                exchange.interrupt(KeyRevoked())


def _full(most: int) -> Overloaded:
    return Overloaded(
        f"the proxy has {most} requests in hand, as many as it may (limits.concurrent_requests); try again",
        retry_after=1.0,
    )
