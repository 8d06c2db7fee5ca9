"""Answers that we write ourselves: the bytes of each kind of head, and what must never leave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.spliced import PART_BYTES
from manallm_proxy.http_server.body_writer import write_json
from manallm_proxy.http_server.raw_response import RawResponse
from tests.proxy import POST, proxy, settings


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self, *, closing: bool = False) -> None:
        self.closing = closing
        self.written = b""

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


def request(pipe: Pipe, version: Any = HttpVersion11, **headers: str) -> web.Request:
    made = make_mocked_request("POST", "/", headers, version=version, transport=pipe)
    made.writer.output_size = 0
    asked = headers.get("Connection", "keep-alive" if version == HttpVersion11 else "close")
    made._message = made._message._replace(should_close=asked == "close")  # the mock looks at the version only
    return made


class SlowPipe(Pipe):
    """That of a client that reads a portion at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.portions: list[bytes | memoryview] = []

    def write(self, data: bytes) -> None:
        self.portions.append(data)
        super().write(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 1

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        """Nothing."""


@pytest.mark.parametrize("size", [0, 5, PART_BYTES, 3 * PART_BYTES + 7])
async def test_a_large_answer_is_written_in_portions_without_a_copy(size: int) -> None:
    """Its head once, then views of what there is anyway, and only the last of them ends it."""
    pipe, body = SlowPipe(), bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    asked = request(pipe)
    response = RawResponse(asked, {}, size)
    await write_json(asked, response, body, Limits())
    assert pipe.written.endswith(b"\r\n\r\n" + body) and pipe.written.count(b"HTTP/1.1") == 1
    assert response.ended
    views = [part for part in pipe.portions if isinstance(part, memoryview)]
    assert all(part.obj is body and len(part) <= PART_BYTES for part in views)
    assert sum(map(len, views)) == (size if size > PART_BYTES else 0)


KEEPS: dict[str, str] = {"Connection": "keep-alive"}
HEADS: dict[str, tuple[Any, dict[str, str], dict[str, str], int | None, set[bytes], bool]] = {
    "whole": (HttpVersion11, {}, {}, 2, {b"Content-Length: 2"}, True),
    "stream": (HttpVersion11, {}, {}, None, {b"Transfer-Encoding: chunked"}, True),
    "whole, the client's last": (
        HttpVersion11,
        {"Connection": "close"},
        {},
        2,
        {b"Content-Length: 2", b"Connection: close"},
        False,
    ),
    "whole, our last": (
        HttpVersion11,
        {},
        {"Connection": "close"},
        2,
        {b"Content-Length: 2", b"Connection: close"},
        False,
    ),
    "whole, HTTP/1.0": (HttpVersion10, {}, {}, 2, {b"Content-Length: 2", b"Connection: close"}, False),
    "whole, HTTP/1.0, kept": (HttpVersion10, KEEPS, {}, 2, {b"Content-Length: 2", b"Connection: keep-alive"}, True),
    "stream, HTTP/1.0": (HttpVersion10, KEEPS, {}, None, {b"Connection: close"}, False),
}


@pytest.mark.parametrize(("version", "asked", "told", "length", "wanted", "kept"), HEADS.values(), ids=HEADS)
def test_heads(
    version: Any, asked: dict[str, str], told: dict[str, str], length: int | None, wanted: set[bytes], kept: bool
) -> None:
    """Framing and connection as RFC 9112 wants them; the head leaves with the first bytes, once."""
    pipe = Pipe()
    made = request(pipe, version, **asked)
    answer = RawResponse(made, {"X-Request-Id": "x", **told}, length)
    assert pipe.written == b""
    if length is None:
        answer.put_part(b"hi")
        answer.put_part(b"!", last=True)
    else:
        answer.put(b"hi")
    head, _, body = pipe.written.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert status == (b"HTTP/1.0 200 OK" if version == HttpVersion10 else b"HTTP/1.1 200 OK")
    assert {line for line in lines if not line.startswith(b"Date: ")} == wanted | {b"X-Request-Id: x"}
    assert len(lines) == len(wanted) + 2
    chunked = b"2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n"
    assert body == (b"hi" if length is not None else chunked if version == HttpVersion11 else b"hi!")
    assert bool(answer.keep_alive) is kept


@pytest.mark.parametrize("evil", ["a\r\nb", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_no_header_can_begin_another(evil: str, where: str) -> None:
    """Refused as a whole: not a byte of it leaves."""
    pipe = Pipe()
    headers = {evil: "x"} if where == "name" else {"X-Mana-LLM-Resolved": evil}
    with pytest.raises(ValueError, match="line break"):
        RawResponse(request(pipe), headers, 2)
    assert pipe.written == b""


def test_nothing_is_written_to_a_client_that_left() -> None:
    """As aiohttp's writer does it: the relay hears of it by this."""
    pipe = Pipe(closing=True)
    answer = RawResponse(request(pipe), {}, 2)
    with pytest.raises(ConnectionResetError):
        answer.put(b"hi")
    assert pipe.written == b""


async def test_aiohttp_knows_that_it_has_left() -> None:
    """Or it would send a 500 of its own after it, when something goes wrong later."""
    pipe = Pipe()
    made = request(pipe)
    answer = RawResponse(made, {}, 2)
    assert made.writer.output_size == 0
    answer.put(b"hi")
    assert made.writer.output_size == len(pipe.written)
    await answer.prepare(made)
    await answer.write_eof()
    assert pipe.written.endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("length", [2, None])
def test_nothing_follows_the_end(length: int | None) -> None:
    """A heartbeat that is late, a second end: it would be read as the beginning of the next answer."""
    pipe = Pipe()
    answer = RawResponse(request(pipe), {}, length)
    if length is None:
        answer.put_part(b"hi", last=True)
    else:
        answer.put(b"hi")
    written = pipe.written
    for write in (answer.put, answer.put_part, answer.break_off):
        with pytest.raises(RuntimeError, match="ended"):
            write(b"more")
    assert pipe.written == written


def test_a_broken_answer_has_no_last_chunk() -> None:
    """Its connection ends by FIN: some clients take the last chunk for the end of a whole answer."""
    pipe = Pipe()
    answer = RawResponse(request(pipe), {}, None)
    answer.put_part(b"hi")
    answer.break_off(b"!")
    assert pipe.written.endswith(b"\r\n\r\n2\r\nhi\r\n1\r\n!\r\n")
    assert (answer.ended, answer.keep_alive) == (True, False)


async def test_in_a_drain_it_is_the_connections_last(tmp_path: Path) -> None:
    """The header says so, and the connection ends."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"]), tmp_path) as p:
        p.app.gateway.serving.draining = True
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(POST)
        said = await asyncio.wait_for(reader.read(), 5)
        assert b"\r\nConnection: close\r\n" in said
        writer.close()
