"""aiohttp's private client names: what breaks when one goes, or stops doing what we need it for."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import TransferEncodingError

from manallm_proxy.http_client.aiohttp_internals import Connector, HttpProcessingError, check
from manallm_proxy.http_client.aiohttp_session import Session, new_session
from tests.upstreams import Connection, Seen, Upstream, each, upstream

NAMES: list[tuple[type, str]] = [
    (aiohttp.BaseConnector, "_get"),
    (aiohttp.BaseConnector, "_release"),
    (ResponseHandler, "should_close"),
]


def test_it_holds_for_the_version_that_is_installed() -> None:
    """The import has checked it already; here by name."""
    check()


@pytest.mark.parametrize(("owner", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_name_that_is_gone_is_an_error_that_says_what_to_do(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At import, not at the first request."""
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError) as told:
        check()
    assert name in str(told.value)
    assert f"aiohttp {aiohttp.__version__}" in str(told.value)
    assert "constraints.txt" in str(told.value)


def test_other_parameters_are_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An override that is called with something else would break each request."""

    async def other(self: Any, key: Any) -> None:
        """Without `traces`."""

    monkeypatch.setattr(aiohttp.BaseConnector, "_get", other)
    with pytest.raises(ImportError, match="_get"):
        check()


async def twice(connection: Connection, seen: Seen) -> None:
    """An answer, and a moment later a second one that nobody asked for."""
    await connection.reply(b"mine")
    if len(connection.upstream.posts) == 1:
        await asyncio.sleep(0.05)
        await connection.reply(b"POISON")
        connection.upstream.go.set()


async def second_answer(client: aiohttp.ClientSession, server: Upstream) -> bytes:
    """What a client gets over a pool whose connection holds a surplus answer."""
    async with client.post(server.url) as response:
        assert await response.read() == b"mine"
    await asyncio.wait_for(server.go.wait(), 2)
    await asyncio.sleep(0.05)
    async with client.post(server.url) as response:
        return await response.read()


async def test_a_surplus_answer_is_not_the_next_clients() -> None:
    """`Connector._get` is asked for each request, and passes over the connection."""
    async with upstream(each(twice)) as server, new_session() as client:
        assert isinstance(client.connector, Connector)
        assert await second_answer(client, server) == b"mine"
        assert len(server.connections) == 2


async def test_aiohttp_alone_would_hand_it_on() -> None:
    """If this fails, aiohttp has mended it: `Connector` can go."""
    async with upstream(each(twice)) as server, aiohttp.ClientSession() as client:
        assert await second_answer(client, server) == b"POISON"


async def test_a_sound_connection_is_used_again_and_the_tracer_hears_of_it() -> None:
    """The override must not cost the pool."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(b"mine")

    reused = 0

    async def note(*_: Any) -> None:
        nonlocal reused
        reused += 1

    async with upstream(each(answer)) as server:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(note)
        async with aiohttp.ClientSession(connector=Connector(), trace_configs=[trace]) as client:
            for _ in range(3):
                async with client.post(server.url) as response:
                    assert await response.read() == b"mine"
            assert (len(server.connections), reused) == (1, 2)


def test_parser_errors_are_no_client_errors() -> None:
    """Why `HttpProcessingError`, which aiohttp does not document, is in the list of what a request raises."""
    assert issubclass(TransferEncodingError, HttpProcessingError)
    assert not issubclass(TransferEncodingError, aiohttp.ClientError | OSError | TimeoutError)


class Failing:
    """A session whose `close` fails."""

    async def close(self) -> None:
        raise OSError("no")


async def test_one_failing_close_keeps_no_session_open() -> None:
    """The pool's failure is raised once both are closed."""
    session = Session()
    fresh = session._fresh = new_session(pooled=False)
    pool, session._pool = session._pool, Failing()  # type: ignore[assignment]  # only close() is called
    with pytest.raises(ExceptionGroup) as told:
        await session.close()
    assert [type(error) for error in told.value.exceptions] == [OSError]
    assert fresh.closed
    await pool.close()
