"""The one table of routes: paths and methods to handlers, with 404, 405, OPTIONS and HEAD.

Slips that come from joining a base URL with a path (``//v1/...``, ``/v1//...``, ``/v1/v1/...``, a trailing slash) are
forgiven, and so is ``/openai/v1/...``, as Groq's and Azure's clients have it below any base URL; but never for an
operator's route: in nginx, ``/metrics`` is hidden by its exact path.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define, frozen
from manallm_proxy.http_server import web

Handler = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]
"""Takes the request and the ``{id}`` of its path; empty if the route has none."""

_SLASHES: Final = re.compile(r"/{2,}")
_OF_A_CLOUD: Final = re.compile(r"^(?:/v1)*/openai(?=/v1/)")
_REPEATED: Final = re.compile(r"(?:/v1)+(?=/|$)")
_OPENAI: Final = "(?:chat/completions|completions|embeddings|responses)"
_BASE_URLS: Final = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (rf"^(?:/v1)?/{_OPENAI}/{_OPENAI}/?$", "OpenAI's clients take a base URL that ends in /v1"),
        (rf"^/api(?:/v1)?/{_OPENAI}/?$", "OpenAI's clients take a base URL that ends in /v1"),
        (r"^(?:/v1)?/messages(?:/v1)?/messages/?$", "Anthropic's clients take a base URL without a path"),
        (r"^/(?:v1|api)/api/", "Ollama's clients take an address without a path"),
        (r"^/openai/deployments/", "of Azure's API version 'v1' is served, with addresses that begin with /openai/v1"),
        (
            r":(?:(?:stream)?[gG]enerateContent|(?:batchE|e)mbedContents?|countTokens)$",
            "it is of Gemini's own API, and Gemini's models are served by OpenAI's",
        ),
    )
)


@define
class Route:
    """One path. ``name``: the path as documented, used in metrics."""

    name: str
    forgiving: bool
    handlers: dict[str, Handler] = field(factory=dict, repr=False)
    """Handlers by HTTP method. Not in the ``repr``, which would hold the gateway's own."""

    @property
    def methods(self) -> list[str]:
        """The value of ``Allow``."""
        return sorted({*self.handlers, *(["HEAD"] if "GET" in self.handlers else [])})

    def handler(self, method: str) -> Handler | None:
        """The handler for `method`. HEAD uses GET's; aiohttp leaves the body out."""
        return self.handlers.get("GET" if method == "HEAD" else method)


@frozen
class Match:
    """A route, and the ``{id}`` of the path."""

    route: Route
    rest: str = ""


@define
class RouteTable:
    """Looks up exact paths first, then those with an ``{id}``, longest first."""

    _exact: dict[str, Match] = field(factory=dict)
    _open: dict[tuple[str, str], Route] = field(factory=dict)
    """Routes with an id, by the parts of the path before and after it."""

    def add(self, method: str, path: str, handler: Handler, *, forgiving: bool = True) -> None:
        """Adds a route. A path below ``/v1`` is also served without that prefix: Continue drops it from a base URL.

        `forgiving` False, for an operator's route: it has exactly one path.
        """
        paths = [path, path.removeprefix("/v1")] if forgiving and path.startswith("/v1/") else [path]
        for each in paths:
            before, variable, after = each.partition("{id}")
            if variable:
                route = self._open.setdefault((before, after), Route(each, forgiving))
                self._open = dict(sorted(self._open.items(), key=lambda item: -len(item[1].name)))
            else:
                route = self._exact.setdefault(each, Match(Route(each, forgiving))).route
            route.handlers[method] = handler

    def served(self) -> set[tuple[str, str]]:
        """Path and method of every route."""
        routes = [match.route for match in self._exact.values()] + list(self._open.values())
        return {(route.name, method) for route in routes for method in route.handlers}

    def find(self, path: str) -> Match | None:
        """The match for `path`, which is decoded and has no query; None if there is none."""
        match = self._exact.get(path) or self._find_open(path)
        if match is not None:
            return match
        meant = canonical_path(path)
        match = self._exact.get(meant) or self._find_open(meant)
        return match if match is not None and match.route.forgiving else None

    def exact(self, path: str) -> Match | None:
        """As `find`, but only for exactly written paths, in one look-up."""
        return self._exact.get(path)

    def _find_open(self, path: str) -> Match | None:
        for (before, after), route in self._open.items():
            if path.startswith(before) and path.endswith(after):
                rest = path[len(before) : len(path) - len(after)]
                rest = rest.strip("/") if route.forgiving else rest  # no id begins or ends with a slash
                if rest:
                    return Match(route, rest)
        return None


def base_url_advice(path: str) -> str:
    """What is wrong with the base URL of a client that asks for the unknown `path`; empty if that is not known."""
    return next((advice for pattern, advice in _BASE_URLS if pattern.search(path)), "")


def canonical_path(path: str) -> str:
    """`path` with the forgiven slips corrected."""
    path = _OF_A_CLOUD.sub("", _SLASHES.sub("/", path))
    path = _REPEATED.sub("/v1", path, count=1)
    return path.rstrip("/") or "/"
