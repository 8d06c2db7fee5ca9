"""``GET`` and ``DELETE /v1/responses/{id}``, ``GET /v1/responses/{id}/input_items``: the stored responses.

What OpenAI serves below the same path by POST, and we do not, is named in its error: a 405 would say that the address
exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from manallm_proxy.contract.errors import InvalidRequest, UnknownRoute
from manallm_proxy.contract.records import define
from manallm_proxy.doors.responses.not_found import ResponseNotFound
from manallm_proxy.doors.responses.store import Store, Stored
from manallm_proxy.doors.responses.stored_view import Page, input_view, response_view
from manallm_proxy.gateway.credentials import caller_of
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.http_server import web
from manallm_proxy.openai.json_object import encoder
from manallm_proxy.openai.large import are_large, offload

_NOT_OFFERED: Final = {
    "compact": "conversations are not compacted here: send the whole conversation, or a shorter one, as 'input'",
    "input_tokens": "tokens are not counted here: the answer's 'usage' has them",
    "cancel": "there are no background responses here to cancel: close the connection of one that is being answered",
}


def not_offered(id_: str) -> UnknownRoute | None:
    """The error for a POST to ``/v1/responses/`` and `id_`, if that is a path of OpenAI's; None for an id."""
    before, _, last = id_.rpartition("/")
    if last not in _NOT_OFFERED or bool(before) != (last == "cancel"):
        return None
    return UnknownRoute(f"this address is not served here: {_NOT_OFFERED[last]}")


@define(eq=False)
class StoredResponses:
    """Each key sees only its own."""

    serving: Serving
    renderer: Renderer
    store: Store

    async def get(self, request: web.BaseRequest, id_: str) -> web.StreamResponse:
        """The response. Raises InvalidRequest for ``stream=true``: it is not streamed again."""
        if request.query.get("stream", "false") != "false":
            raise InvalidRequest("a response that is over is not streamed again: leave 'stream' out", param="stream")
        return await self._shown(request, id_, response_view)

    async def input_items(self, request: web.BaseRequest, id_: str) -> web.StreamResponse:
        """A page of the input items that led to it."""
        page = Page.read(request.query)
        return await self._shown(request, id_, partial(input_view, page=page))

    async def delete(self, request: web.BaseRequest, id_: str) -> web.Response:
        """Deletes the response."""
        if not await self.store.drop(self._owner(request), id_):
            raise ResponseNotFound(id_)
        return self.renderer.json(request, {"id": id_, "object": "response", "deleted": True})

    async def _shown(
        self, request: web.BaseRequest, id_: str, view: Callable[[Stored], dict[str, Any]]
    ) -> web.StreamResponse:
        stored = await self.store.response(self._owner(request), id_)
        if stored is None:
            raise ResponseNotFound(id_)
        large = are_large(stored.input) or are_large(stored.output)
        body = await offload(large, lambda: encoder(large)(view(stored)))
        return await self.renderer.long(request, body)

    def _owner(self, request: web.BaseRequest) -> str | None:
        caller = caller_of(request, self.serving.generation)
        return caller.key.name if caller is not None else None
