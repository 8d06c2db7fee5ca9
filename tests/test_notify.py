"""systemd's end of the conversation, played with real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from manallm_proxy.process import systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_each_message_is_one_datagram(tmp_path: Path, abstract: bool) -> None:
    """A path, or a name in the abstract namespace written with an @."""
    name = f"@manallm-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name[1:] if abstract else name)
        environ = {"NOTIFY_SOCKET": name}
        systemd.ready("all\nwell", environ)
        systemd.reloading(environ)
        systemd.stopping(environ)
        assert heard.recv(4096) == b"READY=1\nSTATUS=all well"
        assert heard.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert heard.recv(4096) == b"STOPPING=1\nSTATUS=draining"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "@" + "x" * 200}])
def test_nobody_listening_is_no_error(environ: dict[str, str]) -> None:
    """Started by hand, or systemd has gone."""
    systemd.ready("well", environ)


async def test_the_watchdog_is_pinged_from_the_loop(tmp_path: Path) -> None:
    """Each half interval while the loop turns."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.setblocking(False)
        loop = asyncio.get_running_loop()
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        pinging = systemd.watchdog(loop, environ, 1)
        assert pinging is not None
        for _ in range(3):
            assert await asyncio.wait_for(loop.sock_recv(heard, 64), 5) == b"WATCHDOG=1"
        pinging.cancel()


async def test_a_watchdog_for_another_process_is_not_pinged() -> None:
    """WATCHDOG_PID names somebody else; or there is none."""
    loop = asyncio.get_running_loop()
    assert systemd.watchdog(loop, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, 2) is None
    assert systemd.watchdog(loop, {}, 2) is None
    assert systemd.watchdog(loop, {"WATCHDOG_USEC": "0"}, 2) is None  # or it would be pinged without a pause


PASSED = """
import os, socket, sys
from manallm_proxy.process import systemd as notify
[got] = notify.listen_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, os.getpid())
print(got.getsockname()[1], notify.listen_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, os.getpid()))
"""


async def test_a_socket_of_systemds_is_taken(tmp_path: Path) -> None:
    """Descriptor 3 of the process that it is meant for, and of no other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        child = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            f"exec \"{sys.executable}\" -c '{PASSED}' 3<&{server.fileno()}",
            pass_fds=(server.fileno(),),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(child.communicate(), 40)
    assert out.decode().strip() == f"{port} []"
