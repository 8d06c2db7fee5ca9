"""Who may look at what operators look at: the last requests, the live feed, the status page."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from attrs import define

from manallm_proxy.config.model import is_loopback
from manallm_proxy.contract.errors import AdminOnly, OriginNotAllowed
from manallm_proxy.gateway.credentials import caller_of
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.serving import Serving

ELSEWHERE: Final = (
    "without client keys this is shown on loopback and unix sockets only: give out keys (auth.keys, one of them with "
    "'admin: true'), or say 'status_page: true' if everyone who reaches this address may see it"
)


@define(eq=False)
class OperatorAccess:
    """With client keys: those with ``admin: true``. Without any: whoever is on this machine."""

    serving: Serving
    renderer: Renderer

    def check(self, request: web.BaseRequest) -> None:
        """Raises InvalidKey, AdminOnly or OriginNotAllowed where `request` may not see it."""
        generation = self.serving.generation
        if caller_of(request, generation, admin=True) is not None:
            return
        if "Origin" in request.headers and self.renderer.allowed_origin(request) is None:
            raise OriginNotAllowed("web pages of this origin may not look: cors.origins does not name it")
        self.check_place(request)

    def check_place(self, request: web.BaseRequest) -> None:
        """Raises AdminOnly where nobody is asked for a key and the connection may come from another machine."""
        config = self.serving.generation.config
        if not (config.auth.keys or config.status_page or _is_near(request)):
            raise AdminOnly(ELSEWHERE)


def _is_near(request: web.BaseRequest) -> bool:
    """Whether it came by a unix socket or over loopback: the address on our side cannot be forged from afar."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return is_loopback(str(name[0])) if isinstance(name, tuple) else name is not None
