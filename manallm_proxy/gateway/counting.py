"""``POST /v1/messages/count_tokens``: counted by the provider that would serve the request, if it can; else estimated.

A count that fails blames nobody and leads to no fallback: then the answer is the estimate. Asking a provider counts as
a request of the key, per minute and concurrently; an estimate does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from attrs import evolve

from manallm_proxy.contract.attempts import LocalUnavailable
from manallm_proxy.contract.errors import Untranslatable
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry, Timeouts
from manallm_proxy.contract.tracebacks import clear_tracebacks
from manallm_proxy.doors.messages.native import native_call, read_native
from manallm_proxy.doors.messages.tokens import count_tokens
from manallm_proxy.gateway.body_reader import read_request
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.credentials import caller_of, request_id_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.hops import HEADER, MOST, hops_of
from manallm_proxy.gateway.locality import requires_local, restrict_to_local
from manallm_proxy.http_server import web
from manallm_proxy.routing.circuit import Skip

_TIMEOUTS: Final = Timeouts(connect=3.0, first_byte=10.0, idle=10.0)


async def counted_tokens(request: web.BaseRequest, generation: Generation) -> bytes:
    """The body of the answer. Raises what a request for the message itself would raise before any provider is asked."""
    caller = caller_of(request, generation)
    id_, headers = request_id_of(request), request.headers

    def read(body: bytes, _short: object) -> tuple[Call, bytes]:
        call = read_native(body, headers, id_, Endpoint.COUNT_TOKENS)
        try:
            return call, count_tokens(body)[1]
        except Untranslatable as refusal:
            call.refusal = refusal
            return call, b""

    generation.hold()
    try:
        (call, estimate), _ = await read_request(request, generation.config.limits, read)
        entry = _first(call, generation, caller, request) if (hops := hops_of(headers)) <= MOST else None
        if hops:
            call = evolve(call, trace={HEADER: str(hops)})
        counted = await _asked(call, generation, entry, caller) if entry is not None else None
    finally:
        generation.release()
    if counted is None and call.refusal is not None:
        raise call.refusal
    return counted or estimate


async def _asked(call: Call, generation: Generation, entry: Entry, caller: Caller | None) -> bytes | None:
    """The answer of `entry`'s provider; None if it gives none. Raises KeyLimited."""
    permit = generation.registry.admit(entry.target)
    if isinstance(permit, Skip):
        return None
    try:
        async with _place(generation, caller):
            provider = generation.providers[entry.target.provider]
            return (await provider.complete(native_call(call), evolve(entry, timeouts=_TIMEOUTS))).body
    except ProviderError as error:
        clear_tracebacks(error)
        return None
    finally:
        permit.released()


@asynccontextmanager
async def _place(generation: Generation, caller: Caller | None) -> AsyncIterator[None]:
    """Counts one request of the key, in flight until the context is left. Raises KeyLimited."""
    if caller is None:
        yield
        return
    await generation.limits.ask(caller, generation.registry.clock())
    caller.enter()
    try:
        yield
    finally:
        caller.leave()


def _first(call: Call, generation: Generation, caller: Caller | None, request: web.BaseRequest) -> Entry | None:
    """The first target that would be tried now, if its provider counts."""
    chain = generation.chain_for(call.summary, caller)
    if requires_local(chain, caller, request.headers):
        try:
            chain = restrict_to_local(chain, generation.config.providers)
        except LocalUnavailable:
            return None
    usable = (e for e in chain if not e.target.is_open and generation.registry.refusal(e.target) is None)
    entry = next(usable, None)
    if entry is None or Endpoint.MESSAGES.path not in generation.config.providers[entry.target.provider].speaks:
        return None
    return entry
