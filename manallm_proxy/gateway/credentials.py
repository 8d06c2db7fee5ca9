"""A request's id, and the key that it presents."""

from __future__ import annotations

import random
from typing import Final

from manallm_proxy.gateway.client_keys import Caller, presented
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.http_server import web

REQUEST_ID_LIMIT: Final = 128
CALLER: Final = web.RequestKey("caller", str)
"""Where a request outside the pipeline stores the name of its key, for the log."""


def request_id_of(request: web.BaseRequest) -> str:
    """The client's own id if it is 1 to 128 visible ASCII characters, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    if 0 < len(given) <= REQUEST_ID_LIMIT and given.isascii() and given.isprintable() and " " not in given:
        return given
    return new_request_id()


def new_request_id() -> str:
    """32 hex digits. It is not a secret, so no system call is spent on it."""
    return f"{random.getrandbits(128):032x}"


def key_of(request: web.BaseRequest) -> str:
    """The key that the client presents. Raises InvalidKey if it presents none, or more than one."""
    headers = request.headers
    return presented(
        headers.getall("Authorization", ()), headers.getall("api-key", ()), headers.getall("x-api-key", ())
    )


def caller_of(request: web.BaseRequest, generation: Generation, *, admin: bool = False) -> Caller | None:
    """Who calls a route outside the pipeline; None if there are no client keys. Raises InvalidKey, AdminOnly."""
    if not generation.keyring:
        return None
    caller = generation.keyring.caller(key_of(request))
    request[CALLER] = caller.key.name
    if admin:
        caller.require_admin()
    return caller
