"""SIGHUP's two meanings: ``kill -HUP`` asks for a reload, and a terminal that closes ends what runs in it.

The signal does not say which of the two it is. The kernel takes a closed terminal from its processes before it
signals them, so that ``/dev/tty`` cannot be opened any more (Linux, drivers/tty/tty_jobctrl.c).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

TERMINAL: Final = "/dev/tty"
"""The process's own terminal, if it has one (tty(4))."""


@define(eq=False)
class Hangup:
    """Handles SIGHUP: calls `reload`, or `stop` once if this process began in the foreground of a terminal now closed.

    Must be made before any handler is set: a process started by ``nohup`` ignores SIGHUP until then, and must outlive
    its terminal. So must one that began in the background (``&``) or without a terminal.
    """

    reload: Callable[[], object]
    stop: Callable[[], object]
    _tied: bool = field(init=False)
    """Whether this process ends with its terminal."""
    _stopped: bool = False

    def __attrs_post_init__(self) -> None:
        self._tied = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _in_foreground()

    def __call__(self) -> None:
        if not self._tied or _has_terminal():
            self.reload()
        elif not self._stopped:  # both the shell and the kernel may send it; a second `stop` would cut off answers
            self._stopped = True
            self.stop()


def _open() -> int:
    """A file descriptor of the terminal. Raises OSError if there is none any more, or never was."""
    return os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def _has_terminal() -> bool:
    try:
        os.close(_open())
    except OSError:
        return False
    return True


def _in_foreground() -> bool:
    try:
        terminal = _open()
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False  # it has just been closed
    finally:
        os.close(terminal)
