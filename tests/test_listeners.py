"""Sockets for several processes: opened for each, an error if they are in use, and closed again."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from attrs import evolve

from manallm_proxy.config.load import load
from manallm_proxy.config.model import Config, Listen
from manallm_proxy.process.listeners import Listeners, cannot_listen
from tests.proxy import settings


def config(folder: Path, **listen: object) -> Config:
    import yaml

    path = folder / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"loop": {"kind": "loopback"}})))
    return evolve(load(path, {}), listen=Listen(**listen))  # type: ignore[arg-type]  # a mapping of any values


def test_each_has_sockets_of_its_own_at_one_port(tmp_path: Path) -> None:
    """Any free one, the same for all; one that was closed is made again."""
    made = Listeners.open(config(tmp_path, port=0), {})
    own = [made.of(number) for number in (1, 2, 3)]
    assert len({each.getsockname() for sockets in own for each in sockets}) == 1
    assert len({each.fileno() for sockets in own for each in sockets}) == 3
    [name] = made.names
    made.close(2)
    assert own[1][0].fileno() == -1
    assert f"http://127.0.0.1:{made.of(2)[0].getsockname()[1]}" == name
    made.close_all(but=1)
    assert [own[0][0].fileno() == -1, own[2][0].fileno() == -1] == [False, True]
    made.close_all()
    assert own[0][0].fileno() == -1


def test_connections_go_to_those_who_listen(tmp_path: Path) -> None:
    """To one whose sockets are closed none: it would be waited for."""
    made = Listeners.open(config(tmp_path, port=0), {})
    first, second = made.of(1)[0], made.of(2)[0]
    made.close(1)
    assert first.fileno() == -1
    clients = [socket.create_connection(second.getsockname(), timeout=5) for _ in range(20)]
    second.setblocking(True)
    second.settimeout(5)
    for client in clients:
        second.accept()[0].close()
        client.close()
    made.close_all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_in_use_is_an_error(tmp_path: Path, shared: bool) -> None:
    """Even if its owner would share it: another proxy's workers."""
    with socket.socket() as taken:
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Listeners.open(config(tmp_path, port=taken.getsockname()[1]), {})


def test_a_unix_socket_is_one_for_all(tmp_path: Path) -> None:
    """It replaces one that a dead proxy has left, and nothing else."""
    path = tmp_path / "proxy.sock"
    for _ in range(2):
        made = Listeners.open(config(tmp_path, unix=str(path)), {})
        assert made.of(1) == made.of(2)
        assert made.names == [f"unix:{path}"]
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        made.close(1)
        assert made.of(1)[0].fileno() != -1
        with pytest.raises(OSError, match="another process serves there"):
            Listeners.open(config(tmp_path, unix=str(path)), {})
        made.close_all()
        assert made.of(1)[0].fileno() == -1
    path.unlink()
    path.write_text("mine")
    with pytest.raises(OSError, match="no socket"):
        Listeners.open(config(tmp_path, unix=str(path)), {})
    assert path.read_text() == "mine"


def test_an_unknown_host_is_reported_without_a_number(tmp_path: Path) -> None:
    """The resolver's errors are none of the system's, and their numbers say nothing."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    said = cannot_listen(config(tmp_path, host="nowhere", port=1), unknown)
    assert said == "listen: cannot listen on nowhere:1: Name or service not known"


@pytest.mark.parametrize(
    ("unix", "number", "wanted"),
    [
        ("/none/x.sock", errno.ENOENT, "/none/x.sock: its folder is not there: make it, or choose another unix"),
        ("/x/x.sock", errno.EACCES, "/x/x.sock: Permission denied"),
        (None, errno.EADDRNOTAVAIL, "192.0.2.1:1: this machine has no such address now; 0.0.0.0 stands for all it has"),
        (None, errno.EACCES, "192.0.2.1:1: Permission denied; ports below 1024 are for root"),
    ],
)
def test_where_it_cannot_listen_it_says_what_to_do(tmp_path: Path, unix: str | None, number: int, wanted: str) -> None:
    """The system's words alone do not name what is missing."""
    said = cannot_listen(
        config(tmp_path, **({"unix": unix} if unix else {"host": "192.0.2.1", "port": 1})), OSError(number, "")
    )
    assert said == f"listen: cannot listen on {wanted}"


def test_a_descriptor_that_is_no_socket_is_none_of_a_path(tmp_path: Path) -> None:
    """It came from LISTEN_FDS; nobody can move it."""
    said = cannot_listen(config(tmp_path, port=1), OSError(errno.ENOTSOCK, ""))
    assert said == "listen: cannot listen on 127.0.0.1:1: Socket operation on non-socket"
