"""A terminal that takes nothing any more (Ctrl-S, or nobody reads it) costs lines, never time.

The log is written by a forked child to a real pseudo-terminal, since a mistake here shows as a process that hangs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import termios
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest
from attrs import define, field

from manallm_proxy.observe.log import Logs
from tests.figures import ENDED

QUIET = 0.1
"""Seconds without a byte after which the terminal has shown all."""


def child(reads: int, writes: int, inner: int, reopens: bool) -> None:
    """Logs to the terminal as many lines as it is told, and tells how many were lost since the start."""
    for number, each in enumerate((reads, writes, inner)):
        os.dup2(each, number)
    os.closerange(3, 1 << 12)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError

    if not reopens:
        os.open = refuse
    with open(0, closefd=False) as orders, open(2, "w", closefd=False) as errors:
        logs = Logs.open("debug", "json", errors)
        for order in orders:
            for _ in range(int(order)):
                logs(ENDED)
            os.write(1, b"%d\n" % logs.dropped)


@define(eq=False)
class Terminal:
    """A pseudo-terminal whose inner end is the child's stderr. The inner end stays open here, as in a shell."""

    outer: int
    inner: int
    orders: IO[bytes]
    told: IO[bytes]
    shown: bytes = field(default=b"", repr=False)

    def log(self, lines: int) -> int:
        """Lines lost since the start, once the child has logged so many more. Fails where it hangs."""
        self.orders.write(b"%d\n" % lines)
        assert select.select([self.told], [], [], 60)[0], "the child hangs"
        return int(self.told.readline())

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


@contextlib.contextmanager
def terminal(reopens: bool = True) -> Iterator[Terminal]:
    outer, inner = pty.openpty()
    (reads, orders), (told, writes) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            child(reads, writes, inner, reopens)
        os._exit(1)
    os.close(reads)
    os.close(writes)
    try:
        with open(orders, "wb", 0) as orders_to, open(told, "rb", 0) as told_by:
            yield Terminal(outer, inner, orders_to, told_by)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(outer)
        os.close(inner)


HOW: dict[str, tuple[Callable[[Terminal], None], Callable[[Terminal], None]]] = {
    "stopped by a program": (Terminal.stop, Terminal.go_on),
    "stopped by Ctrl-S": (lambda t: t.press(b"\x13"), lambda t: t.press(b"\x11")),
    "not read": (lambda t: None, lambda t: None),
}


@pytest.mark.parametrize("reopens", [True, False], ids=["reopened", "no reopen"])
@pytest.mark.parametrize("how", HOW)
def test_a_terminal_that_takes_nothing_costs_lines_and_no_time(how: str, reopens: bool) -> None:
    """The child goes on, counts what it loses, and says so once the terminal is read again; no line is torn."""
    block, unblock = HOW[how]
    with terminal(reopens) as at:
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
