"""What holds for every case: over each implementation of the connections, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Generator

import pytest

from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.providers import http_provider as client

CONNECTIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "pool": lambda patch: patch.setattr(client, "connections_to", Pool),
    "session": lambda patch: patch.setattr(client, "connections_to", SessionConnections),
}
"""Implementations of the seam to a provider, and how each is put in place of the one that is built in."""


PASSED: pytest.StashKey[bool] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes what a test came to, for the fixtures that look behind it."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case over each implementation; a real process (``REAL_PROCESS`` in the module) has the one built in."""
    if "connection" in metafunc.fixturenames:
        real = getattr(metafunc.module, "REAL_PROCESS", False)
        metafunc.parametrize("connection", ["built in"] if real else list(CONNECTIONS), indirect=True)


@pytest.fixture(autouse=True)
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation that the case runs over."""
    name: str = request.param
    if name in CONNECTIONS:
        CONNECTIONS[name](monkeypatch)
    return name


@pytest.fixture(autouse=True)
async def nothing_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Descriptors and tasks are back where they were within 2 s."""
    descriptors, tasks = _descriptors(), _tasks()
    yield
    if not request.node.stash.get(PASSED, False):
        return
    for looks in range(100):
        if _descriptors() <= descriptors and _tasks() <= tasks:
            return
        if looks % 20 == 19:
            gc.collect()
        await asyncio.sleep(0.02)
    names = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_there(n)]
    assert _descriptors() <= descriptors, names
    assert _tasks() <= tasks


def _tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()}


def _is_there(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
