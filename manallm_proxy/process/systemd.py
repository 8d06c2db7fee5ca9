"""systemd's notifications, watchdog and sockets: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

Without systemd each call does nothing. Only `listen_sockets` raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping

from manallm_proxy.config.structure import ConfigError

FIRST_SOCKET = 3


def _send(environ: Mapping[str, str], *lines: str) -> None:
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(lines).encode(), address)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def ready(status: str, environ: Mapping[str, str]) -> None:
    """Reports that it serves: after the start, and after each reload, also a refused one."""
    _send(environ, "READY=1", _status(status))


def reloading(environ: Mapping[str, str]) -> None:
    """Reports that a reload begins. ``Type=notify-reload`` waits for ever without ``MONOTONIC_USEC``."""
    _send(environ, "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(environ: Mapping[str, str]) -> None:
    """Reports that it drains."""
    _send(environ, "STOPPING=1", "STATUS=draining")


def watchdog(loop: asyncio.AbstractEventLoop, environ: Mapping[str, str], pid: int) -> asyncio.Task[None] | None:
    """Pings from the loop every half interval, so that a stuck loop stops pinging; None without a watchdog."""
    interval = watchdog_interval(environ, pid)
    if interval is None:
        return None

    async def ping() -> None:
        while True:
            alive(environ)
            await asyncio.sleep(interval / 2)

    return loop.create_task(ping())


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Max seconds between two pings; None without a watchdog."""
    interval = environ.get("WATCHDOG_USEC", "")
    if not _is_number(interval) or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(interval) / 1e6 or None


def alive(environ: Mapping[str, str]) -> None:
    """Pings the watchdog."""
    _send(environ, "WATCHDOG=1")


def worker_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a worker: with NotifyAccess=main systemd ignores all but the main process."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    return {name: value for name, value in environ.items() if name not in ours}


def listen_sockets(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The sockets that systemd opened for this process (``manallm-proxy.socket``); empty without any.

    Raises ConfigError if one is not open, or accepts no connections. Its number may then belong to a file or socket of
    our own, which was opened since, so nothing is closed.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not _is_number(count):
        return []
    passed: list[socket.socket] = []
    for number in range(FIRST_SOCKET, FIRST_SOCKET + int(count)):
        found = _listening(number)
        if found is None:
            for each in passed:
                each.detach()
            raise ConfigError(
                (
                    f"LISTEN_FDS={count}: descriptor {number} is not a socket that accepts connections; pass one that"
                    " does (ListenStream= with Accept=no), or unset LISTEN_FDS to listen as configured",
                )
            )
        passed.append(found)
    for each in passed:
        each.setblocking(False)
        each.set_inheritable(False)
    return passed


def _listening(number: int) -> socket.socket | None:
    """The socket with this descriptor; None if it does not listen."""
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # of a kind that has no such option
        if found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return found
    found.detach()
    return None


def _is_number(text: str) -> bool:
    """Digits that `int` takes; `str.isdigit` is also true for ``²``."""
    return text.isascii() and text.isdigit()
