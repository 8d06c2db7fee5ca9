"""Reads and tries a new configuration in a child process, so that the supervisor never waits for a disk.

The supervisor has no threads, since its workers are its forks; so it reads in a fork too. The child opens every
provider and closes it again, so that a configuration that would fail in a worker fails here first.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
from collections.abc import Callable
from typing import Final

from attrs import field

from manallm_proxy.config.model import Config
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.events import Crashed, Observer
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.opening import try_open
from manallm_proxy.process.reload import OUR_ERROR, READ_TIMEOUT, TOO_SLOW

_CHUNK: Final = 2**18


@define(eq=False)
class ConfigReader:
    """The reading child, and our end of the socket over which it sends the result."""

    pid: int
    socket: socket.socket
    _data: bytearray = field(factory=bytearray, repr=False)

    @classmethod
    def start(cls, read: Callable[[], Config], let_go: Callable[[], None], observe: Observer) -> ConfigReader:
        """Forks a child that calls `let_go`, to close what is the supervisor's, then `read`. Raises OSError.

        Signals must be blocked; `let_go` unblocks them in the child.
        """
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            _run_child(read, let_go, observe, ours, theirs)
        theirs.close()
        ours.setblocking(False)
        return cls(pid, ours)

    def receive(self) -> Config | tuple[str, ...] | None:
        """The configuration, or the mistakes for which it is refused; None until the child has ended."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if data:
            self._data += data
            return None
        self.socket.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == 0:
            result: Config | tuple[str, ...] = pickle.loads(self._data)  # noqa: S301  # from a fork of this process
            return result
        if code == -signal.SIGALRM:
            return (TOO_SLOW,)
        return (f"the process that was to read the configuration ended with {code}",)

    def kill(self) -> None:
        """Ends the child, whatever it waits for."""
        self.socket.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _run_child(
    read: Callable[[], Config],
    let_go: Callable[[], None],
    observe: Observer,
    ours: socket.socket,
    theirs: socket.socket,
) -> None:
    """Sends the result and ends the process. ``os._exit``: nothing of the supervisor's may run on the way out."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(READ_TIMEOUT))  # without a handler it ends the process, also if nobody waits for it any more
        let_go()
        ours.close()
        theirs.sendall(pickle.dumps(_result(read, observe)))
        code = 0
    finally:
        os._exit(code)


def _result(read: Callable[[], Config], observe: Observer) -> Config | tuple[str, ...]:
    try:
        config = read()
        asyncio.run(try_open(config))
    except ConfigError as error:
        return error.located
    except Exception as error:
        observe(Crashed("reload", error))
        return (OUR_ERROR.format(type(error).__name__),)
    return config
