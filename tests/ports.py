"""Ports that nobody else takes."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections.abc import Iterator


def free_port() -> int:
    """A port of 127.0.0.1 for who is about to listen there, or will again.

    It lies below those that the kernel gives to outgoing connections, so that none of the many of this suite takes it
    meanwhile; each of pytest's workers has a thousand of its own.
    """
    if os.getpid() not in _PORTS:  # also where one was asked for before a fork
        _PORTS[os.getpid()] = _own_ports()
    for port in _PORTS[os.getpid()]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def held(port: int) -> socket.socket:
    """Keeps `port` from all who look for a free one, also those of another run on this machine, for who will listen
    there later (with SO_REUSEADDR, as servers do). It does not listen."""
    keeps = socket.socket()
    keeps.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeps.bind(("127.0.0.1", port))
    return keeps


def _own_ports() -> Iterator[int]:
    number = os.environ.get("TESTS_FORK") or os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    first = 13_000 + 1000 * (int(number) % 16)
    at = random.SystemRandom().randrange(1000)  # another run may go on beside this one
    return itertools.cycle([*range(first + at, first + 1000), *range(first, first + at)])


_PORTS: dict[int, Iterator[int]] = {}
