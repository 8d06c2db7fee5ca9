"""The end of a broken answer's connection: its client reads the last event first, and nothing follows that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import pytest
from aiohttp import web

from manallm_proxy.http_server import aiohttp_internals as internals
from manallm_proxy.http_server import aiohttp_server
from manallm_proxy.http_server.aiohttp_server import Server, _Connection
from manallm_proxy.http_server.raw_response import RawResponse
from tests.one_connection import GET, serving, until
from tests.proxy import everything, openai, proxy, settings
from tests.upstreams import Connection, Seen, chunk, each, upstream

ERROR = b"data: error\n\n"
NEVER = 60.0
WORDS: Final = [{"role": "user", "content": "hi"}]


async def dies(connection: Connection, seen: Seen) -> None:
    """After one word."""
    await connection.head()
    await connection.chunk(chunk("one"))
    connection.writer.close()


async def breaks(request: web.BaseRequest) -> RawResponse:
    answer = RawResponse(request, {}, None)
    answer.put_part(b"one")
    answer.break_off(ERROR)
    return answer


def of(server: Server) -> _Connection:
    (connection,) = server.connections
    return cast(_Connection, connection)


@asynccontextmanager
async def broken() -> AsyncIterator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection whose client has read the last event of a broken answer, and whose request is over."""
    async with serving(breaks) as (runner, reader, writer):
        server = cast(Server, runner.server)
        writer.write(GET)
        await reader.readuntil(ERROR + b"\r\n")
        connection = of(server)
        await until(lambda: connection._task_handler is None)
        yield server, reader, writer


async def test_the_end_does_not_come_with_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bun's fetch drops an event that comes with it (findings/bun-cut-drops-event.sh). A client may end it itself."""
    monkeypatch.setattr(aiohttp_server, "LINGER", NEVER)
    async with broken() as (server, reader, writer):
        connection = of(server)
        assert connection.transport is not None and not connection.transport.is_closing()
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await until(lambda: server.open == 0)
        assert connection not in server.broken._due


async def test_it_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_server, "LINGER", 0.01)
    async with broken() as (server, reader, _):
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await until(lambda: server.open == 0)


@pytest.mark.parametrize("more", [GET, GET[:9], b"x" * 9000, b"\r\n\r\n"], ids=["whole", "begun", "long", "none"])
async def test_what_comes_meanwhile_is_not_answered(more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer, to a next request or to a head that is too long or too late, would stand in the broken one's body."""
    monkeypatch.setattr(aiohttp_server, "LINGER", NEVER)
    async with broken() as (server, reader, writer):
        connection = of(server)
        writer.write(more)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert connection not in server.heads._due


async def test_a_head_that_began_before_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it comes later: where it is late there is no answer."""
    monkeypatch.setattr(aiohttp_server, "LINGER", NEVER)
    go = asyncio.Event()

    async def breaks_later(request: web.BaseRequest) -> RawResponse:
        await go.wait()
        return await breaks(request)

    async with serving(breaks_later) as (runner, reader, writer):
        server = cast(Server, runner.server)
        writer.write(GET)
        await until(lambda: any(map(internals.is_handling, server.connections)))
        writer.write(GET[:9])
        connection = of(server)
        await until(lambda: connection in server.heads._due)
        go.set()
        await reader.readuntil(ERROR + b"\r\n")
        await until(lambda: connection._task_handler is None)
        assert connection not in server.heads._due


async def test_the_server_ends_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_server, "LINGER", NEVER)
    async with serving(breaks) as (runner, reader, writer):
        writer.write(GET)
        await reader.readuntil(ERROR + b"\r\n")
        await asyncio.wait_for(runner.cleanup(), 5)
        assert await asyncio.wait_for(reader.read(), 5) == b""


def late(data: bytes) -> list[bytes]:
    """The events that openai 4.40 to 4.85 and @anthropic-ai/sdk 0.20 to 0.36 for Node have read, so far: they look for
    the blank line everywhere but at the very end of what came."""
    return data[:-1].split(b"\n\n")[:-1]


async def test_the_last_event_is_heard_without_one_behind_it(tmp_path: Path) -> None:
    """They hand an event on when the next byte comes, and none came: "Premature close", and not why
    (findings/node-sdks-one-event-late.sh). A line feed is one; Ollama's clients would raise at it."""
    config = {"failure_threshold": 99}
    async with upstream(each(dies)) as up, proxy(settings({"p": openai(up.url)}, health=config), tmp_path) as p:

        async def end_of(path: str, **body: Any) -> bytes:
            async with p.client.post(p.url + path, json={"model": "mana/test", "stream": True, **body}) as response:
                return await everything(response)

        for path, body in (
            ("/v1/chat/completions", {"messages": WORDS}),
            ("/v1/messages", {"messages": WORDS, "max_tokens": 9}),
            ("/v1/responses", {"input": WORDS}),
        ):
            came = await end_of(path, **body)
            assert b"broke off" in late(came)[-1], path
            assert came.endswith(b"}\n\n\n"), path
        assert b"broke off" in (await end_of("/api/chat", messages=WORDS)).splitlines()[-1]
