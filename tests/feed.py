"""The live feed as its readers see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from attrs import define, field


@define(eq=False)
class Feed:
    """One reader. ``events``: id, type, data of each."""

    response: aiohttp.ClientResponse
    events: list[tuple[str, str, Any]] = field(factory=list)
    ended: asyncio.Event = field(factory=asyncio.Event)

    async def read(self) -> None:
        fields: dict[str, str] = {}
        try:
            async for line in self.response.content:
                name, colon, value = line.decode().rstrip("\r\n").partition(": ")
                if not name and fields:
                    self.events.append((fields["id"], fields["event"], json.loads(fields["data"])))
                    fields = {}
                elif name and colon:
                    fields[name] = value
        except aiohttp.ClientError:
            pass
        self.ended.set()

    def of(self, kind: str) -> list[Any]:
        return [data for _, each, data in self.events if each == kind]

    async def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def feed(url: str, last_id: str | None = None, **headers: str) -> AsyncIterator[Feed]:
    """From the moment at which it is served."""
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/events", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        await response.content.readline()
        await response.content.readline()
        one = Feed(response)
        reading = asyncio.ensure_future(one.read())
        try:
            yield one
        finally:
            reading.cancel()
