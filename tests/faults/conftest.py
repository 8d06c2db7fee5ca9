"""What holds for every case: over each implementation of the connections, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Generator

import pytest

from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.api import Address, Connections
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.providers import http_provider
from tests.command import server
from tests.faults.matrix import BY_NAME, CONNECTIONS

IMPLEMENTATIONS: dict[str, Callable[[Address], Connections]] = dict(
    zip(CONNECTIONS, (Pool, SessionConnections), strict=True)
)

PASSED: pytest.StashKey[bool] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes the outcome of a test, for the fixtures that check after it."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case over each implementation, unless it chooses for itself or is marked ``built_in``."""
    chooses = any("connection" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if not chooses:
        built_in = metafunc.definition.get_closest_marker("built_in")
        metafunc.parametrize("connection", ["built in"] if built_in else CONNECTIONS)


@pytest.fixture(scope="session", autouse=True)
def forks() -> None:
    """The process that forks others is there before anybody counts descriptors."""
    server()


@pytest.fixture(autouse=True)
def over(connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the implementation that the case runs over in place of the one that is built in."""
    if connection in IMPLEMENTATIONS:
        monkeypatch.setattr(http_provider, "connections_to", IMPLEMENTATIONS[connection])
    elif connection == BY_NAME:
        monkeypatch.setattr(http_provider, "connections_to", _by_name)


def _by_name(address: Address) -> Connections:
    """Those that the end of a provider's name says: see `scene.scenes`."""
    return IMPLEMENTATIONS[address.name.rpartition("-")[2]](address)


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
        await asyncio.sleep(min(0.001 * 2**looks, 0.02))
    names = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_there(n)]
    assert _descriptors() <= descriptors, names
    assert _tasks() <= tasks


def _tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()}


def _is_there(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
