"""What the end of its terminal does to a server: it ends, as other commands do, unless it was to outlive it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.proxy import settings, written
from tests.terminal import Terminal, terminal
from tests.waiting import until

NOTE_PID = ("sh", "-c", 'echo $$ > pid; exec "$@"', "sh")
"""A command that writes its process id, which what it starts keeps, to a file."""

pytestmark = pytest.mark.built_in


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; one whose parent does not look may stay as a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@asynccontextmanager
async def served(folder: Path, workers: int, *before: str) -> AsyncIterator[tuple[Terminal, int]]:
    """A terminal in which a server is ready, and the server's process id; of both nothing is left behind."""
    config = settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"], log={"format": "human"})
    (folder / "proxy.yaml").write_text(written(config))
    arguments = ("serve", "--config", "proxy.yaml", "--workers", str(workers))
    note = folder / "pid"
    async with terminal(folder, *arguments, before=(*NOTE_PID, *before)) as screen:
        await until(lambda: note.exists() and note.read_text().endswith("\n"))
        pid = int(note.read_text())
        try:
            yield screen, pid
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_closed_terminal_ends_what_was_started_in_it(tmp_path: Path, workers: int) -> None:
    """Window closed, connection of ssh cut: nothing is left that holds the port."""
    async with served(tmp_path, workers) as (screen, pid):
        await screen.until(lambda seen: "is ready" in seen)
        await screen.close()
        await until(lambda: not alive(pid), 20)


@pytest.mark.parametrize("workers", [1, 2])
async def test_with_its_terminal_open_a_hangup_is_a_reload(tmp_path: Path, workers: int) -> None:
    """`kill -HUP`, as everywhere else."""
    async with served(tmp_path, workers) as (screen, pid):
        await screen.until(lambda seen: "is ready" in seen)
        os.kill(pid, signal.SIGHUP)
        await screen.until(lambda seen: "reload" in seen.partition("is ready")[2])
        os.kill(pid, signal.SIGTERM)
        await screen.until(lambda seen: "ended with 0" in seen)


@pytest.mark.parametrize("workers", [1, 2])
async def test_nohup_outlives_its_terminal(tmp_path: Path, workers: int) -> None:
    """It reads its files again then, which hurts nobody, and goes on."""
    said = tmp_path / "nohup.out"
    async with served(tmp_path, workers, "nohup") as (screen, pid):
        await until(lambda: said.exists() and "started" in said.read_text(), 20)
        await screen.close()
        await until(lambda: "reload" in said.read_text(), 20)
        assert alive(pid)
