"""Who may use the routes for operators: the last requests, the live feed, the status page."""

from __future__ import annotations

import re
from typing import Final

from manallm_proxy.config.loopback import is_loopback
from manallm_proxy.contract.errors import AdminOnly, OriginNotAllowed
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.credentials import caller_of
from manallm_proxy.gateway.render import Renderer
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.http_server import web

_PORT: Final = re.compile(r":[0-9]*$")
ELSEWHERE: Final = (
    "without client keys this is shown on this machine only (127.0.0.1, localhost, a unix socket): "
    "give out keys (auth.keys, one of them with "
    "'admin: true'), or say 'status_page: true' if everyone who reaches this address may see it"
)


@define(eq=False)
class OperatorAccess:
    """With client keys: those with ``admin: true``. Without: connections from this machine."""

    serving: Serving
    renderer: Renderer

    def check(self, request: web.BaseRequest) -> None:
        """Raises InvalidKey, AdminOnly or OriginNotAllowed if `request` may not."""
        generation = self.serving.generation
        if caller_of(request, generation, admin=True) is not None:
            return
        if "Origin" in request.headers and self.renderer.allowed_origin(request) is None:
            raise OriginNotAllowed("web pages of this origin may not look: cors.origins does not name it")
        self.check_place(request)

    def check_place(self, request: web.BaseRequest) -> None:
        """Raises AdminOnly if there are no client keys and the connection may come from another machine."""
        config = self.serving.generation.config
        if not (config.auth.keys or config.status_page or _is_on_this_machine(request)):
            raise AdminOnly(ELSEWHERE)


def _is_on_this_machine(request: web.BaseRequest) -> bool:
    """Whether it came over a unix socket or loopback. Our side's address of a connection cannot be forged remotely."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if not isinstance(name, tuple):
        return name is not None
    return is_loopback(str(name[0])) and not _has_public_name(request.headers.get("Host", ""))


def _has_public_name(host: str) -> bool:
    """Whether `host` is a public DNS name: a web page may let its own name resolve to this machine."""
    name = host.lower().rpartition(":")[0] if _PORT.search(host) else host.lower()
    if "." not in name or name.startswith("[") or name.endswith(".localhost"):
        return False
    return not is_loopback(name)
