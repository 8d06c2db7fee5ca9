"""A terminal of tmux's: what runs in it, what is typed, and what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import frozen

from tests.command import ROOT
from tests.needs import require

_numbers = itertools.count()
"""A server that is told to end takes a moment, in which its socket would be another's too."""


@frozen
class Terminal:
    """``socket``: tmux's own, so that no other session of this machine is touched."""

    program: Path
    socket: Path

    async def ask(self, *command: str) -> str:
        """What a command of tmux answers."""
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.socket.parent),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
        }
        line = (str(self.program), "-S", str(self.socket), "-f", os.devnull, *command)

        def run() -> str:
            done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout

        return await asyncio.to_thread(run)

    async def screen(self) -> str:
        """All that it shows, and what has scrolled off."""
        return await self.ask("capture-pane", "-p", "-S", "-")

    async def until(self, seen: Callable[[str], bool], seconds: float = 20.0) -> str:
        """The screen, once it is as `seen` says."""
        screen = ""
        try:
            async with asyncio.timeout(seconds):
                while not seen(screen := await self.screen()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(screen) from None
        return screen

    async def close(self) -> None:
        """Ends it, as a closed window does. Raises CalledProcessError if it is closed."""
        await self.ask("kill-server")

    async def type(self, text: str, *keys: str) -> None:
        """`text` as it is, then keys by their names (``Enter``, ``C-c``)."""
        if text:
            await self.ask("send-keys", "-l", text)
        await self.ask("send-keys", *(keys or ("Enter",)))


@asynccontextmanager
async def terminal(
    folder: Path, *arguments: str, width: int = 80, before: tuple[str, ...] = (), **environ: str
) -> AsyncIterator[Terminal]:
    """One of 80 columns in which `manallm-proxy` runs with `arguments`; closed at the end.

    ``before``: the command that starts it (``nohup``), if any.
    """
    made = Terminal(require("tmux", "Debian: apt-get install tmux"), folder / f"tmux-{next(_numbers)}")
    variables = [f"{name}={value}" for name, value in {"PYTHONPATH": str(ROOT), **environ}.items()]
    command = shlex.join([*before, "env", *variables, sys.executable, "-m", "manallm_proxy", *arguments])
    # what it ended with stays on the screen
    shell = f"{command}; echo ended with $?; sleep 60"
    await made.ask("new-session", "-d", "-x", str(width), "-y", "60", "-c", str(folder), shell)
    try:
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # the test has closed it
            await made.close()
