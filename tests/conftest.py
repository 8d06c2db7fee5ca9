"""What all tests share.

Hypothesis looks a little at each run, and more where somebody asks for it (HYPOTHESIS_PROFILE=thorough).
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import settings

from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.providers import http_provider as client

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what starts as a process is compiled once, and not each time
sys.dont_write_bytecode = False

settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whoever uses `http` runs over each implementation, unless it is marked ``built_in``."""
    if "http" in metafunc.fixturenames:
        over = {"pool": Pool, "session": SessionConnections}
        if metafunc.definition.get_closest_marker("built_in"):
            del over["session"]
        metafunc.parametrize("http", over.values(), ids=over, indirect=True)


@pytest.fixture
def http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who speaks HTTP to providers: a test that uses this holds for both."""
    monkeypatch.setattr(client, "connections_to", request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest, the installation, comes first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.path.name != "test_packaging.py")


NUMBERS = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own, as pytest's, without the link to the newest: to replace that takes 2 ms."""
    name = re.sub(r"\W", "_", request.node.name)[:24]
    return tmp_path_factory.mktemp(f"{name}-{next(NUMBERS)}", numbered=False)


@pytest.fixture(scope="session", autouse=True)
def nobody_is_trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An authority that signs nothing takes the place of the machine's.

    To read those takes 50 ms for each process; and no test reaches a stranger over TLS.
    """
    path = tmp_path_factory.mktemp("tls") / "nobody.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield
