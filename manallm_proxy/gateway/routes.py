"""Routes and limits; errors become HTTP here and nowhere else."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import msgspec
from aiohttp import web
from attrs import define, field

from manallm_proxy import __version__
from manallm_proxy.contract.errors import (
    RETRY_AFTER_LONGEST,
    BodyTimeout,
    BodyTooLarge,
    InternalError,
    InvalidKey,
    InvalidRequest,
    KeyRevoked,
    MethodNotAllowed,
    NoProvider,
    OriginNotAllowed,
    Overloaded,
    ProxyError,
    UnknownModel,
    UnknownRoute,
    UnsupportedMedia,
)
from manallm_proxy.contract.events import UNROUTED, Crashed, Observer, RequestEnded
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.provider_errors import KeyRejected, ProviderError
from manallm_proxy.gateway.credentials import CALLER, caller_of, key_of, request_id_of
from manallm_proxy.gateway.exchange import Exchange
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.openapi import description
from manallm_proxy.gateway.reports import alias_list, health_report, model_list
from manallm_proxy.openai.schema import encode, error_body, model_object

PREFIXES: Final = ("/v1", "")
"""Continue drops the ``/v1`` of a base URL without a trailing slash."""
HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9-]{1,64}(\s*,\s*[A-Za-z0-9-]{1,64}){0,63}", re.ASCII)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AllWorkers(Protocol):
    """The way to what several workers know together."""

    async def ask(self, topic: Literal["metrics", "health"]) -> str | None:
        """The merged answer of all workers; None where it does not come in time."""


@define(eq=False)
class Web:
    """The HTTP surface over the snapshot that serves now. ``render_metrics`` gives body and content type."""

    generation: Generation
    """Exchanged as a whole by a reload; a request reads it once."""
    observe: Observer
    render_metrics: Callable[[], tuple[bytes, str]]
    link: AllWorkers | None = None
    """Where there are several workers: who knows what all of them have to say."""
    draining: bool = False
    exchanges: set[Exchange] = field(factory=set)
    idle: asyncio.Event = field(factory=asyncio.Event)
    """Set while no exchange is in flight."""

    def __attrs_post_init__(self) -> None:
        self.idle.set()

    def application(self) -> web.Application:
        """The aiohttp application with all routes, each with and without ``/v1``."""
        app = web.Application(middlewares=[self._render_errors], client_max_size=2**62)
        app.on_response_prepare.append(self._finish_headers)
        for path, handler in self.pipeline().items():
            app.router.add_route("POST", path, handler)
        for prefix in PREFIXES:
            app.router.add_get(f"{prefix}/models", self._models)
            app.router.add_get(f"{prefix}/models/{{id:.+}}", self._model)
            app.router.add_get(f"{prefix}/aliases", self._aliases)
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/health", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._description)
        app.router.add_get("/", self._root)
        return app

    def pipeline(self) -> dict[str, Handler]:
        """By path, what takes a POST there. It needs no router and no middleware: see `server.Runner`."""
        return {f"{prefix}/{end.path}": self._pipeline(end) for end in Endpoint for prefix in PREFIXES}

    def _pipeline(self, endpoint: Endpoint) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            generation = self.generation
            limits = generation.config.limits
            exchange = Exchange(
                request,
                endpoint,
                generation,
                request_id_of(request),
                lambda: read_body(request, limits.body, limits.body_timeout),
                self._common,
                generation.registry.clock(),
            )
            try:
                if generation.keyring:
                    exchange.caller = generation.keyring.caller(key_of(request))
                elif "Origin" in request.headers and self._origin(request) is None:
                    raise OriginNotAllowed("web pages of this origin may not call: cors.origins does not name it")
                if len(self.exchanges) >= limits.concurrent_requests:
                    raise Overloaded("the proxy has as many requests in hand as it may; try again", retry_after=1.0)
                if exchange.caller is not None:
                    exchange.caller.enter(exchange.started)
            except ProxyError as error:
                exchange.refuse(error)
                return self._error_response(request, error, exchange)
            self.exchanges.add(exchange)
            self.idle.clear()
            generation.hold()
            try:
                return await exchange.answer()
            except (asyncio.CancelledError, ConnectionResetError):
                raise
            except Exception as error:
                return self._failed(request, error, exchange)
            finally:
                self.exchanges.discard(exchange)
                if not self.exchanges:
                    self.idle.set()
                generation.release()
                if exchange.caller is not None:
                    exchange.caller.leave()
                exchange.report()

        return handle

    def end_revoked(self) -> None:
        """Behind a reload: requests whose key is gone end, each told why."""
        for exchange in list(self.exchanges):
            if exchange.caller is not None and exchange.caller not in self.generation.keyring:
                exchange.interrupt(KeyRevoked())

    @web.middleware
    async def _render_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            if request.method == "OPTIONS" and self._origin(request):
                return web.Response(status=204, headers=_preflight(request, allowed))
            told = MethodNotAllowed(f"this address takes {allowed} only")
            response = self._error_response(request, told)
            response.headers["Allow"] = allowed
            return response
        except web.HTTPNotFound:
            return self._error_response(request, UnknownRoute(NOT_SERVED))
        except web.HTTPException as error:
            return self._error_response(request, InvalidRequest(f"refused with status {error.status}"))
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:
            return self._failed(request, error)

    def _failed(self, request: web.Request, error: Exception, exchange: Exchange | None = None) -> web.Response:
        if not isinstance(error, ProxyError):
            self.observe(Crashed(f"{request.method} request", error))
            error = InternalError("an internal error; the proxy's log has the details")
        return self._error_response(request, error, exchange)

    def _error_response(
        self, request: web.Request, error: ProxyError, exchange: Exchange | None = None
    ) -> web.Response:
        if exchange is not None:
            headers = exchange.headers()
        else:
            headers = {"X-Request-Id": request_id_of(request)}
            resource = request.match_info.route.resource
            route = resource.canonical if resource is not None else UNROUTED
            self.observe(RequestEnded.refused(error, headers["X-Request-Id"], route, request.get(CALLER)))
        extra: dict[str, Any] = {}
        if isinstance(error, NoProvider):
            extra["attempts"] = [line.to_json() for line in error.attempts]
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(min(error.retry_after, RETRY_AFTER_LONGEST))))
        if isinstance(error, InvalidKey | KeyRevoked):
            headers["WWW-Authenticate"] = "Bearer"
        if not _is_worth_retrying(error):
            headers["x-should-retry"] = "false"
        body = encode(error_body(error, **extra))
        response = web.Response(body=body, status=error.status, content_type="application/json", headers=headers)
        if isinstance(error, BodyTooLarge | BodyTimeout) or "Connection" in headers:
            response.force_close()  # the rest of a body is nobody's business any more
        return response

    async def _finish_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._common(request))
        if self.draining:
            response.force_close()

    def _common(self, request: web.Request) -> dict[str, str]:
        """Headers of every answer, as of now. ``Connection: close`` among them: it is its connection's last."""
        headers = {"Server": "manallm-proxy"}
        if self.draining:
            headers["Connection"] = "close"
        if self.generation.config.cors.origins:
            headers["Vary"] = "Origin"  # also on what no browser asked for, or a cache would mix them up
            if origin := self._origin(request):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = (
                    "X-Mana-LLM-Resolved, X-Mana-LLM-Attempts, X-Request-Id, Retry-After, "
                    "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests"
                )
        return headers

    def _origin(self, request: web.Request) -> str | None:
        """The request's origin, where the configuration lets it in."""
        origin = request.headers.get("Origin")
        origins = self.generation.config.cors.origins
        return origin if origin and ("*" in origins or origin in origins) else None

    async def _models(self, request: web.Request) -> web.Response:
        caller = caller_of(request, self.generation)
        return _json({"object": "list", "data": model_list(self.generation, caller)})

    async def _model(self, request: web.Request) -> web.Response:
        caller, wanted = caller_of(request, self.generation), request.match_info["id"]
        for row in model_list(self.generation, caller):
            if row["id"] == wanted:
                return _json(row)
        provider = wanted.partition("/")[0]
        health = self.generation.registry.providers.get(provider)
        if health is not None and health.configured and not self.generation.catalog.knows(provider):
            self.generation.resolve(wanted)  # a provider that does not list its models may have it
            if caller is None or caller.may_use(wanted):
                return _json(model_object(wanted, 0, provider))
        raise UnknownModel("no such model; GET /v1/models lists what is served", param="model")

    async def _aliases(self, request: web.Request) -> web.Response:
        return _json(alias_list(self.generation, caller_of(request, self.generation)))

    async def _health(self, request: web.Request) -> web.Response:
        caller_of(request, self.generation, admin=True)
        if self.link is not None and (of_all := await self.link.ask("health")) is not None:
            report = msgspec.json.decode(of_all)
            return _json(report, status=503 if report["status"] == "unhealthy" else 200)
        usable, report = health_report(self.generation)
        return _json(report, status=200 if usable else 503)

    async def _alive(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        return _json({"status": "draining" if self.draining else "ready"}, status=503 if self.draining else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self.generation.config.metrics.enabled:
            raise UnknownRoute("metrics are switched off (metrics.enabled)")
        caller_of(request, self.generation, admin=True)
        body, content_type = self.render_metrics()
        if self.link is not None and (of_all := await self.link.ask("metrics")) is not None:
            body = of_all.encode()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _description(self, request: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(description), content_type="application/json")

    async def _root(self, request: web.Request) -> web.Response:
        return _json({"name": "manallm-proxy", "version": __version__})


NOT_SERVED: Final = (
    "this address is not served here. Served: POST /v1/chat/completions, /v1/completions, /v1/embeddings; "
    "GET /v1/models, /v1/models/{id}, /v1/aliases, /v1/health, /health, /readyz, /metrics, /openapi.json"
)


def _preflight(request: web.Request, methods: str) -> dict[str, str]:
    """What an origin that is let in may send: any header it asks for (SDKs send a dozen ``x-stainless-*``)."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    headers = wanted if HEADER_NAMES.fullmatch(wanted) else "Authorization, Content-Type, X-Request-Id"
    return {"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": headers}


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), status=status, content_type="application/json")


def _is_worth_retrying(error: ProxyError) -> bool:
    """Whether an SDK's own quick retry may help (wire.md A.3)."""
    if isinstance(error, NoProvider):
        return error.worth_retrying
    if isinstance(error, KeyRejected):
        return False
    return not (isinstance(error, ProviderError) and (error.retry_after or 0) > RETRY_AFTER_LONGEST)


async def read_body(request: web.Request, limit: int, patience: float) -> bytes:
    """The body, at most `limit` bytes, none of its chunks later than `patience` seconds behind the one before."""
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMedia("send the body without Content-Encoding")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    try:
        if request.content.is_eof():  # it came with its head, as most do: no clock need be set
            parts.append(request.content.read_nowait())
            if len(parts[0]) > limit:
                raise _too_large(limit)
            return parts[0]
        async with asyncio.timeout(patience) as stall:
            while part := await request.content.readany():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                stall.reschedule(loop.time() + patience)
    except TimeoutError:
        raise BodyTimeout(f"the body stalled for {patience:g} s") from None
    except web.RequestPayloadError:
        raise InvalidRequest("the body's transfer encoding is broken") from None
    return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the limit of {limit} bytes (limits.body)")
