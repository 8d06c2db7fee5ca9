"""A terminal that takes nothing any more (Ctrl-S, or nobody reads it) costs lines, never time.

The log is written by a child process to a real pseudo-terminal, since a mistake here shows as a process that hangs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest
from attrs import define, field

CHILD = """
import os, sys
from manallm_proxy.observe.log import Logs
from tests.figures import ENDED

if "no reopen" in sys.argv:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError
    os.open = refuse
logs = Logs.open("debug", "json", sys.stderr)
for order in sys.stdin:
    for _ in range(int(order)):
        logs(ENDED)
    print(logs.dropped, flush=True)
"""
QUIET = 0.1
"""Seconds without a byte after which the terminal has shown all."""


@define(eq=False)
class Terminal:
    """A pseudo-terminal whose inner end is the child's stderr. The inner end stays open here, as in a shell."""

    outer: int
    inner: int
    child: subprocess.Popen[str]
    shown: bytes = field(default=b"", repr=False)

    def log(self, lines: int) -> int:
        """Lines lost since the start, once the child has logged so many more. Fails where it hangs."""
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(f"{lines}\n")
        self.child.stdin.flush()
        return int(_line(self.child.stdout))

    def read_all(self) -> None:
        """Reads what the terminal shows, until it is quiet."""
        while select.select([self.outer], [], [], QUIET)[0]:
            self.shown += os.read(self.outer, 65536)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.shown.splitlines() if line.strip()]

    def reported(self) -> int:
        """Lost lines, as the log itself says."""
        return sum(row["lines"] for row in self.rows() if row["event"] == "log lines were lost")

    def stop(self) -> None:
        termios.tcflow(self.inner, termios.TCOOFF)

    def go_on(self) -> None:
        termios.tcflow(self.inner, termios.TCOON)

    def press(self, key: bytes) -> None:
        os.write(self.outer, key)


def _line(stream: IO[str]) -> str:
    assert select.select([stream], [], [], 10)[0], "the child hangs"
    return stream.readline()


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    outer, inner = pty.openpty()
    command = [sys.executable, "-c", CHILD, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=inner, text=True)
    try:
        yield Terminal(outer, inner, child)
    finally:
        child.kill()
        child.communicate()
        os.close(outer)
        os.close(inner)


HOW: dict[str, tuple[Callable[[Terminal], None], Callable[[Terminal], None]]] = {
    "stopped by a program": (Terminal.stop, Terminal.go_on),
    "stopped by Ctrl-S": (lambda t: t.press(b"\x13"), lambda t: t.press(b"\x11")),
    "not read": (lambda t: None, lambda t: None),
}


@pytest.mark.parametrize("way", ["reopened", "no reopen"])
@pytest.mark.parametrize("how", HOW)
def test_a_terminal_that_takes_nothing_costs_lines_and_no_time(how: str, way: str) -> None:
    """The child goes on, counts what it loses, and says so once the terminal is read again; no line is torn."""
    block, unblock = HOW[how]
    with terminal(way) as at:
        assert at.log(1) == 0
        block(at)
        lost, logged = at.log(2000), 2001
        assert lost > 0
        unblock(at)
        at.read_all()
        while at.reported() < lost:
            assert logged < 2010, "the loss is not reported"
            lost, logged = at.log(1), logged + 1
            at.read_all()
        assert sum(row["event"] == "request" for row in at.rows()) + lost == logged


def test_the_shells_own_end_of_the_terminal_is_left_as_it_is() -> None:
    """O_NONBLOCK would be seen by all who share the open file description, and break them."""
    with terminal() as at:
        at.log(1)
        assert not fcntl.fcntl(at.inner, fcntl.F_GETFL) & os.O_NONBLOCK
