"""Each fault after the first event: how the provider's answer breaks off."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

from attrs import frozen

from tests.faults.before import LIMIT
from tests.faults.dialects import Dialect
from tests.upstreams import Answer, Connection, Seen

Break = Callable[[Connection, Dialect], Awaitable[None]]


@frozen
class Broken:
    """``then``: what happens once the client has the first event. ``costs``: seconds until it is told."""

    name: str
    then: Break
    costs: float = 0.0
    framed: str = "chunked"
    """How the body's end is marked: chunked, by its length, or by the end of the connection."""
    is_whole: bool = False
    """HTTP's own end is there, so the connection may be used again."""


async def begin(connection: Connection, dialect: Dialect, framed: str) -> None:
    """A head and one event that commits."""
    said = dialect.said("one")
    if framed == "chunked":
        await connection.head(content_type=dialect.content_type)
        await connection.chunk(said)
        return
    version, extra = ("1.1", "Content-Length: 100000\r\n") if framed == "length" else ("1.0", "")
    head = f"HTTP/{version} 200 OK\r\nContent-Type: {dialect.content_type}\r\n{extra}\r\n"
    await connection.send(head.encode() + said)


async def _fin(connection: Connection, dialect: Dialect) -> None:
    connection.writer.close()


async def _rst(connection: Connection, dialect: Dialect) -> None:
    connection.reset()


async def _half_close(connection: Connection, dialect: Dialect) -> None:
    connection.writer.write_eof()
    await connection.gone()


async def _silence(connection: Connection, dialect: Dialect) -> None:
    await connection.gone()


async def _last_chunk(connection: Connection, dialect: Dialect) -> None:
    await connection.end()


async def _error(connection: Connection, dialect: Dialect) -> None:
    await connection.chunk(dialect.error)
    await connection.end()


async def _drip(connection: Connection, dialect: Dialect) -> None:
    """One byte of an event that never ends, then nothing: a drip is a sign of life, its end is not."""
    await connection.chunk(dialect.said("two")[:9])
    await connection.gone()


def _inside(then: Break) -> Break:
    """An event that stops in its middle."""

    async def act(connection: Connection, dialect: Dialect) -> None:
        data = dialect.said("two")
        await connection.chunk(data[: len(data) // 2])
        await then(connection, dialect)

    return act


def _raw(data: bytes, then: Break = _silence) -> Break:
    async def act(connection: Connection, dialect: Dialect) -> None:
        await connection.send(data)
        await then(connection, dialect)

    return act


BROKEN: Final = [
    Broken("FIN", _fin),
    Broken("RST", _rst),
    Broken("half-close", _half_close),
    Broken("FIN inside an event", _inside(_fin)),
    Broken("RST inside an event", _inside(_rst)),
    Broken("a last chunk inside an event", _inside(_last_chunk), is_whole=True),
    Broken("FIN before the length", _fin, framed="length"),
    Broken("RST before the length", _rst, framed="length"),
    Broken("FIN, HTTP/1.0", _fin, framed="close"),
    Broken("RST, HTTP/1.0", _rst, framed="close"),
    Broken("a last chunk without an end of the answer", _last_chunk, is_whole=True),
    Broken("an error event", _error, is_whole=True),
    Broken("a broken chunk size", _raw(b"zz\r\n"), LIMIT),
    Broken("a negative chunk size", _raw(b"-1\r\n"), LIMIT),
    Broken("a chunk that is longer than it says", _raw(b"3\r\nabcdefgh\r\n"), LIMIT),
    Broken("a chunk of 2^64 bytes", _raw(b"10000000000000000\r\n"), LIMIT),
    Broken("garbage", _raw(bytes(range(256))), LIMIT),
    Broken("silence", _silence, LIMIT),
    Broken("silence inside an event", _drip, LIMIT),
]


def script(broken: Broken, dialect: Dialect) -> Answer:
    """Breaks off when ``upstream.go`` is set: the client has the first event by then."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await begin(connection, dialect, broken.framed)
        await asyncio.wait_for(connection.upstream.go.wait(), 10)
        await broken.then(connection, dialect)

    return answer


def bomb() -> bytes:
    """60 MB in 60 KB. After a full flush a piece means the same wherever it stands, so that one is packed for all."""
    packer = zlib.compressobj(9, wbits=31)
    start = packer.compress(b"data: ") + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b"a" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + 60 * piece


ENDLESS: Final = ("a bomb", "a line without end")


def endless(what: str) -> Answer:
    """An event of 60 MB: in 60 KB of gzip, or as it is."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if what == "a bomb":
            await connection.head(extra="Content-Encoding: gzip\r\n")
            await connection.chunk(bomb())
        else:
            await connection.head()
            for _ in range(60):
                await connection.chunk(b"a" * 2**20)
        await connection.gone()

    return answer
