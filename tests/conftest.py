"""What all tests share."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import importlib
import itertools
import os
import re
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.providers import http_provider as client
from tests import command, examples, fair_clock, rewriting, sdks

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what starts as a process is compiled once, and not each time
sys.dont_write_bytecode = False

examples.load()


SEVERAL = 200
"""Tests, of which some are about properties."""
WAIT = (
    *("workers", "change", "process", "soak", "workers_box", "resources", "odd_places", "status_page", "commands"),
    *(
        "docs",
        "hangup",
        "load",
        "tls",
        "slow_clients",
        "reload",
        "discovery",
        "first_run",
        "door_responses_sdks",
        "sdks",
    ),
    *("door_messages_sdks", "native_sdks", "door_ollama_sdks", "dashboards", "idle", "forks", "traces", "budgets"),
)
"""Files whose tests wait for seconds, or for other processes."""
LATE = ("genai_prices.data_snapshot", "google.genai.types")
"""Modules that take 0.2 to 0.4 s, and which ours import only where a configuration needs them."""
FOLDER = tempfile.TemporaryDirectory()


def pytest_configure(config: pytest.Config) -> None:
    """Each process would take 50 ms to read the machine's authorities; and no test reaches a stranger over TLS.

    No test is late because others have the processors (`fair_clock`). The processes that others are forked from take a
    second to start: where forks share them, they do so meanwhile.
    """
    # signs nothing, and takes their place
    patch = pytest.MonkeyPatch()
    path = Path(FOLDER.name) / "nobody.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    patch.setenv("SSL_CERT_FILE", str(path))
    patch.setenv("LANGUAGE", "C")  # argparse looks for translations of its words: 320 files that are not there, 3 ms
    patch.setattr(signal, "valid_signals", functools.cache(signal.valid_signals))  # seven times a proxy, 0.2 ms each
    patch.setattr(asyncio.BaseEventLoop, "time", fair_clock.begin)
    config.add_cleanup(patch.undo)
    atexit.register(FOLDER.cleanup)  # after the end of what is started below
    if config.getoption("forks", 0) and not config.option.collectonly:
        command.server()
        sdks.start_servers()
        rewriting.ahead(config)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not look at it again and again.

    What tests make is looked at less often than is usual, since that takes a twentieth of their time; `serve` itself
    has it still more seldom.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(5_000, 10, 10)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """What was left open is reported in a worker's last test at the latest: as an error, by pytest, which waits."""
    if nextitem is None:
        gc.collect()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What Hypothesis finds out once, such as the constants in all modules (1 s), it does before the forks.

    So is imported what tests of several files do.
    """
    if session.config.getoption("forks", 0) and len(session.items) > SEVERAL:
        for name in LATE:
            importlib.import_module(name)
        given(st.text() | st.integers() | st.floats())(settings(max_examples=1, database=None)(lambda _: None))()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever uses `http` runs over each implementation, unless it is marked ``built_in``."""
    if "http" in metafunc.fixturenames:
        over = {"pool": Pool, "session": SessionConnections}
        if metafunc.definition.get_closest_marker("built_in"):
            del over["session"]
        metafunc.parametrize("http", over.values(), ids=over, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest comes first, so that no worker waits for another at the end.

    Some begin there (`forks`), with the files that are one worker's, lest one of these is the last of all.
    """
    turns = {f"test_{name}.py": turn for turn, name in enumerate(WAIT)}
    items.sort(
        key=lambda item: turns.get(item.path.name, len(turns) + (item.get_closest_marker("together") is not None))
    )


@pytest.fixture
def http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who speaks HTTP to providers: a test that uses this holds for both."""
    monkeypatch.setattr(client, "connections_to", request.param)


NUMBERS = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own, as pytest's, without the link to the newest: to replace that takes 2 ms."""
    name = re.sub(r"\W", "_", request.node.name)[:24]
    fork = os.environ.get("TESTS_FORK", "")
    return tmp_path_factory.mktemp(f"{name}-{fork}-{next(NUMBERS)}", numbered=False)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """The folder of a second instance."""
    (folder := tmp_path / "two").mkdir()
    return folder
