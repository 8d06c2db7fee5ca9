"""The HTTP surface: all routes, and what happens to a request that matches none."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

import msgspec
from attrs import field

from manallm_proxy import __version__
from manallm_proxy.contract.door import Door
from manallm_proxy.contract.errors import (
    HostNotAllowed,
    InternalError,
    MethodNotAllowed,
    OriginNotAllowed,
    ProxyError,
    UnknownModel,
    UnknownRoute,
)
from manallm_proxy.contract.events import UNROUTED, Crashed, Observer, RequestEnded
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.messages.models import anthropic_list, anthropic_model
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.embed import OllamaEmbeddingsDoor, OllamaEmbedDoor
from manallm_proxy.doors.ollama.errors import ollama_error_body
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.doors.opaque import OpaqueDoor
from manallm_proxy.doors.openai_chat import ChatDoor
from manallm_proxy.doors.openai_completions import CompletionsDoor
from manallm_proxy.doors.openai_embeddings import EmbeddingsDoor
from manallm_proxy.doors.responses.door import ResponsesDoor
from manallm_proxy.doors.responses.store import Bounds, MemoryStore
from manallm_proxy.doors.responses.workers_store import WorkersStore, answer_question
from manallm_proxy.gateway.counting import counted_tokens
from manallm_proxy.gateway.credentials import CALLER, caller_of, new_request_id, request_id_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.hosts import is_allowed_host, is_local
from manallm_proxy.gateway.ollama_api import OllamaAPI
from manallm_proxy.gateway.openapi import description
from manallm_proxy.gateway.operators import Operators
from manallm_proxy.gateway.pipeline import Pipeline
from manallm_proxy.gateway.render import ErrorBody, Renderer
from manallm_proxy.gateway.reports import alias_list, find_model, health_report, in_turns, model_rows, model_sizes
from manallm_proxy.gateway.route_table import Handler, Match, RouteTable, base_url_advice, canonical_path
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.gateway.shared_responses import SharedResponses
from manallm_proxy.gateway.status_page import wants_html
from manallm_proxy.gateway.stored_responses import StoredResponses, not_offered
from manallm_proxy.http_server import web
from manallm_proxy.observe.aioprometheus_internals import TEXT_CONTENT_TYPE
from manallm_proxy.observe.live_feed import LiveFeed
from manallm_proxy.observe.request_log import RequestLog
from manallm_proxy.openai.errors import error_body

DOORS: Final[dict[str, Door]] = {
    "/v1/chat/completions": ChatDoor(),
    "/v1/completions": CompletionsDoor(),
    "/v1/embeddings": EmbeddingsDoor(),
    "/v1/messages": MessagesDoor(),
    "/api/chat": OllamaChatDoor(),
    "/api/generate": OllamaGenerateDoor(),
    "/api/embed": OllamaEmbedDoor(),
    "/api/embeddings": OllamaEmbeddingsDoor(),
    **{f"/v1/{endpoint.path}": OpaqueDoor(endpoint) for endpoint in Endpoint if endpoint.is_opaque},
}
"""Doors by path; each takes POST."""
RESPONSES: Final = "/v1/responses"
"""The path of the one stateful door, of which each gateway makes its own."""
_RESPONSE: Final = (f"{RESPONSES}/{{id}}", f"{RESPONSES.removeprefix('/v1')}/{{id}}")
SERVED: Final = (
    "Served: POST /v1/chat/completions, /v1/completions, /v1/embeddings, "
    "/v1/messages, /v1/messages/count_tokens, /v1/responses, "
    "/v1/audio/..., /v1/images/..., /v1/rerank, /v1/moderations; "
    "GET /v1/models, /v1/models/{id}, /v1/aliases, /v1/health, /health, /readyz, /metrics, /openapi.json, "
    "/v1/requests, /v1/requests/{id}, /v1/explain, /v1/events; "
    "as Ollama: POST /api/chat, /api/generate, /api/embed, /api/embeddings, /api/show; "
    "GET /api/version, /api/tags, /api/ps"
)
FOREIGN: Final = "web pages of this origin may not call: cors.origins does not name it"
HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9-]{1,64}(\s*,\s*[A-Za-z0-9-]{1,64}){0,63}", re.ASCII)


class AllWorkers(Protocol):
    """Asks the other workers what they know."""

    async def ask(self, topic: Literal["metrics", "health", "requests"]) -> str | None:
        """The merged answer of all workers; None if it does not come in time."""

    @property
    def number(self) -> int:
        """This worker's number, from 1."""

    @property
    def count(self) -> int:
        """See `workers_store.OtherWorkers`."""

    async def ask_one(self, worker: int, question: str) -> str | None:
        """See `workers_store.OtherWorkers`."""


