"""A proxy of several workers as its surroundings see it: its routes, its processes, what systemd hears."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp


async def get(url: str, path: str) -> tuple[int, str]:
    """Over a connection of its own, so that any worker may be asked."""
    async with aiohttp.ClientSession() as client, client.get(url + path) as response:
        return response.status, await response.text()


async def health(url: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((await get(url, "/v1/health"))[1])
    return body


async def pids(url: str) -> dict[str, int]:
    """The process of each worker."""
    return {number: worker["pid"] for number, worker in (await health(url))["workers"].items()}


class Systemd:
    """systemd's part: it listens, hears, and has a watchdog."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "notify"))
        self.heard.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "4000000"}

    async def hears(self, word: str) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(40):
            while word not in (message := (await loop.sock_recv(self.heard, 4096)).decode()):
                pass
        return message
