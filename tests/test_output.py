"""Where log lines go: each kind of descriptor, full, without a reader, after a fork."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from manallm_proxy.observe import log
from manallm_proxy.observe.log import Logs
from manallm_proxy.observe.output import QUEUE_LIMIT, open_output
from tests.figures import ENDED

LINE = b"x" * 99 + b"\n"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refuse(*_: object, **__: object) -> int:
    raise PermissionError


def test_a_full_socket_is_not_waited_for() -> None:
    """systemd connects stderr to one. Its own blocking mode stays as it is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = open_output(ours.fileno())
        for _ in range(100_000):
            if not out.write(LINE):
                break
        else:
            pytest.fail("it never fills up")
        assert os.get_blocking(ours.fileno())
        while theirs.recv(2**16, socket.MSG_DONTWAIT | socket.MSG_PEEK):
            theirs.recv(2**16)
            if out.write(LINE):
                break
        out.close()


def test_a_pipe_that_gets_its_reader_late(tmp_path: Path) -> None:
    """A named one whose reader has gone and comes back: lines in between are lost, later ones arrive."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    shared = os.open(path, os.O_WRONLY)
    os.close(both)
    out = open_output(shared)
    assert not out.write(LINE)
    with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert out.write(LINE)
        assert reader.read(1000) == LINE
    assert not out.write(LINE)
    os.close(shared)
    out.close()


@pytest.mark.parametrize("kind", ["pipe", "socket", "queue"])
def test_no_descriptor_is_left(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output opens one of its own, and closes only that."""
    if kind == "queue":
        monkeypatch.setattr(os, "open", refuse)
    before = descriptors()
    ends = [end.detach() for end in socket.socketpair()] if kind == "socket" else os.pipe()
    out = open_output(ends[1])
    assert out.write(LINE)
    out.close()
    assert os.read(ends[0], 1000) == LINE
    for end in ends:
        os.close(end)
    assert descriptors() == before


def test_a_closed_stream_lets_go_of_its_pipe() -> None:
    """Else its reader would never see the end."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader:
        with open(writing, "w") as stream:
            logs = Logs.open("debug", "json", stream)
            logs(ENDED)
        logs(ENDED)
        gc.collect()
        assert logs.dropped == 1
        assert reader.read(1 << 16).count(b"\n") == 1
        assert reader.read(1 << 16) == b""


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for the reader costs lines, not memory; what it was given arrives in order."""
    monkeypatch.setattr(os, "open", refuse)
    reading, writing = os.pipe()
    out = open_output(writing)
    taken = [number for number in range(5 * QUEUE_LIMIT) if out.write(b"%099d\n" % number)]
    assert QUEUE_LIMIT <= len(taken) < 5 * QUEUE_LIMIT
    os.close(writing)
    got = b""
    while got.count(b"\n") < len(taken):
        got += os.read(reading, 1 << 16)
    assert [int(line) for line in got.splitlines()] == taken
    out.close()
    os.close(reading)


def test_a_fork_has_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forks, which copy no threads; the last lines leave at the end of each process."""
    script = (
        "import os\n"
        "from manallm_proxy.observe.output import open_output\n"
        "def refuse(*_, **__): raise PermissionError\n"
        "os.open = refuse\n"
        "out = open_output(2)\n"
        "out.write(b'before\\n')\n"
        "pid = os.fork()\n"
        "out.write(b'child\\n' if pid == 0 else b'parent\\n')\n"
        "if pid: os.waitpid(pid, 0)\n"
    )
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-W", "ignore", "-c", script],
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_DUP2, writing, 2)],
    )
    os.close(writing)
    with open(reading, "rb") as reader:
        assert sorted(reader.read().split()) == [b"before", b"child", b"parent"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then lines are lost, and the next one tries again."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "open", refuse)
    reading, writing = os.pipe()
    out = open_output(writing)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not out.write(LINE)
    assert out.write(LINE)
    out.close()
    assert os.read(reading, 1000) == LINE
    os.close(reading)
    os.close(writing)


def test_a_loss_is_reported_without_another_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as there is room again: a quiet proxy may have nothing else to say for hours."""
    monkeypatch.setattr(log, "RETRY", 0.01)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as stream:
        logs = Logs.open("debug", "json", stream)

        async def fill_and_drain() -> bytes:
            while not logs.dropped:
                logs(ENDED)
            got = b""
            async with asyncio.timeout(5):
                while b"lost" not in got or not got.endswith(b"\n"):
                    got += reader.read(1 << 20) or b""
                    await asyncio.sleep(0.01)
            return got

        rows = [json.loads(line) for line in asyncio.run(fill_and_drain()).splitlines()]
    assert (rows[-1]["event"], rows[-1]["lines"]) == ("log lines were lost", logs.dropped)
