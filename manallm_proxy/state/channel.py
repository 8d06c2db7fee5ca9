"""A Redis channel (publish/subscribe) between instances.

A background task listens, and subscribes again after the server was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.state.entries import WriteBehind
from manallm_proxy.state.link import AGAIN, Link
from manallm_proxy.state.names import PREFIX

QUIET: Final = 5.0
"""Seconds without a message after which the server is pinged; after twice as many it counts as lost."""
LONGEST: Final = 4096
"""Max bytes of a message; a longer one is dropped."""


@define(eq=False)
class Channel:
    """``on_message`` gets every message, including our own. Messages published while the server is down are lost."""

    link: Link
    name: str
    on_message: Callable[[bytes], None]
    _behind: WriteBehind = field(init=False)
    _listening: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        self._behind = WriteBehind(self.link)

    def start(self) -> None:
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    def publish(self, message: bytes) -> None:
        """Sends `message` to all instances. Does not wait."""

        async def send(client: Any) -> None:
            await client.publish(PREFIX + self.name, message)

        self._behind.send(send, len(message))

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        await self._behind.close()

    async def _listen(self) -> None:
        """Listens until cancelled. Failures are not reported here: the link does that at its next use."""
        while True:
            with contextlib.suppress(Exception):
                await self._listen_once()
            await asyncio.sleep(AGAIN)

    async def _listen_once(self) -> None:
        client = self.link.open_client()
        try:
            async with asyncio.timeout(QUIET):
                await client.ping()  # before that a cluster's client does not know its nodes
            subscribed = client.pubsub()
            try:
                async with asyncio.timeout(QUIET):
                    await subscribed.subscribe(PREFIX + self.name)
                await self._receive(subscribed)
            finally:
                await subscribed.aclose()
        finally:
            await client.aclose()

    async def _receive(self, subscribed: Any) -> None:
        quiet = 0
        while quiet < 2:
            message = await subscribed.get_message(timeout=QUIET)
            quiet = quiet + 1 if message is None else 0
            if message is None:
                await subscribed.ping()
            elif message["type"] == "message" and len(message["data"]) <= LONGEST:
                self.on_message(message["data"])
