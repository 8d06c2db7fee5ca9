"""What one request costs all the others: how long the loop stands still for it, and the memory that it takes.

A task ticks meanwhile, and the longest gap between ticks is the stall. The gap is given in CPU time of the whole
process, threads included: on a machine that others use too, the clock on the wall says more about them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from attrs import define

from tests.proxy import resident

TICK = 0.001
"""Seconds between two ticks of a loop that is idle."""


@define
class Stall:
    """``longest``: seconds of CPU; ``wall``: on the clock."""

    longest: float = 0.0
    wall: float = 0.0

    @property
    def ms(self) -> float:
        return self.longest * 1000


@asynccontextmanager
async def stall() -> AsyncIterator[Stall]:
    """Measures until it is left. Proxy, provider and client share the loop: what they cost counts for the proxy."""
    seen = Stall()

    async def tick() -> None:
        last, wall = time.process_time(), time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now, clock = time.process_time(), time.perf_counter()
            seen.longest = max(seen.longest, now - last)
            seen.wall = max(seen.wall, clock - wall - TICK)
            last, wall = now, clock

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(TICK * 3)
    seen.longest = seen.wall = 0.0
    try:
        yield seen
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


@define
class Peak:
    """``mib``: what a process took at most, above what it had before."""

    mib: float = 0.0


@contextmanager
def peak(pid: int) -> Iterator[Peak]:
    """Measures another process until it is left: the kernel keeps the most that was resident (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before, seen = resident(pid), Peak()
    yield seen
    seen.mib = resident(pid, "VmHWM") - before


async def raw_post(port: int, path: str, body: bytes, seconds: float = 50.0) -> bytes:
    """The head and all bytes of the answer to a POST; the client costs little itself, whatever it sends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for at in range(0, len(body), _PIECE):
                writer.write(body[at : at + _PIECE])
                await writer.drain()
            parts: list[bytes] = []
            while part := await reader.read(_PIECE):
                parts.append(part)
            return b"".join(parts[:100])
    finally:
        writer.close()


_PIECE = 64 * 1024
