"""A request's body, within its limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMedia
from manallm_proxy.contract.shortened import Shortened
from manallm_proxy.http_server import web
from manallm_proxy.http_server.aiohttp_internals import take_body
from manallm_proxy.http_server.aiohttp_server import ask_for_body
from manallm_proxy.http_server.long_body import LongBody, is_long
from manallm_proxy.openai.allocator import APART
from manallm_proxy.openai.bounds import (
    NeedsFullScan,
    check_structure,
    count_by_characters,
    count_by_members,
    may_be_split,
)
from manallm_proxy.openai.joined import Growing
from manallm_proxy.openai.large import LARGE_BYTES, LARGE_PARTS, offload
from manallm_proxy.openai.long_values import LEAST, MOST, shortened
from manallm_proxy.openai.sliced import LARGE_BYTES as SLICED

T = TypeVar("T")


async def read_request(
    request: web.BaseRequest,
    limits: Limits,
    read: Callable[[bytes, Shortened | None], T],
    arrived: Callable[[], None] = lambda: None,
    *,
    scans: bool = False,
) -> tuple[T, bool]:
    """The result of `read` for the body, within all limits, and whether the body is large: then it is read in a thread,
    and freeing what was read is a thread's work, too.

    `arrived` is called once the body is complete. `scans`: `read` only scans the body, so that a thread would cost more
    than it saves up to a megabyte, and counts the keys at the top of a short one. Raises what both raise, and
    InvalidRequest for JSON that exceeds a limit on its structure.
    """
    body = await read_body(request, limits)
    arrived()
    large = len(body) > (APART if scans else LARGE_BYTES)
    short: Shortened | None = None
    if not request.headers.get("Content-Type", "").lstrip().lower().startswith("multipart/"):
        parts, sure = count_by_characters(body, limits, keys=not scans or len(body) > LEAST)
        if len(body) <= MOST and ((scans and len(body) > LEAST) or not sure):
            await _turn(len(body))
            short = shortened(body, not sure and may_be_split(body))
        if not sure:
            await _turn(len(body))
            parts = await _looked(body, short, limits)
        large |= parts > LARGE_PARTS
    one_scan = len(body) <= (MOST if short is not None else SLICED)  # else it is walked through, slice by slice
    slow = not one_scan if scans else large
    if not scans:
        short = None
    return await offload(True, read, body, short) if slow else read(body, short), large


async def _looked(body: bytes, short: Shortened | None, limits: Limits) -> int:
    """As `check_structure`, in a thread if it takes long."""
    try:
        found = count_by_members(body, short, limits, LARGE_PARTS)
    except NeedsFullScan:
        found = await offload(True, count_by_members, body, short, limits)
    return await offload(len(body) > LEAST, check_structure, body, limits) if found is None else found


async def _turn(size: int) -> None:
    """Lets other requests run between two passes over a body that is large, whether or not a thread reads it."""
    if size > LARGE_BYTES:
        await asyncio.sleep(0)


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """The whole body.

    Raises BodyTooLarge over ``limits.body`` bytes, BodyTimeout if it stalls for ``body_timeout``, or comes slower than
    ``body_rate`` for that long.
    """
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMedia("send the body without Content-Encoding")
    length = request.content_length or 0
    if length > limits.body:
        raise _too_large(limits.body)
    ask_for_body(request)
    if request.content.is_eof():  # it came with its head, as most do: no timer is needed
        part = take_body(request.content)
        if len(part) > limits.body:
            raise _too_large(limits.body)
        return part
    size, late, loop = 0, 0.0, asyncio.get_running_loop()
    try:
        if is_long(request) and request.transport is not None and request.content_length is not None:
            long = LongBody(request, request.transport, request.content_length)
            try:
                return await long.whole(limits.body_timeout, limits.body_rate)
            finally:
                size, late = long.size, long.due(limits.body_rate)
        body = Growing()
        late = begun = loop.time()
        async with asyncio.timeout(limits.body_timeout) as stall:
            while part := await request.content.readany():
                size += len(part)
                if size > limits.body:
                    raise _too_large(limits.body)
                body.add(part)
                late = begun + size / limits.body_rate
                stall.reschedule(min(loop.time(), late) + limits.body_timeout)
    except TimeoutError:
        if loop.time() - late >= limits.body_timeout and size:
            slow = f"the body comes slower than {limits.body_rate} bytes a second (limits.body_rate)"
            raise BodyTimeout(slow) from None
        raise BodyTimeout(f"the body stalled for {limits.body_timeout:g} s (limits.body_timeout)") from None
    except web.RequestPayloadError:
        raise InvalidRequest("the body's transfer encoding is broken") from None
    return body.take()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the limit of {limit} bytes (limits.body)")
