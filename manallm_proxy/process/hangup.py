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
    """Handles SIGHUP: `reload`, or `stop` once if the terminal is gone in whose foreground this process began.

    Made before any handler is set: what ``nohup`` starts ignores SIGHUP until then, and is to outlive its terminal.
    So is what began in the background (``&``), or without a terminal.
    """

    reload: Callable[[], object]
    stop: Callable[[], object]
    _tied: bool = field(init=False)
    """Whether the end of its terminal is the end of this process."""
    _stopped: bool = False

    def __attrs_post_init__(self) -> None:
        self._tied = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _in_foreground()

    def __call__(self) -> None:
        if not self._tied or _has_terminal():
            self.reload()
        elif not self._stopped:  # a shell and the kernel may both send it; a second `stop` would cut answers off
            self._stopped = True
            self.stop()


def _open() -> int:
    """A file descriptor of the terminal. Raises OSError if there is none, or none any more."""
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
        return False  # it was closed in between
    finally:
        os.close(terminal)
