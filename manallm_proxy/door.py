"""Who knocks: the id and the key of a client's request."""

from __future__ import annotations

import secrets
from typing import Final

from aiohttp import web

from manallm_proxy.access import Caller, presented
from manallm_proxy.errors import ProxyError
from manallm_proxy.events import CallerRefused, Observer
from manallm_proxy.snapshot import Snapshot

REQUEST_ID_LIMIT: Final = 128


def request_id_of(request: web.Request) -> str:
    """The client's own id if it is 1 to 128 visible ASCII characters, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    if 0 < len(given) <= REQUEST_ID_LIMIT and given.isascii() and given.isprintable() and " " not in given:
        return given
    return secrets.token_hex(16)


def key_of(request: web.Request) -> str:
    """The key that the client presents. InvalidKey where it presents none, or more than one."""
    headers = request.headers
    return presented(
        headers.getall("Authorization", ()), headers.getall("api-key", ()), headers.getall("x-api-key", ())
    )


def caller_of(request: web.Request, snapshot: Snapshot, observe: Observer, *, admin: bool = False) -> Caller | None:
    """Who asks for a route beside the pipeline; None where nobody is asked for a key. A refusal is reported."""
    if not snapshot.keyring:
        return None
    caller: Caller | None = None
    try:
        caller = snapshot.keyring.caller(key_of(request))
        if admin:
            caller.require_admin()
    except ProxyError as error:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else ""
        name = caller.key.name if caller is not None else None
        observe(CallerRefused(request_id_of(request), route, error.status, error.code or error.type, name))
        raise
    return caller
