"""What the end of its terminal does to a server: it ends, as other commands do, unless it was to outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, field

from tests.command import Child, start
from tests.proxy import settings, written
from tests.terminal import Terminal, terminal
from tests.waiting import until

CONFIG = settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"], log={"format": "human"})
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
    (folder / "proxy.yaml").write_text(written(CONFIG))
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


@define(eq=False)
class Pane:
    """The outer end of a pseudo-terminal, and what it has shown."""

    outer: int
    shown: bytearray = field(factory=bytearray)

    def read(self) -> None:
        try:
            self.shown += os.read(self.outer, 65536)
        except OSError:  # nobody has the inner end any more
            self.forget()

    def forget(self) -> None:
        asyncio.get_running_loop().remove_reader(self.outer)

    def close(self) -> None:
        """Ends it, as a closed window does."""
        self.forget()
        os.close(self.outer)


@asynccontextmanager
async def forked(folder: Path, workers: int, said: Path | None = None) -> AsyncIterator[tuple[Pane, Child]]:
    """A server in a session of its own on a terminal; `said`: as nohup starts it, which writes to this file."""
    (folder / "proxy.yaml").write_text(written(CONFIG))
    outer, inner = pty.openpty()
    pane = Pane(outer)
    asyncio.get_running_loop().add_reader(outer, pane.read)
    output = os.dup(inner) if said is None else os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    child = await start(
        *("serve", "--config", str(folder / "proxy.yaml"), "--workers", str(workers)),
        environ={name: text for name, text in os.environ.items() if name != "JOURNAL_STREAM"},
        stdout=output,
        stderr=output,
        surroundings={"terminal": os.ttyname(inner), "ignores": [] if said is None else [signal.SIGHUP]},
    )
    os.close(inner)
    os.close(output)
    try:
        yield pane, child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        with contextlib.suppress(OSError):  # the test has closed it
            pane.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_closed_terminal_ends_what_was_started_in_it(tmp_path: Path, workers: int) -> None:
    """Window closed, connection of ssh cut: nothing is left that holds the port."""
    async with forked(tmp_path, workers) as (pane, child):
        await until(lambda: b"is ready" in pane.shown)
        pane.close()
        assert await asyncio.wait_for(child.wait(), 20) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_with_its_terminal_open_a_hangup_is_a_reload(tmp_path: Path, workers: int) -> None:
    """`kill -HUP`, as everywhere else."""
    async with forked(tmp_path, workers) as (pane, child):
        await until(lambda: b"is ready" in pane.shown)
        child.send_signal(signal.SIGHUP)
        await until(lambda: b"reload" in pane.shown.partition(b"is ready")[2])
        child.terminate()
        assert await asyncio.wait_for(child.wait(), 20) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_nohup_outlives_its_terminal(tmp_path: Path, workers: int) -> None:
    """It reads its files again then, which hurts nobody, and goes on."""
    said = tmp_path / "nohup.out"
    async with forked(tmp_path, workers, said) as (pane, child):
        await until(lambda: said.exists() and "started" in said.read_text())
        pane.close()
        await until(lambda: "reload" in said.read_text())
        assert child.returncode is None


async def test_a_shells_terminal_is_the_same(tmp_path: Path) -> None:
    """A real one, in which a shell leads the session: what a hangup does while it is open, and its end."""
    async with served(tmp_path, 1) as (screen, pid):
        await screen.until(lambda seen: "is ready" in seen)
        os.kill(pid, signal.SIGHUP)
        await screen.until(lambda seen: "reload" in seen.partition("is ready")[2])
        await screen.close()
        await until(lambda: not alive(pid), 20)


async def test_a_real_nohup_is_the_same(tmp_path: Path) -> None:
    """It ignores the signal, and passes that on."""
    said = tmp_path / "nohup.out"
    async with served(tmp_path, 2, "nohup") as (screen, pid):
        await until(lambda: said.exists() and "started" in said.read_text(), 20)
        await screen.close()
        await until(lambda: "reload" in said.read_text(), 20)
        assert alive(pid)
