"""The supervisor's end of the pair of sockets to one worker; the other end is a `WorkerLink`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.process.worker_messages import LineSplitter

_CHUNK = 2**18


@define(eq=False)
class WorkerSocket:
    """Never blocks: bytes that cannot be sent yet are kept in ``unsent``."""

    socket: socket.socket
    number: int
    lines: LineSplitter = field(factory=LineSplitter)
    unsent: bytearray = field(factory=bytearray, repr=False)
    over: bool = False
    """The worker has closed its end."""

    def send(self) -> None:
        """Sends as much of ``unsent`` as the socket accepts."""
        try:
            del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:  # the worker has died; the supervisor is about to notice
            self.unsent.clear()

    def receive(self) -> list[bytes] | None:
        """The lines that have arrived; None at the end. Raises BlockingIOError if there are none yet."""
        try:
            data = self.socket.recv(_CHUNK)
        except ConnectionError:
            return None
        return self.lines.feed(data) if data else None

    def rest(self) -> list[bytes]:
        """The last lines of a worker that has ended."""
        lines: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while (got := self.receive()) is not None:
                lines += got
        return lines


def how_ended(status: int, was_silent: bool) -> str:
    """A worker's wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name + (": it was silent" if was_silent else "")
    return f"signal {-code}"
