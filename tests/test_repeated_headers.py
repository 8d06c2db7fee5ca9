"""A header that is there twice: real clients send the same one once more; anything else is refused by name."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from manallm_proxy.http_server.aiohttp_server import Handler, Runner
from tests.cases import every
from tests.one_connection import GET, serving, until
from tests.proxy import proxy, settings

JAVA = (
    b"GET /api/version HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 0\r\nHost: x\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\nUpgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.15\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    b"Content-Type: application/json\r\n\r\n"
)
"""What ollama4j 1.1.6 sends for each question without a body, seen 2026-11-29."""
TYPE = b"Content-Type: application/json\r\n"
BODY = b'{"a":\r\n"Content-Type: application/json\r\nContent-Type: application/json\r\n"}'
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and body of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head.split()[1]), await asyncio.wait_for(reader.readexactly(int(length.split(b":")[1])), 5)


async def next_code(reader: asyncio.StreamReader) -> int:
    """The status of the next answer; 0 at the connection's end."""
    try:
        return (await answer(reader))[0]
    except asyncio.IncompleteReadError:
        return 0


async def echo(request: web.BaseRequest) -> web.Response:
    """The body, behind how many headers of these two there are."""
    counts = [len(request.headers.getall(name, [])) for name in ("Content-Type", "User-Agent")]
    return web.Response(body=json.dumps(counts).encode() + await request.read())


