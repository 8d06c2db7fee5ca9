"""The routes for operators: recent requests, what a walk would do now, the live feed, the status page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, Protocol

import msgspec
from attrs import field

from manallm_proxy import __version__
from manallm_proxy.contract.errors import Overloaded, ProxyError, ShuttingDown, UnknownRequest
from manallm_proxy.contract.records import define
from manallm_proxy.gateway import request_filters
from manallm_proxy.gateway.explain import ALL, DOORS, explain, explain_all
from manallm_proxy.gateway.operator_access import OperatorAccess
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.reports import alias_list, health_report
from manallm_proxy.gateway.route_table import RouteTable
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.gateway.status_page import StatusPage
from manallm_proxy.http_server import web
from manallm_proxy.http_server.event_stream import Frames, send_events
from manallm_proxy.observe.live_feed import LiveFeed, Reader
from manallm_proxy.observe.request_log import RequestLog
from manallm_proxy.openai.json_object import encode

READERS_LIMIT: Final = 100
"""Max readers of the live feed per worker."""


_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class AskAll(Protocol):
    """Asks all workers."""

    async def ask(self, topic: Literal["requests", "health"]) -> str | None:
        """The recent requests of each worker, as a JSON array of arrays, or the merged health; None on timeout."""


@define(eq=False)
class Operators:
    """``log`` and ``feed`` are this process's own."""

    serving: Serving
    renderer: Renderer
    feed: LiveFeed
    log: RequestLog
    workers: AskAll | None = None
    access: OperatorAccess = field(init=False)
    page: StatusPage = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.access = OperatorAccess(self.serving, self.renderer)
        self.page = StatusPage(self.renderer, self.access)
        self.feed.follow = self._follow

    def add_to(self, table: RouteTable) -> None:
        """Adds the routes, with exact paths only: an operator who hides one in nginx names only that path."""
        table.add("GET", "/v1/requests", self._requests, forgiving=False)
        table.add("GET", "/v1/requests/{id}", self._request, forgiving=False)
        table.add("GET", "/v1/explain", self._explain, forgiving=False)
        table.add("GET", "/v1/events", self._events, forgiving=False)
        self.page.add_to(table)

    def _follow(self, on: bool) -> None:
        self.serving.followed = on

    async def _requests(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        self.access.check(request)
        request_filters.check(request.query, self.serving.generation.config)
        body = await asyncio.to_thread(_selected, dict(request.query), await self._all())
        return await self.renderer.long(request, body, more=_HEADERS)

    async def _request(self, request: web.BaseRequest, id_: str) -> web.Response:
        self.access.check(request)
        row = self.log.find(id_) or await self._elsewhere(id_)
        if row is None:
            raise UnknownRequest("no such request among the last ones; GET /v1/requests lists those that are kept")
        return self._json(request, row)

    async def _elsewhere(self, id_: str) -> dict[str, Any] | None:
        """The request with this id that another worker answered."""
        rows = await asyncio.to_thread(await self._all())
        return next((row for row in rows if row["id"] == id_), None)

    async def _all(self) -> Callable[[], list[dict[str, Any]]]:
        """The recent requests of all workers, newest first; to be called in a thread."""
        parts = await self.workers.ask("requests") if self.workers is not None else None
        return self.log.rows if parts is None else partial(_merged, parts)

    async def _explain(self, request: web.BaseRequest, _rest: str) -> web.Response:
        self.access.check(request)
        request_filters.reject_unknown(request.query, ("model", "door"))
        request_filters.one_of(request.query, "door", DOORS)
        model, door = request.query.get("model", ""), request.query.get("door")
        generation = self.serving.generation
        found = await explain_all(generation, door) if model == ALL else explain(generation, model, door)
        return self._json(request, found)

    async def root(self, request: web.BaseRequest) -> web.StreamResponse:
        """The status page; if no key is required, with its initial data. Raises AdminOnly."""
        first = None
        with contextlib.suppress(ProxyError):
            self.access.check(request)
            first = await self._first()
        return await self.page.index(request, first)

    async def _first(self) -> dict[str, Any]:
        generation = self.serving.generation
        parts = await self.workers.ask("health") if self.workers is not None else None
        health = msgspec.Raw(parts.encode()) if parts is not None else (await health_report(generation))[1]
        rest = {**await alias_list(generation), **await explain_all(generation)}
        return {"version": __version__, "health": health, **rest}

    def _json(self, request: web.BaseRequest, value: object) -> web.Response:
        response = self.renderer.json(request, value)
        response.headers.update(_HEADERS)
        return response

    async def _events(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        self.access.check(request)
        headers = {**self.renderer.common_headers(request), "X-Content-Type-Options": "nosniff"}
        if request.method == "HEAD":
            return await self.renderer.long(request, b"", "text/event-stream", _HEADERS)
        if self.serving.draining:
            raise ShuttingDown("the proxy is shutting down", retry_after=1.0)
        if len(self.feed.readers) >= READERS_LIMIT:
            raise Overloaded(f"the live feed has {READERS_LIMIT} readers, as many as it may have", retry_after=5.0)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        reader = self.feed.subscribe(request.headers.get("Last-Event-ID"), transport.abort)
        try:
            return await send_events(request, headers, lambda: self._read(request, reader))
        finally:
            self.feed.leave(reader)

    async def _read(self, request: web.BaseRequest, reader: Reader) -> Frames | None:
        """The next events; None ends the feed, also if a reload has revoked this reader's access."""
        events = await reader.next()
        with contextlib.suppress(ProxyError):
            self.access.check(request)
            return None if events is None else [(each.id, each.kind, each.data) for each in events]
        return None


def _merged(parts: str) -> list[dict[str, Any]]:
    """The requests of all workers, newest first. To be called in a thread, as what follows."""
    rows: list[dict[str, Any]] = [row for part in msgspec.json.decode(parts) for row in part]
    rows.sort(key=lambda row: str(row["time"]), reverse=True)
    return rows[: request_filters.MOST]


def _selected(query: Mapping[str, str], rows: Callable[[], list[dict[str, Any]]]) -> bytes:
    return encode({"requests": request_filters.select(query, rows())})