class _Summary(msgspec.Struct):
    """What is read of a health report that is passed on."""

    status: str


@define(eq=False)
class Gateway:
    """Takes every request to its handler. ``scraped``: the metrics as of now; called, in a thread, for their text."""

    serving: Serving
    observe: Observer
    scraped: Callable[[], Callable[[], bytes]]
    requests: RequestLog
    feed: LiveFeed
    workers: AllWorkers | None = None
    """None if this is the only process."""
    pipeline: Pipeline = field(init=False)
    renderer: Renderer = field(init=False)
    table: RouteTable = field(init=False)
    operators: Operators = field(init=False)
    responses: MemoryStore = field(init=False)
    """What this process keeps for ``/v1/responses``."""
    shared: SharedResponses = field(init=False)
    """The same, with what all instances keep; it is closed before the generation is."""

    def __attrs_post_init__(self) -> None:
        self.renderer = Renderer(self.serving)
        self.pipeline = Pipeline(self.serving, self.renderer)
        self.table = RouteTable()
        number = self.workers.number if self.workers is not None else 0
        self.responses = MemoryStore(self._clock, self._bounds, number)
        own = WorkersStore(self.responses, self.workers) if self.workers is not None else self.responses
        self.shared = store = SharedResponses(own, lambda: self.generation.answers.link, self._bounds)
        for path, door in {**DOORS, RESPONSES: ResponsesDoor(store)}.items():
            self.table.add("POST", path, self.pipeline.handler(door))
        self.table.add("POST", "/v1/messages/count_tokens", self._count_tokens)
        stored = StoredResponses(self.serving, self.renderer, store)
        self.table.add("GET", f"{RESPONSES}/{{id}}", stored.get)
        self.table.add("DELETE", f"{RESPONSES}/{{id}}", stored.delete)
        self.table.add("GET", f"{RESPONSES}/{{id}}/input_items", stored.input_items)
        self.operators = Operators(self.serving, self.renderer, self.feed, self.requests, self.workers)
        self.operators.add_to(self.table)
        OllamaAPI(self.serving, self.renderer).add_to(self.table)
        for path, handler in self._lists().items():
            self.table.add("GET", path, handler)
        for path, handler in self._operators().items():
            self.table.add("GET", path, handler, forgiving=False)

    def recall(self, question: str) -> str:
        """Answers another worker's `question` from what this process keeps for ``/v1/responses``."""
        return answer_question(self.responses, question)

    def _clock(self) -> float:
        return self.generation.registry.clock()

    def _bounds(self) -> Bounds:
        """The store's limits, from the current configuration."""
        responses = self.generation.config.responses
        return Bounds(responses.memory, responses.ttl)

    def _lists(self) -> dict[str, Handler]:
        return {"/v1/models": self._models, "/v1/models/{id}": self._model, "/v1/aliases": self._aliases}

    def _operators(self) -> dict[str, Handler]:
        return {
            "/health": self._alive,
            "/v1/health": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/openapi.json": self._description,
            "/": self._root,
        }

    @property
    def generation(self) -> Generation:
        """The generation that serves now."""
        return self.serving.generation

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request comes through here. Raises nothing but CancelledError and ConnectionResetError."""
        match = self.table.exact(request.rel_url.raw_path) or self.table.find(request.path)
        refused = self._browser_error(request) if self.serving.generation.is_open_on_loopback else None
        if refused is not None:
            return self._refuse(request, refused, match)
        if match is None:
            return self._refuse(request, _unknown(request.path), None)
        handler = match.route.handler(request.method)
        if handler is None:
            return self._wrong_method(request, match)
        try:
            return await handler(request, match.rest)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except ProxyError as error:
            return self._refuse(request, error, match)
        except Exception as error:
            self.observe(Crashed(f"{request.method} request", error))
            return self._refuse(request, InternalError(), match)

    def _browser_error(self, request: web.BaseRequest) -> ProxyError | None:
        """The error for a browser led here by a page of another site, or by a host name that is not ours; else None."""
        headers = request.headers
        host = headers.get("Host", "")
        if not is_local(host) and request.transport is not None:
            address = request.transport.get_extra_info("sockname")
            hosts = self.generation.config.cors.hosts
            if isinstance(address, tuple) and not is_allowed_host(host, str(address[0]), hosts):
                return HostNotAllowed("this host is not served here; cors.hosts would have to name it")
        if headers.get("Sec-Fetch-Site") == "cross-site" and self.renderer.allowed_origin(request) is None:
            return OriginNotAllowed(FOREIGN)
        return None

    def refusal(self, error: ProxyError) -> tuple[str, bytes]:
        """See `aiohttp_server.Refusal`."""
        id_ = new_request_id()
        self.observe(RequestEnded.refused(error, id_))
        return id_, error_body(error)

    def _refuse(self, request: web.BaseRequest, error: ProxyError, match: Match | None) -> web.Response:
        id_ = request_id_of(request)
        name = match.route.name if match is not None else UNROUTED
        self.observe(RequestEnded.refused(error, id_, name, request.get(CALLER)))
        write, headers = _form_for(request, id_, name if match is not None else canonical_path(request.path))
        return self.renderer.error(request, error, write, {"X-Request-Id": id_, **headers})

    def _wrong_method(self, request: web.BaseRequest, match: Match) -> web.Response:
        if "websocket" in request.headers.get("Upgrade", "").lower():  # clients fall back to POST on a 404
            return self._refuse(request, UnknownRoute("websockets are not served here; send a POST"), match)
        if request.method == "POST" and match.route.name in _RESPONSE and (missing := not_offered(match.rest)):
            return self._refuse(request, missing, match)
        if request.method == "POST" and base_url_advice(request.path):
            return self._refuse(request, _unknown(request.path), match)
        allowed = ", ".join(match.route.methods)
        if request.method == "OPTIONS" and self.renderer.allowed_origin(request):
            return self.renderer.empty(request, _preflight(request, allowed))
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._refuse(request, OriginNotAllowed(FOREIGN), match)
        response = self._refuse(request, MethodNotAllowed(f"this address takes {allowed} only"), match)
        response.headers["Allow"] = allowed
        return response

    async def _models(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        caller = caller_of(request, self.generation)
        rows = model_rows(self.generation, caller)
        if _is_anthropic(request):
            generation = self.generation
            each = (anthropic_model(row, *model_sizes(generation, row["id"], caller)) for row in rows)
            models = await in_turns(each)
            return await self.renderer.long_json(request, anthropic_list(models))
        return await self.renderer.long_json(request, {"object": "list", "data": await in_turns(rows)})

    async def _model(self, request: web.BaseRequest, wanted: str) -> web.Response:
        caller = caller_of(request, self.generation)
        row = find_model(self.generation, wanted, caller)
        if row is None:
            raise UnknownModel("no such model; GET /v1/models lists what is served", param="model")
        if _is_anthropic(request):
            row = anthropic_model(row, *model_sizes(self.generation, wanted, caller))
        return self.renderer.json(request, row)

    async def _count_tokens(self, request: web.BaseRequest, _rest: str) -> web.Response:
        return self.renderer.raw(request, await counted_tokens(request, self.generation), "application/json")

    async def _aliases(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        aliases = await alias_list(self.generation, caller_of(request, self.generation))
        return await self.renderer.long_json(request, aliases)

    async def _health(self, request: web.BaseRequest, _rest: str) -> web.Response:
        caller_of(request, self.generation, admin=True)
        if self.workers is not None and (of_all := await self.workers.ask("health")) is not None:
            usable = msgspec.json.decode(of_all, type=_Summary).status != "unhealthy"
            return self.renderer.raw(request, of_all.encode(), "application/json", 200 if usable else 503)
        usable, report = await health_report(self.generation)
        body = await asyncio.to_thread(msgspec.json.encode, report)  # of thousands of targets, perhaps
        return self.renderer.raw(request, body, "application/json", 200 if usable else 503)

    async def _alive(self, request: web.BaseRequest, _rest: str) -> web.Response:
        return self.renderer.json(request, {"status": "ok"})

    async def _ready(self, request: web.BaseRequest, _rest: str) -> web.Response:
        draining = self.serving.draining
        return self.renderer.json(request, {"status": "draining" if draining else "ready"}, 503 if draining else 200)

    async def _metrics(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        if not self.generation.config.metrics.enabled:
            raise UnknownRoute("metrics are switched off (metrics.enabled)")
        caller_of(request, self.generation, admin=True)
        of_all = await self.workers.ask("metrics") if self.workers is not None else None
        body = of_all.encode() if of_all is not None else await asyncio.to_thread(self.scraped())
        return await self.renderer.long(request, body, TEXT_CONTENT_TYPE)

    async def _description(self, request: web.BaseRequest, _rest: str) -> web.Response:
        return self.renderer.raw(request, await asyncio.to_thread(description), "application/json")

    async def _root(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        if wants_html(request):
            return await self.operators.root(request)
        response = self.renderer.json(request, {"name": "manallm-proxy", "version": __version__})
        response.headers["X-Content-Type-Options"] = "nosniff"  # as on the page at the same address
        return response


def _unknown(path: str) -> UnknownRoute:
    advice = base_url_advice(path)
    return UnknownRoute(f"this address is not served here{': ' if advice else ''}{advice}. {SERVED}")


def _form_for(request: web.BaseRequest, request_id: str, route: str) -> tuple[ErrorBody, Mapping[str, str]]:
    """The function that writes errors for `route` (None: an unknown path), and the headers that go with them.

    A door's path gets the door's format; any other gets that of the API to which the path or the client belongs.
    ``/v1/api/...`` is what an Ollama client makes of a base URL with ``/v1``.
    """
    bare = route.removeprefix("/v1")
    is_ollamas = f"{bare}/".startswith("/api/")
    path = bare if is_ollamas else "/v1" + bare
    door = DOORS.get(path)
    if door is None and (path.startswith("/v1/messages/") or _is_anthropic(request)):
        door = DOORS["/v1/messages"]
    if door is not None:
        return door.error_body, door.headers(request_id)
    return ollama_error_body if is_ollamas else error_body, {}


def _is_anthropic(request: web.BaseRequest) -> bool:
    """Whether this is a client of Anthropic's API: all of them send this header, and no others do."""
    return "anthropic-version" in request.headers


def _preflight(request: web.BaseRequest, methods: str) -> dict[str, str]:
    """CORS headers for an allowed origin: any request header it asks for (SDKs send a dozen ``x-stainless-*``)."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    headers = wanted if HEADER_NAMES.fullmatch(wanted) else "Authorization, Content-Type, X-Request-Id"
    return {"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": headers}