def noting(asked: list[str]) -> Handler:
    """Answers at once, whatever the body, and notes for which path."""

    async def answers(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(text="ok")

    return answers


async def test_javas_client_for_ollama_is_answered(tmp_path: Path) -> None:
    """Each time: it would say that there is no server. The answer ends the connection, since only the first is."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(JAVA)
            code, body = await answer(reader)
            assert (code, "version" in json.loads(body)) == (200, True)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n" + TYPE + TYPE + b"\r\n"
SAME = POST + TYPE + b"user-agent: a\r\nUser-Agent:  a \r\n" + TYPE.lower() + TYPE + b"\r\n"
"""Twice and three times, with blanks and in two cases of the name."""


@pytest.mark.parametrize("cut", [0, 1, 20, len(BODY)])
async def test_the_same_once_more_is_one_header(cut: int) -> None:
    """What the body says is not looked at, wherever it is cut."""
    async with serving(echo) as (runner, reader, _):
        connection = await only_connection(runner)
        connection.data_received(SAME + BODY[:cut])
        if cut < len(BODY):
            connection.data_received(BODY[cut:])
        assert await answer(reader) == (200, b"[1, 1]" + BODY)
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_what_came_with_it_is_served_before_the_end() -> None:
    """Requests of one read are one after the other, as without the repetition."""
    async with serving(echo) as (_, reader, writer):
        writer.write(SAME + BODY + POST + b"\r\n" + BODY)
        assert [await answer(reader) for _ in range(2)] == [(200, b"[1, 1]" + BODY), (200, b"[0, 0]" + BODY)]
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_head_in_parts_is_refused() -> None:
    """The later part may begin in the middle of a value, and look like a head of its own."""
    asked: list[str] = []
    async with serving(noting(asked)) as (runner, reader, _):
        connection = await only_connection(runner)
        connection.data_received(b"GET / HTTP/1.1\r\nX-Note: ")
        connection.data_received(HIDDEN)
        assert ((await answer(reader))[0], asked) == (400, [])
        assert await asyncio.wait_for(reader.read(), 5) == b""


@every(
    [
        (TYPE + b"Content-Type: text/plain\r\n", "Content-Type"),
        (TYPE + TYPE + b"Content-Type: text/plain\r\n", "Content-Type"),
        (b"Host: x\r\n", "Host"),
        (b"Host: y\r\n" + TYPE + TYPE, "Host"),
        (b"ETag: a\r\nETag: a\r\n", "Etag"),
        (b"Max-Forwards: 8\r\nMax-Forwards: 8\r\n", "Max-Forwards"),
    ]
)
async def test_anything_else_is_refused_by_name(lines: bytes, name: str) -> None:
    """Two readers might take one value or the other."""
    async with serving(echo) as (_, reader, writer):
        writer.write(POST + lines + b"\r\n" + BODY)
        code, said = await answer(reader)
        assert (code, said.decode().casefold()) == (400, f"the header {name} is there more than once".casefold())
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_length_twice_is_no_http() -> None:
    """It is where requests are told apart, so nothing is forgiven there."""
    async with serving(echo) as (_, reader, writer):
        writer.write(POST + TYPE + TYPE + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        assert (await answer(reader))[0] == 400
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_behind_another_request_it_is_refused() -> None:
    """What came together is not taken apart: the connection ends, and nothing is answered twice."""
    async with serving(echo) as (_, reader, writer):
        writer.write(POST + b"\r\n" + BODY + SAME + BODY)
        assert (await answer(reader))[0] == 400
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_body_is_never_read_as_a_head() -> None:
    """Also where its request is answered already: it would be another one, which a proxy in front has not seen."""
    asked: list[str] = []
    after = b"GET /next HTTP/1.1\r\nHost: x\r\n" + TYPE + TYPE + b"\r\n"
    hidden = b"POST /hidden HTTP/1.1\r\nHost: x\r\n" + TYPE + TYPE + b"Content-Length: %d\r\n\r\n" % len(after)
    async with serving(noting(asked)) as (_, reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1 + len(hidden)) + b"a")
        assert (await answer(reader))[0] == 200
        writer.write(hidden + after)
        code, said = await answer(reader)
        assert (code, b"Content-Type" in said, asked) == (400, True, ["/"])
        assert await asyncio.wait_for(reader.read(), 5) == b""


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"


async def only_connection(runner: Runner) -> RequestHandler:
    """The server's side of it, which can be given reads of exact sizes."""
    await until(lambda: bool(runner.server.connections))
    return runner.server.connections[0]


@every([(first, end) for first in (GET, POST + b"\r\n" + BODY, CHUNKED) for end in (0, 9, -9, -1)])
async def test_a_value_is_never_read_as_a_head(first: bytes, end: int) -> None:
    """Where a head begins in the read that another request ends in, the next read is the middle of it."""
    asked: list[str] = []
    async with serving(noting(asked)) as (runner, reader, _):
        connection = await only_connection(runner)
        connection.data_received(first[:end])
        connection.data_received(first[end:] + b"GET /second HTTP/1.1\r\nX-Note: ")
        assert (await answer(reader))[0] == 200
        connection.data_received(HIDDEN)
        assert ((await answer(reader))[0], asked) == (400, ["/"])
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_requests_are_as_they_were_sent_however_they_are_cut() -> None:
    """What cannot be told apart from another request is refused with all that follows it, or the connection ends."""
    draw, served = random.Random(5), 0
    for _ in range(100):
        asked: list[tuple[str, bytes]] = []

        async def answers(request: web.BaseRequest, asked: list[tuple[str, bytes]] = asked) -> web.Response:
            asked.append((request.path, await request.read()))
            return web.Response(text="ok")

        sent, wanted = b"", []
        for n in range(3):
            body = draw.choice([b"", b"a", b"\r\n\r\n", HIDDEN, BODY])
            lines = [TYPE, TYPE, b"X-Note: GET /hidden HTTP/1.1\r\n", b"Content-Length: %d\r\n" % len(body)]
            lines = lines[draw.choice([0, 1, 1]) :]
            draw.shuffle(lines)
            sent += b"POST /%d HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (n, b"".join(lines), body)
            wanted.append((f"/{n}", body))
        worst = [n for n in range(len(sent)) if sent.startswith(b"GET /hidden", n)]
        cuts = [0, *sorted({draw.choice(worst), *draw.sample(range(1, len(sent)), 2)}), len(sent)]
        async with serving(answers) as (runner, reader, _):
            connection = await only_connection(runner)
            for start, end in pairwise(cuts):
                connection.data_received(sent[start:end])
                for _ in range(draw.choice([0, 20])):
                    await asyncio.sleep(0)
            codes: list[int] = []
            while len(codes) < 3 and 400 not in codes and (code := await next_code(reader)):
                codes.append(code)
        assert asked == wanted[: len(asked)]
        assert codes in ([200] * len(asked), [200] * len(asked) + [400])
        served += len(asked)
    assert served > 80
