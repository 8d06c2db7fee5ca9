"""A real Redis of the test's own, on a unix socket: killed, stopped, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from manallm_proxy.state import link
from tests.needs import require

LONG = 60.0
"""Seconds in place of `link.BUDGET`: the machine of the tests may be too busy for a server to answer in time."""
PATIENCE = 0.5
"""The same once it hangs, since all wait for that."""


@define(eq=False)
class RedisServer:
    """``url`` is what `state` names. Nothing is written to disk."""

    folder: Path
    password: str | None = None
    more: tuple[str, ...] = ()
    program: str = "redis"
    """Or `valkey`: that which `VALKEY` names, as `make faults` does."""
    _child: subprocess.Popen[bytes] | None = None
    _client: Any = None
    _patch: pytest.MonkeyPatch = field(factory=pytest.MonkeyPatch)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return self.url_with(self.password)

    def url_with(self, password: str | None) -> str:
        return f"unix://{f':{password}@' if password else ''}{self.socket}"

    def start(self) -> None:
        """Returns once it answers."""
        self.socket.unlink(missing_ok=True)
        secret = ("--requirepass", self.password) if self.password else ()
        self._child = subprocess.Popen(
            [
                program(self.program),
                *("--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no"),
                *("--dir", self.folder, *secret, *self.more),
            ],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(1000):
            with contextlib.suppress(Exception):
                if self.client().ping():
                    return
            time.sleep(0.005)
        raise AssertionError("it does not start")

    def client(self) -> Any:
        """A client of the test's own, which waits as long as it takes."""
        if self._client is None:
            self._client = import_module("redis").Redis.from_url(self.url)
        return self._client

    def names(self) -> list[bytes]:
        """All keys."""
        return list(self.client().scan_iter())

    def kill(self) -> None:
        """As a machine that loses its power."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def end(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._child is not None:  # else it is not here, which is said
            self.go_on()
            self.kill()

    def stop(self) -> None:
        """It hangs: connections are taken by the kernel, nothing is answered."""
        assert self._child is not None
        self._patch.setattr(link, "BUDGET", min(link.BUDGET, PATIENCE))
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._child is not None
        self._patch.undo()
        self._child.send_signal(signal.SIGCONT)


def program(name: str) -> Path:
    """Of the server, see `RedisServer.program`."""
    if name == "redis":
        return require("redis-server", "apt install redis-server")
    return require(os.environ.get("VALKEY") or "valkey-server", "VALKEY names none; make faults installs one")


@contextmanager
def redis_server(
    folder: Path, password: str | None = None, *more: str, program: str = "redis"
) -> Iterator[RedisServer]:
    """One that runs, until the context is left; links of this process give it `LONG`, and `PATIENCE` from when it hangs
    until it goes on."""
    if find_spec("redis") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the package redis is not here: pip install '.[test]'")
    server = RedisServer(folder, password, more, program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "BUDGET", LONG)
        try:
            server.start()
            yield server
        finally:
            server.end()
