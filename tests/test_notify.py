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


NOT_PASSED = """
import os, socket, sys, tempfile
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.process import systemd
from manallm_proxy.process.listeners import Listeners

def tried(made):
    if made is None:
        os.close(3)
    else:
        os.dup2(made.fileno(), 3)
    try:
        systemd.listen_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, os.getpid())
        return "taken"
    except ConfigError as error:
        if made is not None:
            os.fstat(3)
        return str(error)

os.open("/dev/null", os.O_RDONLY)  # 3, if nothing else is
made = [socket.create_server(("127.0.0.1", 0)), socket.socket(), socket.socketpair()[0]]
made += [socket.socket(type=socket.SOCK_DGRAM), tempfile.TemporaryFile()]
for each in [*made[1:], None, made[0]]:
    print(tried(each))
"""


async def test_a_descriptor_that_does_not_listen_is_refused_and_left_open() -> None:
    """It may be closed, or a file of our own by now; only a socket that accepts connections is taken."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", NOT_PASSED, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(child.communicate(), 40)
    *refused, taken = out.decode().splitlines()
    assert taken == "taken" and len(refused) == 5
    assert all(line.startswith("LISTEN_FDS=1: descriptor 3 is not a socket that accepts") for line in refused), refused


def test_a_count_that_is_no_number_is_none() -> None:
    """Neither a word nor a digit that only looks like one."""
    for count in ("", "one", "-1", "²"):
        assert systemd.listen_sockets({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7) == []
        assert systemd.watchdog_interval({"WATCHDOG_USEC": count}, 7) is None
