"""What all tests share.

Hypothesis looks a little at each run, and more where somebody asks for it (HYPOTHESIS_PROFILE=thorough).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.providers import http_provider as client

settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(params=[Pool, SessionConnections], ids=["pool", "session"])
def http(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who speaks HTTP to providers: a test that uses this holds for both."""
    monkeypatch.setattr(client, "connections_to", request.param)
