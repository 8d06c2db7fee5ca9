"""What systemd is told, and what it hands over (man sd_notify, sd_watchdog_enabled, sd_listen_fds).

Without systemd each call does nothing. None ever raises: a proxy does not end over a datagram.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping

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
    """It serves: after the start, and again after a reload, whatever came of it."""
    _send(environ, "READY=1", _status(status))


def reloading(environ: Mapping[str, str]) -> None:
    """``MONOTONIC_USEC`` must come with it, or ``Type=notify-reload`` waits for ever."""
    _send(environ, "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(environ: Mapping[str, str]) -> None:
    """It drains."""
    _send(environ, "STOPPING=1", "STATUS=draining")


def watchdog(loop: asyncio.AbstractEventLoop, environ: Mapping[str, str], pid: int) -> asyncio.Task[None] | None:
    """Pings from the loop each half interval, so that a stuck loop falls silent; None where nobody listens."""
    interval = watchdog_interval(environ, pid)
    if interval is None:
        return None

    async def ping() -> None:
        while True:
            alive(environ)
            await asyncio.sleep(interval / 2)

    return loop.create_task(ping())


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds within which systemd wants to hear that this process lives; None where it does not."""
    interval = environ.get("WATCHDOG_USEC", "")
    if not interval.isdigit() or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(interval) / 1e6


def alive(environ: Mapping[str, str]) -> None:
    """The watchdog's ping."""
    _send(environ, "WATCHDOG=1")


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process that systemd does not know: NotifyAccess=main."""
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    return {name: value for name, value in environ.items() if name not in ours}


def listen_sockets(environ: Mapping[str, str], pid: int) -> list[socket.socket]:
    """The sockets that systemd opened for this process (``manallm-proxy.socket``); empty without it."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not count.isdigit():
        return []
    passed = [socket.socket(fileno=FIRST_SOCKET + number) for number in range(int(count))]
    for each in passed:
        each.setblocking(False)
        each.set_inheritable(False)
    return passed
