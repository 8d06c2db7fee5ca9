"""Writes whole lines to a file, pipe, socket or terminal, without ever waiting for the reader.

Asking `poll` first is not enough. A terminal with room for some bytes is writable, and then `write` waits for the rest
(Linux, drivers/tty/n_tty.c: n_tty_write); a pipe that several processes write to may fill up between the two calls.
O_NONBLOCK helps, but it belongs to the open file description (open(2)), which a terminal shares with the shell and
everything started from it. Hence:

1. a regular file is written directly: it has no reader to wait for;
2. a socket is written with MSG_DONTWAIT, which holds for one call (send(2));
3. a pipe, a terminal or another device is opened again with O_NONBLOCK. Through /proc/self/fd this makes a new open
   file description for the same pipe or device (proc(5)), and leaves the shared one as it is;
4. if that is refused (another user's terminal after `su`, no /proc), a thread writes from a bounded queue.
"""

from __future__ import annotations

import atexit
import errno
import os
import socket
import stat
import threading
from queue import SimpleQueue
from typing import Final, Protocol

from attrs import field

from manallm_proxy.contract.records import define

PIPE_BUF: Final = 4096
"""Max bytes of an atomic write to a pipe (Linux, pipe(7)): lines of several processes do not mix up to it."""
QUEUE_LIMIT: Final = 1000
"""Max writes that wait for the thread; more are lost."""
LAST_LINES: Final = 0.5
"""Max seconds that process exit waits for the thread."""
_FLAGS: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Output(Protocol):
    """Where lines go."""

    def write(self, lines: bytes) -> bool:
        """Writes whole lines. False: none of them was or will be written. Never waits, never raises."""

    def close(self) -> None:
        """Closes what this opened. May wait for up to LAST_LINES."""


def open_output(fd: int) -> Output:
    """An output to the file, pipe, socket or terminal behind descriptor `fd`. Raises OSError if it is closed."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return _Direct(_File(fd))
    if stat.S_ISSOCK(kind):
        return _Direct(_Socket(socket.socket(fileno=os.dup(fd))))
    again = _Reopened(fd)
    try:
        again.open()
    except OSError as error:
        if error.errno != errno.ENXIO:  # a pipe without a reader may get one; `_Reopened` tries again
            return _Queue(os.dup(fd))
    return _Direct(again)


class _Sink(Protocol):
    """Takes bytes without waiting."""

    def send(self, data: bytes) -> int:
        """Bytes of `data` taken. Raises OSError if none can be taken now."""

    def close(self) -> None: ...


@define(eq=False)
class _File:
    fd: int

    def send(self, data: bytes) -> int:
        return os.write(self.fd, data)

    def close(self) -> None:
        """Nothing: the caller owns the descriptor."""


@define(eq=False)
class _Socket:
    socket: socket.socket

    def send(self, data: bytes) -> int:
        return self.socket.send(data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self.socket.close()


@define(eq=False)
class _Reopened:
    """The same pipe or device as descriptor `shared`, with flags of our own."""

    shared: int
    _own: int | None = None

    def open(self) -> int:
        try:
            own = os.open(f"/proc/self/fd/{self.shared}", _FLAGS)
        except FileNotFoundError:  # no /proc
            own = os.open(os.ttyname(self.shared), _FLAGS)
        if os.fstat(own).st_rdev != os.fstat(self.shared).st_rdev:
            os.close(own)
            raise FileNotFoundError(errno.ENOENT, "another device has taken the terminal's name")
        self._own = own
        return own

    def send(self, data: bytes) -> int:
        return os.write(self.open() if self._own is None else self._own, data)

    def close(self) -> None:
        if self._own is not None:
            os.close(self._own)
            self._own = None


@define(eq=False)
class _Direct:
    """Writes in the caller's thread.

    It bypasses Python's buffered streams, which after a failure write what they hold twice or in the middle of a line.
    """

    _sink: _Sink
    _rest: bytes = field(default=b"", repr=False)
    """The rest of a partly written line. It is written first, so that no line is torn."""

    def write(self, lines: bytes) -> bool:
        if self._rest:
            self._rest = self._push(self._rest)
            if self._rest:
                return False
        rest = self._push(lines)
        if len(rest) == len(lines):
            return not lines
        self._rest = rest
        return True

    def _push(self, data: bytes) -> bytes:
        """Writes `data`; returns the part that could not be written."""
        try:
            while data:
                end = data.rfind(b"\n", 0, PIPE_BUF) + 1 or PIPE_BUF  # whole lines: other workers write between calls
                data = data[self._sink.send(data[:end]) :]
        except OSError:  # full disk, full pipe, no reader
            pass
        return data

    def close(self) -> None:
        self._sink.close()

    def __del__(self) -> None:
        self.close()


@define(eq=False)
class _Queue:
    """Writes in a thread of its own, which may wait for the reader."""

    fd: int
    """A descriptor that nothing else uses; the thread closes it."""
    _queue: SimpleQueue[bytes | None] = field(factory=SimpleQueue, repr=False)
    _thread: threading.Thread | None = None
    _pid: int = 0
    """The process that the thread belongs to: a fork copies no threads."""
    _failed: bool = False

    def write(self, lines: bytes) -> bool:
        if self._pid != os.getpid() and not self._start():
            return False
        if self._failed or self._queue.qsize() >= QUEUE_LIMIT:
            return False
        self._queue.put(lines)
        return True

    def _start(self) -> bool:
        self._queue = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(self._queue,), name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads
            return False
        self._pid = os.getpid()
        atexit.register(self.close)
        return True

    def _run(self, queue: SimpleQueue[bytes | None]) -> None:
        try:
            while (lines := queue.get()) is not None:
                while lines:
                    lines = lines[os.write(self.fd, lines) :]
        except OSError:  # the terminal is gone
            pass
        self._failed = True
        os.close(self.fd)

    def close(self) -> None:
        if self._pid != os.getpid() or self._thread is None:  # no thread in this process, so nothing waits
            if not self._failed:
                os.close(self.fd)
            self._failed = True
            return
        atexit.unregister(self.close)
        self._queue.put(None)
        self._thread.join(LAST_LINES)
