"""What instances tell each other at once: a channel of Redis, heard by a task of its own, however often it is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from manallm_proxy.state.entries import WriteBehind
from manallm_proxy.state.link import AGAIN, Link
from manallm_proxy.state.names import PREFIX

QUIET: Final = 5.0
"""Seconds without a word after which the server is asked whether it is still there; after twice that it is not."""
LONGEST: Final = 4096
"""Bytes of a message."""


@define(eq=False)
class Channel:
    """``hear`` gets each message, one's own too; what was said while the server was away is lost."""

    link: Link
    name: str
    hear: Callable[[bytes], None]
    _behind: WriteBehind = field(init=False)
    _listening: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        self._behind = WriteBehind(self.link)

    def start(self) -> None:
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    def say(self, message: bytes) -> None:
        """Nobody waits for it."""

        async def publish(client: Any) -> None:
            await client.publish(PREFIX + self.name, message)

        self._behind.send(publish, len(message))

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        await self._behind.close()

    async def _listen(self) -> None:
        """The link tells what is wrong with the server, once something is asked of it."""
        while True:
            with contextlib.suppress(Exception):
                await self._listen_once()
            await asyncio.sleep(AGAIN)

    async def _listen_once(self) -> None:
        client = self.link.open_client()
        try:
            async with asyncio.timeout(QUIET):
                await client.ping()  # a cluster's client knows its nodes only then
            subscribed = client.pubsub()
            try:
                async with asyncio.timeout(QUIET):
                    await subscribed.subscribe(PREFIX + self.name)
                await self._hear_all(subscribed)
            finally:
                await subscribed.aclose()
        finally:
            await client.aclose()

    async def _hear_all(self, subscribed: Any) -> None:
        quiet = 0
        while quiet < 2:
            message = await subscribed.get_message(timeout=QUIET)
            quiet = quiet + 1 if message is None else 0
            if message is None:
                await subscribed.ping()
            elif message["type"] == "message" and len(message["data"]) <= LONGEST:
                self.hear(message["data"])
