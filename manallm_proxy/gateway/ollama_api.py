"""Ollama's API except for completions: the lists that its clients ask for first, and the routes that are refused."""

from __future__ import annotations

import time
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.errors import OperationNotSupported, UnknownModel
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.ollama.models import VERSION, ModelRow, tagged
from manallm_proxy.doors.ollama.request import read_object
from manallm_proxy.gateway.body_reader import read_request
from manallm_proxy.gateway.credentials import caller_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.likely import first_usable
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.reports import find_model, in_turns, model_rows
from manallm_proxy.gateway.route_table import RouteTable
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.http_server import web
from manallm_proxy.openai.request_fields import optional

MANAGEMENT: Final = (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("GET", "/api/blobs/{id}"),
    ("POST", "/api/blobs/{id}"),
)
"""Routes that change which models a server has. They are refused, since the proxy has no models of its own."""


@define
class OllamaAPI:
    """Answers from what probes have learned, and never waits for a provider."""

    serving: Serving
    renderer: Renderer
    _since: float = field(factory=time.time)
    """Used for an unknown time of modification; seconds since the epoch."""

    def add_to(self, table: RouteTable) -> None:
        table.add("GET", "/api/version", self._version)
        table.add("GET", "/api/tags", self._tags)
        table.add("GET", "/api/ps", self._running)
        table.add("POST", "/api/show", self._show)
        for method, path in MANAGEMENT:
            table.add(method, path, self._not_done)

    @property
    def _generation(self) -> Generation:
        return self.serving.generation

    async def _version(self, request: web.BaseRequest, _rest: str) -> web.Response:
        caller_of(request, self._generation)
        return self.renderer.json(request, {"version": VERSION})

    async def _tags(self, request: web.BaseRequest, _rest: str) -> web.StreamResponse:
        generation = self._generation
        rows = model_rows(generation, caller_of(request, generation))
        shown = (row for row in rows if _is_shown(generation, row["id"]))
        models = (self._listed(generation, row["id"], row["created"]).listed() for row in shown)
        return await self.renderer.long_json(request, {"models": await in_turns(models)})

    async def _running(self, request: web.BaseRequest, _rest: str) -> web.Response:
        """Always empty: only the servers themselves know which models are loaded."""
        caller_of(request, self._generation)
        return self.renderer.json(request, {"models": []})

    async def _show(self, request: web.BaseRequest, _rest: str) -> web.Response:
        generation = self._generation
        caller = caller_of(request, generation)
        asked, _ = await read_request(request, generation.config.limits, lambda body, _: read_object(body))
        name = optional(asked, "model", str) or optional(asked, "name", str) or ""
        chain = generation.resolve(name, caller)
        row = find_model(generation, name or chain.alias or "", caller)
        if row is None:
            raise UnknownModel("no provider lists this model; GET /api/tags lists what is served", param="model")
        entry = first_usable(generation, chain)
        shown = self._row(generation, chain.alias or name, entry, row["created"]).shown()
        return self.renderer.json(request, shown)

    async def _not_done(self, request: web.BaseRequest, _rest: str) -> web.Response:
        caller_of(request, self._generation)
        raise OperationNotSupported(
            "this proxy has no models of its own: manage them where they run; GET /api/tags lists them"
        )

    def _listed(self, generation: Generation, name: str, created: int) -> ModelRow:
        """The row for a listed name: an alias, or a full target."""
        chain = generation.config.aliases.get(name)
        if chain is not None:
            return self._row(generation, name, first_usable(generation, chain), created)
        target = Target.parse(name)
        options = generation.config.providers[target.provider].options
        return self._row(generation, name, Entry(target, options=options), created)

    def _row(self, generation: Generation, name: str, entry: Entry, created: int) -> ModelRow:
        """The row of `name`, with what is known of `entry`'s target."""
        listed = generation.catalog.find(entry.target)
        capabilities = listed.capabilities if listed is not None else None
        if capabilities is not None and "completion" in capabilities:
            capabilities -= {"embedding"}  # for a chat model it is assumed only because nothing denies it
        return ModelRow(
            name if _has_tagged_twin(generation, name) else tagged(name),
            created or self._since,
            capabilities,
            _window(entry) or (listed.context_length if listed is not None else 0),
        )


def _is_shown(generation: Generation, name: str) -> bool:
    """Whether to list `name`. False for a name without a tag that is listed with ``:latest`` too."""
    provider = generation.config.providers.get(name.partition("/")[0])
    return provider is None or provider.kind != "ollama" or not _has_tagged_twin(generation, name)


def _has_tagged_twin(generation: Generation, name: str) -> bool:
    """Whether `name` has no tag, but ``name:latest`` exists as well: then no tag may be added to `name`."""
    with_tag = tagged(name)
    if with_tag == name:
        return False
    if name in generation.config.aliases:
        return with_tag in generation.config.aliases
    return "/" in name and generation.catalog.lists(Target.parse(with_tag))


def _window(entry: Entry) -> int:
    """The context window that the operator has set, in tokens; 0: none."""
    window: Any = entry.options.get("num_ctx")
    return window if isinstance(window, int) else 0
