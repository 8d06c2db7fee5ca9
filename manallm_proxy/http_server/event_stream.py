"""Server-sent events of our own (the live feed), by aiohttp-sse. Models' streams use the faster `stream_writer`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from manallm_proxy.http_server import web

if TYPE_CHECKING:
    from aiohttp_sse import EventSourceResponse

PING: Final = 15.0
SEND_TIMEOUT: Final = 20.0
"""Seconds without progress after which a client is cut."""
PAUSE: Final = 0.25
"""Seconds between two writes, so that a burst of events costs one."""

Frames = Sequence[tuple[str, str, str]]
"""Id, type and data of each event; none of them has a line break."""


async def send_events(
    request: web.BaseRequest, headers: Mapping[str, str], read: Callable[[], Awaitable[Frames | None]]
) -> web.StreamResponse:
    """Sends the events that `read` returns, until it returns None. A client that does not read in time is cut off."""
    sse = await asyncio.to_thread(import_module, "aiohttp_sse")  # imports all of aiohttp.web, which nothing else needs
    response: EventSourceResponse = sse.EventSourceResponse(
        headers=headers, ping_interval=PING, send_timeout=SEND_TIMEOUT
    )
    await response.prepare(request)
    async with response:
        await _send(response, ": here\n\n")  # the head leaves now, not with the first event
        while (frames := await read()) is not None:
            # in one write, not event by event as `send` does it
            await _send(response, "".join(f"id: {id_}\nevent: {kind}\ndata: {data}\n\n" for id_, kind, data in frames))
            await asyncio.sleep(PAUSE)
    return response


async def _send(response: EventSourceResponse, text: str) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await response.write(text.encode())
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None
