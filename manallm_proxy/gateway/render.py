"""Responses that no model wrote: the one place for common headers, and the one function that renders an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from manallm_proxy.contract.attempts import RETRY_AFTER_LONGEST, WORTH_A_RETRY, NoProvider
from manallm_proxy.contract.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmbeddingSpaceMismatch,
    InvalidKey,
    KeyLimited,
    KeyRevoked,
    LoopDetected,
    ProxyError,
)
from manallm_proxy.contract.provider_errors import KeyRejected, ProxyRefused
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.origins import allowed_origin
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.http_server import web
from manallm_proxy.http_server.body_writer import write_json
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.openai.json_object import encode, encoder
from manallm_proxy.openai.large import LARGE_BYTES, LARGE_PARTS, free_aside, offload

Headers = Mapping[str, str]
NO_MORE: Final[Headers] = MappingProxyType({})
ErrorBody = Callable[[ProxyError], bytes]
"""Writes an error in the format of the client's door."""

EXPOSED: Final = (
    "X-Mana-LLM-Resolved, X-Mana-LLM-Attempts, X-Mana-LLM-Cache, X-Request-Id, request-id, Retry-After, "
    "x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
"""Headers that a web page's script may read."""


@define(eq=False)
class Renderer:
    """Adds the common headers to every response of this server."""

    serving: Serving

    def common_headers(self, request: web.BaseRequest) -> dict[str, str]:
        """Headers of every response, as of now; with ``Connection: close`` if it is the last one of its connection."""
        headers = {"Server": "manallm-proxy"}
        if self.serving.draining:
            headers["Connection"] = "close"
        if "Origin" in request.headers or self.serving.generation.config.cors.origins:
            headers["Vary"] = "Origin"  # also for clients that are no browsers, or a cache would mix them up
            if origin := self.allowed_origin(request):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = EXPOSED
        return headers

    def allowed_origin(self, request: web.BaseRequest) -> str | None:
        """The request's origin, if it may call."""
        origin = request.headers.get("Origin", "")
        return origin if allowed_origin(origin, self.serving.generation.config.cors.origins) else None

    def error(
        self, request: web.BaseRequest, error: ProxyError, body: ErrorBody, headers: Mapping[str, str]
    ) -> web.Response:
        """The response for `error`; `headers`: those collected for this request so far."""
        error.request_id = headers.get("X-Request-Id")
        all_headers = {**self.common_headers(request), "X-Content-Type-Options": "nosniff", **headers}
        if error.retry_after is not None:
            seconds = max(1, math.ceil(min(error.retry_after, RETRY_AFTER_LONGEST)))
            all_headers["Retry-After"] = str(seconds)
        if isinstance(error, InvalidKey | KeyRevoked):
            all_headers["WWW-Authenticate"] = "Bearer"
        if not is_worth_retrying(error):
            all_headers["x-should-retry"] = "false"
        if isinstance(error, BodyTooLarge | BodyTimeout):
            all_headers["Connection"] = "close"  # the rest of the body will not be read
        return _response(body(error), error.status, all_headers)

    def json(self, request: web.BaseRequest, value: object, status: int = 200) -> web.Response:
        """A JSON answer."""
        return self.raw(request, encode(value), "application/json", status)

    async def long_json(self, request: web.BaseRequest, value: Mapping[str, object]) -> web.StreamResponse:
        """A JSON answer with a list that may have thousands of rows: then it is written, and freed, in a thread."""
        large = any(isinstance(each, list) and len(each) > LARGE_PARTS for each in value.values())
        held = [value]
        del value
        body = await offload(large, encoder(large), held[0])
        free_aside(held, large)
        return await self.long(request, body)

    async def long(
        self, request: web.BaseRequest, body: bytes, content_type: str = "application/json", more: Headers = NO_MORE
    ) -> web.StreamResponse:
        """An answer whose body is ready, and may be megabytes: then it is sent in portions, others in between.

        `more`: headers that it has besides. Raises ConnectionResetError if the client left meanwhile.
        """
        headers = {**self.common_headers(request), "Content-Type": content_type, **more}
        if len(body) <= LARGE_BYTES:
            return _response(body, 200, headers)
        if request.method == "HEAD":
            return _response(b"", 200, {**headers, "Content-Length": str(len(body))})
        response = RawResponse(request, headers, len(body))
        await write_json(request, response, body, self.serving.generation.config.limits)
        return response

    def raw(self, request: web.BaseRequest, body: bytes, content_type: str, status: int = 200) -> web.Response:
        """An answer whose body is ready."""
        headers = {**self.common_headers(request), "Content-Type": content_type}
        return _response(body, status, headers)

    def empty(self, request: web.BaseRequest, headers: Mapping[str, str]) -> web.Response:
        """204, for a browser's preflight."""
        return _response(b"", 204, {**self.common_headers(request), **headers})


def _response(body: bytes, status: int, headers: Mapping[str, str]) -> web.Response:
    response = web.Response(body=body or None, status=status, headers=headers)
    if body and "Content-Type" not in headers:
        response.content_type = "application/json"
    if "Connection" in headers:
        response.force_close()
    return response


def is_worth_retrying(error: ProxyError) -> bool:
    """Whether an SDK's own retry helps soon enough: SDKs wait for ``Retry-After`` without telling their user."""
    if isinstance(error, NoProvider):
        return error.worth_retrying
    if isinstance(error, InvalidKey | KeyRevoked):
        return False  # Claude Code asks ten times more, for three minutes
    if isinstance(error, KeyRejected | ProxyRefused | EmbeddingSpaceMismatch | LoopDetected):
        return False
    if isinstance(error, KeyLimited) and error.retry_after is None:
        return False  # it is too large at any time
    return (error.retry_after or 0.0) <= WORTH_A_RETRY
