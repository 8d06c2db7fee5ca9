"""Start and memory of the real process, and of kept responses, printed: ``make numbers``. Machines differ."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

import aiohttp

from manallm_proxy.doors.responses.store import MemoryStore, Stored
from tests.proxy import Process, openai, process, settings
from tests.upstreams import Connection, Seen, answers, chunk, each, upstream

STREAMS = 1000
PACE = 0.5
"""Seconds between two chunks of each stream."""


def resident(running: Process) -> float:
    """MiB of resident memory, as Linux counts it."""
    status = Path(f"/proc/{running.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def paced(connection: Connection, seen: Seen) -> None:
    await connection.head()
    while not connection.upstream.go.is_set():
        await connection.chunk(chunk("word"))
        await asyncio.sleep(PACE)
    connection.writer.close()


async def ready_after(folder: Path) -> float:
    """Seconds from exec to the first answer of a chat."""
    async with upstream(each(answers)) as gpu, aiohttp.ClientSession() as client:
        started = time.perf_counter()
        async with process(settings({"gpu": openai(gpu.url)}), folder) as running:
            async with client.post(f"{running.url}/v1/chat/completions", json={"messages": []}) as response:
                await response.read()
            return time.perf_counter() - started


def kept() -> str:
    """What 100,000 items, two of each of 50,000 responses, do to a store of the default size."""

    def item(id_: str) -> bytes:
        part = {
            "type": "output_text",
            "text": f"{id_} " + "What is the answer to the question? " * 8,
            "annotations": [],
        }
        row = {"id": f"msg_{id_}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
        return json.dumps(row).encode()

    began, highest = time.perf_counter(), 0
    store = MemoryStore(time.monotonic)
    for n in range(50_000):
        items = (item(f"i{n}"),), (item(f"o{n}"),)
        store.keep("key", Stored(f"resp_{n}", b'{"object":"response"}', *items, (f"msg_o{n}",)))
        highest = max(highest, store.size)
    each = (time.perf_counter() - began) / 50_000 * 1e6
    return (
        f"100,000 items of responses kept: at most {highest / 2**20:.1f} MiB counted of "
        f"{store.bounds().memory / 2**20:.0f}, {len(store):,} responses left, {each:.0f} us for two"
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = sorted([await ready_after(folder) for _ in range(5)])
        print(f"exec to first answer: {starts[2]:.2f} s (median of 5, no google provider; at most 0.8 s wanted)")
        async with upstream(each(paced)) as gpu, process(settings({"gpu": openai(gpu.url)}), folder) as running:
            print(f"resident memory, idle: {resident(running):.1f} MiB (at most 45 MiB wanted)")
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as client:
                payload = {"messages": [], "stream": True}
                url = f"{running.url}/v1/chat/completions"
                responses = await asyncio.gather(*(client.post(url, json=payload) for _ in range(STREAMS)))
                await asyncio.gather(*(response.content.readany() for response in responses))
                await asyncio.sleep(3 * PACE)
                used = resident(running)
                print(f"resident memory, {STREAMS} open paced streams: {used:.1f} MiB (at most 120 MiB wanted)")
                for response in responses:
                    response.close()
            gpu.go.set()


if __name__ == "__main__":
    asyncio.run(main())
    print(kept())
