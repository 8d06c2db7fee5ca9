"""Who knocks: the id and the key of a client's request."""

from __future__ import annotations

import random
from typing import Final

from aiohttp import web

from manallm_proxy.gateway.client_keys import Caller, presented
from manallm_proxy.gateway.generation import Generation

REQUEST_ID_LIMIT: Final = 128
CALLER: Final = web.RequestKey("caller", str)
"""The name of the key that was presented, beside the pipeline."""


def request_id_of(request: web.Request) -> str:
    """The client's own id if it is 1 to 128 visible ASCII characters, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    if 0 < len(given) <= REQUEST_ID_LIMIT and given.isascii() and given.isprintable() and " " not in given:
        return given
    return f"{random.getrandbits(128):032x}"  # no secret, and no call of the system


def key_of(request: web.Request) -> str:
    """The key that the client presents. InvalidKey where it presents none, or more than one."""
    headers = request.headers
    return presented(
        headers.getall("Authorization", ()), headers.getall("api-key", ()), headers.getall("x-api-key", ())
    )


def caller_of(request: web.Request, generation: Generation, *, admin: bool = False) -> Caller | None:
    """Who asks for a route beside the pipeline; None where nobody is asked for a key."""
    if not generation.keyring:
        return None
    caller = generation.keyring.caller(key_of(request))
    request[CALLER] = caller.key.name
    if admin:
        caller.require_admin()
    return caller
