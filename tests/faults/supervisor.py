"""systemd's part in a restart, played in the test: it holds the listening socket and starts the next process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from attrs import define, field

from tests.command import DEVNULL, Child, start

BACKLOG = 4096
"""As in ``manallm-proxy.socket``."""


@define(eq=False)
class Supervisor:
    """One listening socket, and one process after the other that serves it. ``output``: of all of them."""

    listener: socket.socket
    notify: socket.socket
    folder: Path
    child: Child | None = None
    output: list[str] = field(factory=list)
    codes: list[int] = field(factory=list)
    _readers: list[asyncio.Task[None]] = field(factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    async def start(self) -> None:
        """A process with the socket as its descriptor 3; returns at its READY=1."""
        environ = {**os.environ, "JOURNAL_STREAM": "1:1", "NOTIFY_SOCKET": str(self.folder / "notify")}
        command = ("serve", "--config", str(self.folder / "proxy.yaml"))
        self.child = await start(*command, environ=environ, stdout=DEVNULL, listener=self.listener)
        self._readers.append(asyncio.ensure_future(self._collect(self.child)))
        await self.hears("READY=1")

    async def hears(self, word: str) -> None:
        """Returns once the process has said `word`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while word not in (await loop.sock_recv(self.notify, 4096)).decode():
                pass

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it has ended."""
        assert self.child is not None
        os.kill(self.pid, number)
        self.codes.append(await asyncio.wait_for(self.child.wait(), 60))

    async def restart(self) -> None:
        """``systemctl restart``: the old one to its end, then the new one. The socket stays here all the time."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        if self.child is not None and self.child.returncode is None:
            self.child.kill()
            await self.child.wait()
        await asyncio.gather(*self._readers)
        self.listener.close()
        self.notify.close()

    async def _collect(self, child: Child) -> None:
        assert child.stderr is not None
        async for row in child.stderr:
            self.output.append(row.decode())


@asynccontextmanager
async def supervised(config: dict[str, Any], folder: Path) -> AsyncIterator[Supervisor]:
    """The proxy under a socket unit, running."""
    (folder / "proxy.yaml").write_text(yaml.safe_dump(config))
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(folder / "notify"))
    notify.setblocking(False)
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    made = Supervisor(listener, notify, folder)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
