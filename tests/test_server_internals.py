"""Each private name of aiohttp's server that we touch: gone, the import says so; there, it has its effect."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.http_server import aiohttp_internals as internals
from tests.one_connection import GET, serving, until


async def ok(request: web.BaseRequest) -> web.Response:
    return web.Response(text="ok")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RequestHandler, "force_close"),
        (RequestHandler, "handle_error"),
        (RequestHandler, "peername"),
        (web.StreamResponse, "_eof_sent"),
        (web.StreamResponse, "_keep_alive"),
        (web.BaseRequest, "writer"),
    ],
)
def test_a_name_that_is_gone_is_said_at_import(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version, the name, and what to do."""
    monkeypatch.delattr(owner, name)
    with pytest.raises(ImportError, match=rf"aiohttp [\d.]+.* has no .*{name}.*constraints"):
        internals._check()


async def test_what_a_connection_has_and_does() -> None:
    """``_request_count``, ``_messages`` and ``_current_request``, at each moment of two requests in a row."""
    go = asyncio.Event()

    async def waits(request: web.BaseRequest) -> web.Response:
        await go.wait()
        return web.Response(text="ok")

    async with serving(waits) as (runner, reader, writer):
        await until(lambda: bool(runner.server and runner.server.connections))
        assert runner.server is not None
        [connection] = runner.server.connections
        assert runner.awaits_first_requests()
        assert (internals.requests_begun(connection), internals.is_handling(connection)) == (0, False)
        writer.write(GET + GET)
        await until(lambda: internals.requests_begun(connection) == 2)
        await until(lambda: internals.is_handling(connection))
        assert not runner.awaits_first_requests()
        go.set()
        for _ in range(2):
            await reader.readuntil(b"ok")
        await until(lambda: not internals.is_handling(connection))


async def test_an_answer_of_ours_is_not_sent_again() -> None:
    """``_eof_sent`` and ``output_size``: aiohttp finds the answer sent, and sends no error after it."""

    async def writes_itself(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        assert request.transport is not None
        request.transport.write(raw)
        assert not internals.is_answered(request)
        internals.mark_answered(request, len(raw))
        assert internals.is_answered(request)
        internals.mark_sent(response, keep_alive=True)
        if request.path == "/bug":
            raise RuntimeError("after the answer")
        return response

    async with serving(writes_itself) as (_, reader, writer):
        writer.write(GET + GET.replace(b"/ ", b"/bug "))
        assert (await reader.read()).count(b"HTTP/1.1") == 2


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_whether_the_connection_goes_on(keep_alive: bool) -> None:
    """``_keep_alive`` of an answer that we wrote."""

    async def writes_itself(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        internals.mark_sent(response, keep_alive=keep_alive)
        return response

    async with serving(writes_itself) as (_, reader, writer):
        writer.write(GET)
        await reader.readuntil(b"hi")
        if keep_alive:
            writer.write(GET)
            await reader.readuntil(b"hi")
        else:
            assert await asyncio.wait_for(reader.read(), 5) == b""


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 500 + b"\r\n\r\n", b"over the limit"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X:y\r\n" for _ in range(101)) + b"\r\n", b"100 headers"),
        (b"GET / HTTP/1.1\r\nnonsense\r\n\r\n", b"not valid HTTP"),
        (b"GET /\r\n\r\n", b"speak HTTP/1.1"),
    ],
)
async def test_what_the_parser_refuses_is_told_apart(raw: bytes, words: bytes) -> None:
    """By class and message of aiohttp's errors; ``_version`` makes the refusal HTTP/1.1."""
    async with serving(ok) as (_, reader, writer):
        writer.write(raw)
        said = await asyncio.wait_for(reader.read(), 5)
        assert said.startswith(b"HTTP/1.1 4")
        assert words in said


