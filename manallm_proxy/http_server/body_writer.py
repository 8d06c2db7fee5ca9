"""Writes a complete answer to the client: at once if it fits the buffer, else with a write timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from manallm_proxy.contract.records import define
from manallm_proxy.contract.spliced import in_portions
from manallm_proxy.http_server import web
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.http_server.stream_writer import WRITE_HIGH_WATER, Progress


@define
class _Guard:
    """After `watch`, aborts the connection of a client that reads too little for ``write_timeout`` seconds."""

    transport: asyncio.Transport
    write_timeout: float
    later: int
    """Bytes still to be written."""
    _progress: Progress
    _timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self._progress.stalled_for(self.transport, loop.time(), self.later) >= self.write_timeout:
            self.transport.abort()
        else:
            self._timer = loop.call_later(self.write_timeout / 4, self.watch)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Limits(Protocol):
    """The part of the configuration's ``limits`` that concerns clients that read slowly; see `StreamTiming`."""

    @property
    def write_timeout(self) -> float: ...
    @property
    def write_rate(self) -> int: ...


@contextmanager
def stall_guard(transport: asyncio.Transport, limits: Limits, later: int = 0) -> Iterator[_Guard]:
    """A context in which a client that reads too little for ``write_timeout`` seconds is cut off. `later`: bytes still
    to be written."""
    progress = Progress(asyncio.get_running_loop().time(), limits.write_rate)
    guard = _Guard(transport, limits.write_timeout, later, progress)
    guard.watch()
    try:
        yield guard
    finally:
        guard.close()


async def write_json(request: web.BaseRequest, response: RawResponse, body: bytes, limits: Limits) -> None:
    """Sends `body`. A large one returns only once it has left our buffer, since the answer is not over before.

    Raises ConnectionResetError if the client left, or was cut off for reading too little.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client left")
    if len(body) <= WRITE_HIGH_WATER and not transport.get_write_buffer_size():
        response.put(body)
        return
    transport.set_write_buffer_limits(high=0)  # so that the write waits for the last byte
    try:
        with stall_guard(transport, limits, len(body)) as guard:
            for portion in in_portions((body,)) if body else [[body]]:
                guard.later -= sum(map(len, portion))
                for part in portion:
                    response.put(part, last=not guard.later)
                await response.drain()
                await asyncio.sleep(0)  # a client that reads as fast as we write must not occupy the loop
    finally:
        transport.set_write_buffer_limits()