async def test_the_version_is_ours_to_set() -> None:
    """``_version``, read without being kept."""
    seen: list[Any] = []

    async def looks(request: web.BaseRequest) -> web.Response:
        seen.append(internals.version_of(request))
        internals.force_http11(request)
        seen.append(request.version)
        return web.Response(text="ok")

    async with serving(looks) as (_, reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert (seen[0].minor, seen[1]) == (0, HttpVersion11)


UPGRADE = b"GET /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
LONG = b"POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000
"""Its body is longer than a head may be."""


@pytest.mark.parametrize("parts", [1, 3])
async def test_what_comes_behind_a_declined_upgrade_is_requests(parts: int) -> None:
    """``_upgraded`` and ``_message_tail``: bodies are told from heads there too, and what is no request is refused."""
    go = asyncio.Event()

    async def reads(request: web.BaseRequest) -> web.Response:
        if request.path == "/up":
            await go.wait()
        return web.Response(text=f"{request.path} {len(await request.read())}\n")

    async with serving(reads) as (_, reader, writer):
        behind = LONG + GET + LONG
        size = len(behind) // parts + 1
        writer.write(GET + UPGRADE + behind[:size])
        assert await reader.readuntil(b"/ 0\n")
        for at in range(size, len(behind), size):
            writer.write(behind[at : at + size])
            await writer.drain()
        go.set()
        for expected in (b"/up 0\n", b"/long 20000\n", b"/ 0\n", b"/long 20000\n"):
            assert await asyncio.wait_for(reader.readuntil(expected), 5)


H2C = b"POST /up HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
BODY = b"Content-Length: 3\r\n\r\nabc"
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


async def test_nothing_is_lost_behind_a_request_for_another_protocol() -> None:
    """``upgrade``: aiohttp drops what is in the read that ends it, so that the next one would be cut.

    Where that cannot be helped the answer says that it is the last: what came is asked again, and not in part.
    """

    async def reads(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.path} {len(await request.read())}\n")

    raw = H2C + BODY + GET
    async with serving(reads) as (runner, _, _):
        await until(lambda: bool(runner.server.connections))
        [first] = runner.server.connections
        for place in (1, *range(len(H2C + BODY) - 7, len(H2C + BODY) + 3)):
            reader, writer = await asyncio.open_connection(*runner.addresses[0])
            await until(lambda: len(runner.server.connections) == 2)
            [connection] = set(runner.server.connections) - {first}
            connection.data_received(raw[:place])
            connection.data_received(raw[place:])
            said = await asyncio.wait_for(reader.readuntil(b"/up 3\n"), 5)
            if b"Connection: close" in said:
                assert await asyncio.wait_for(reader.read(), 5) == b"", place
            else:
                assert await asyncio.wait_for(reader.readuntil(b"/ 0\n"), 5), place
            writer.close()
            await until(lambda: len(runner.server.connections) == 1)


@pytest.mark.parametrize(("body", "stays"), [(BODY, True), (b"\r\n", True), (CHUNKS, False)])
async def test_a_connection_outlives_a_request_for_another_protocol(body: bytes, stays: bool) -> None:
    """Java's client asks for HTTP/2 with each of its requests; how long chunks are nobody knows."""
    async with serving(ok) as (_, reader, writer):
        for _ in range(2):
            writer.write(H2C + body)
            said = await asyncio.wait_for(reader.readuntil(b"ok"), 5)
            assert (b"Connection: close" not in said) is stays
            if not stays:
                break


async def test_the_usual_properties_are_attributes_and_say_what_aiohttps_say() -> None:
    """Also of a request whose target is a whole URL, of which the path counts; and the task is the one that runs."""
    seen: list[dict[str, object]] = []

    async def looks(request: web.BaseRequest) -> web.Response:
        ours, its = vars(request), vars(web.BaseRequest)
        assert internals.running_task(request) is asyncio.current_task()
        for name in ("headers", "method", "rel_url", "content"):
            assert getattr(request, name) is ours[name] is its[name].wrapped(request), name
        seen.append({"method": request.method, "path": request.rel_url.raw_path, "host": request.headers["Host"]})
        return web.Response(text="ok")

    async with serving(looks) as (_, reader, writer):
        writer.write(GET + GET.replace(b"GET / ", b"DELETE http://y/a%20b?c=d "))
        for _ in range(2):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    assert seen == [{"method": "GET", "path": "/", "host": "x"}, {"method": "DELETE", "path": "/a%20b", "host": "x"}]


async def test_a_body_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """``_buffer``, ``_buffer_offset``, ``_eof``, ``_exception`` and ``_size``: one piece is not read as parts are."""
    loop = asyncio.get_running_loop()

    def body(*parts: bytes) -> StreamReader:
        made = StreamReader(BaseProtocol(loop), 100, loop=loop)
        for part in parts:
            made.feed_data(part)
        return made

    piece = b"a piece of some length"
    whole = body(piece)
    assert internals.take_body(whole) is piece
    whole = body(piece)
    whole.feed_eof()
    with monkeypatch.context() as patch:
        patch.delattr(StreamReader, "read_nowait")
        assert internals.take_body(whole) is piece
    assert whole.at_eof()
    assert whole._size == 0
    assert await whole.read() == b""
    assert internals.take_body(whole) == b""
    half = body(piece, piece)
    half.feed_eof()
    assert half.read_nowait(2) + internals.take_body(half) == 2 * piece
    begun = body(piece)
    begun.feed_eof()
    assert begun.read_nowait(2) + internals.take_body(begun) == piece
    assert internals.take_body(EMPTY_PAYLOAD) == b""
    broken = body(piece)
    broken.set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        internals.take_body(broken)
