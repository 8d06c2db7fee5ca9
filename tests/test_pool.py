"""Our own HTTP/1.1 connections: framing, reuse, backpressure, limits. What both kinds of connections share is
in test_client.py; here is what only ours do, or do their own way."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    ProviderError,
)
from manallm_proxy.contract.spliced import PART_BYTES, Spliced
from manallm_proxy.http_client import pool as pool_module
from manallm_proxy.http_client.api import HEAD_LIMIT, KEEP_ALIVE_TIMEOUT, Address
from manallm_proxy.http_client.connection import Connection
from manallm_proxy.http_client.inflate import Inflater
from manallm_proxy.http_client.pool import Pool
from manallm_proxy.http_client.response import READ_HIGH_WATER, Response
from tests import upstreams
from tests.cases import each_with_each
from tests.upstreams import Seen, each, upstream
from tests.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Wire(asyncio.Transport):
    """A transport in memory: what was written, and whether it is read or gone."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.portions: list[list[bytes | bytearray | memoryview]] = []
        self.reading = True
        self.gone = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.portions.append(list(list_of_data))
        self.sent += b"".join(self.portions[-1])

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.gone = True


class Home:
    """Keeps what comes back."""

    def __init__(self) -> None:
        self.kept: list[Connection] = []
        self.watched: list[float] = []

    def keep(self, connection: Connection) -> None:
        self.kept.append(connection)

    def lost(self, connection: Connection) -> None:
        """Nothing."""

    def watch(self, until: float) -> None:
        self.watched.append(until)


def asked() -> tuple[Connection, Response, Wire, Home]:
    """A connection with a request under way."""
    wire, home = Wire(), Home()
    connection = Connection("gpu", home, asyncio.get_running_loop())
    connection.connection_made(wire)
    return connection, connection.send(b"GET / HTTP/1.1\r\n\r\n", b""), wire, home


async def test_a_long_request_is_sent_in_portions_and_never_copied() -> None:
    """One a turn, none while the provider does not read, each a view of the body that there is anyway."""
    wire = Wire()
    connection = Connection("gpu", Home(), asyncio.get_running_loop())
    connection.connection_made(wire)
    body = os.urandom(3 * PART_BYTES)
    view = memoryview(body)
    connection.send(b"HEAD", Spliced((b"{", view[:100], b"model", view[105:])))
    assert len(wire.portions) == 1
    connection.pause_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(wire.portions) == 2  # it was on its way
    connection.resume_writing()
    for _ in range(9):
        await asyncio.sleep(0)
    assert wire.sent == b"HEAD{" + body[:100] + b"model" + body[105:]
    assert [sum(map(len, portion)) for portion in wire.portions] == [PART_BYTES] * 3 + [5]
    views = [part for portion in wire.portions for part in portion if isinstance(part, memoryview)]
    assert all(part.obj is body for part in views) and sum(map(len, views)) == len(body) - 5


async def test_an_answer_before_the_end_of_a_long_request_ends_the_connection() -> None:
    """What is unsent would be taken for the next request; nothing of it leaves any more."""
    wire, home = Wire(), Home()
    connection = Connection("gpu", home, asyncio.get_running_loop())
    connection.connection_made(wire)
    response = connection.send(b"HEAD", bytes(2 * PART_BYTES))
    connection.data_received(OK)
    assert await body_of(response) == b"hi"
    response.release()
    assert wire.gone and not home.kept
    await asyncio.sleep(0)
    assert len(wire.portions) == 1


async def body_of(response: Response) -> bytes:
    parts = []
    while part := await response.read():
        parts.append(part)
    return b"".join(parts)


WHOLE = {
    "a length": (OK, b"hi"),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\nh\r\n1\r\ni\r\n0\r\nT: x\r\n\r\n",
        b"hi",
    ),
    "a hint before it": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"hi"),
    "no body": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "identity in another word": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: None\r\nContent-Length: 2\r\n\r\nhi",
        b"hi",
    ),
    "blanks after values": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: identity \t\r\nContent-Length: 2  \r\nX-A: b \r\n\r\nhi",
        b"hi",
    ),
    "a chunked coding with blanks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked \r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"hi",
    ),
    "gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed := gzip.compress(b"hi" * 99)), packed),
        b"hi" * 99,
    ),
    "gzip in members, one of them empty": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed := gzip.compress(b"hi" * 9) + gzip.compress(b"") + gzip.compress(b"ho")), packed),
        b"hi" * 9 + b"ho",
    ),
    "gzip and what is none": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed := gzip.compress(b"hi") + b"\x1f\x1f\0\0"), packed),
        b"hi",
    ),
    "deflate": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n%b"
        % (len(packed := zlib.compress(b"hi" * 99)), packed),
        b"hi" * 99,
    ),
}


@pytest.mark.parametrize("what", WHOLE)
async def test_an_answer_cut_anywhere_is_the_same(what: str) -> None:
    """At every byte: the same body, and the connection is free again."""
    raw, body = WHOLE[what]
    for at in range(len(raw) + 1):
        connection, response, _, home = asked()
        connection.data_received(raw[:at]) if at else None
        connection.data_received(raw[at:]) if raw[at:] else None
        await response.head(None)
        assert await body_of(response) == body
        response.release()
        assert home.kept == [connection]
        connection.connection_lost(None)


@pytest.mark.parametrize("size", [1, 100, 10_000, 10**6])
def test_members_of_gzip_are_inflated_within_the_limit(size: int) -> None:
    """Large and small ones, more of them than one call reads, in packets of `size` bytes."""
    plain = [b"a" * 100_000, random.Random(1).randbytes(10_000), *(b"%d" % n for n in range(200))]
    packed = b"".join(map(gzip.compress, plain))
    inflating = Inflater(31)
    out = []
    for at in range(0, len(packed), size):
        data = packed[at : at + size]
        while data:
            out.append(inflating.decompress(data, 5000))
            data = inflating.unconsumed_tail
    assert b"".join(out) == b"".join(plain)
    assert max(map(len, out)) <= 5000
    assert inflating.eof


async def test_until_the_end_of_the_connection() -> None:
    """HTTP/1.0's way; such a connection is not used again. A reset is no end."""
    for error in (None, ConnectionResetError()):
        connection, response, _, home = asked()
        connection.data_received(b"HTTP/1.0 200 OK\r\n\r\nhi")
        await response.head(None)
        connection.connection_lost(error)
        if error is None:
            assert await body_of(response) == b"hi"
        else:
            with pytest.raises(Disconnected):
                await body_of(response)
        response.release()
        assert home.kept == []


BROKEN = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "a folded line": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nhi"[:30] + b"\x00\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "a chunk's wrong size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "an unknown encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi",
    "no gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi",
    "half a second member": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 34\r\n\r\n"
    + (gzip.compress(b"hi") + gzip.compress(b""))[:34],
    "half a gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + gzip.compress(b"")[:12],
    "an endless head": b"HTTP/1.1 200 OK\r\nA: " + b"x" * (HEAD_LIMIT + 1),
    "a long head": b"HTTP/1.1 200 OK\r\n" + b"A: xxxxxx\r\n" * 10_000 + b"Content-Length: 2\r\n\r\nhi",
    "an endless trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * (HEAD_LIMIT + 1),
    "an endless chunk extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * (HEAD_LIMIT + 1),
    "hints without end": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2000,
}


@each_with_each(BROKEN, [7, 4096, 10**6])
async def test_framing_errors_end_the_connection(what: str, size: int) -> None:
    """In however many packets: BadResponse, never half an answer taken for a whole, and no second use."""
    connection, response, wire, home = asked()
    raw = BROKEN[what]
    for at in range(0, len(raw), size):
        if not wire.gone:
            connection.data_received(raw[at : at + size])

    async def whole() -> bytes:
        await response.head(None)
        return await body_of(response)

    with pytest.raises(BadResponse):
        await whole()
    response.close()
    assert home.kept == []
    assert wire.gone


@pytest.mark.parametrize("surplus", [b"x", OK, b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("together", [True, False])
async def test_what_nobody_asked_for_is_nobodys_answer(surplus: bytes, together: bool) -> None:
    """After a complete answer: that one counts, and the connection is not used again (response splitting)."""
    connection, response, wire, _ = asked()
    if together:
        connection.data_received(OK + surplus)
    else:
        connection.data_received(OK)
    await response.head(None)
    assert await body_of(response) == b"hi"
    response.release()
    if not together:
        connection.data_received(surplus)
    assert wire.gone
    assert not connection.open


async def test_a_reader_that_does_not_read_stops_the_transport() -> None:
    """Above READ_HIGH_WATER bytes; it goes on when somebody reads."""
    connection, response, wire, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * READ_HIGH_WATER)
    assert wire.reading
    connection.data_received(b"x")
    assert not wire.reading
    assert len(await response.read()) == READ_HIGH_WATER + 1
    waiting = asyncio.ensure_future(response.read())
    await asyncio.sleep(0)
    assert wire.reading
    waiting.cancel()


async def test_what_nobody_wants_any_more_is_read_to_its_end() -> None:
    """Though reading had stopped for it: else its connection could not be used again."""
    connection, response, wire, _ = asked()
    size = 2 * READ_HIGH_WATER
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    connection.data_received(b"x" * (size - 1))
    assert not wire.reading
    response.release()
    assert wire.reading
    connection.data_received(b"x")
    assert connection._response is None and connection.open


async def test_a_deadline_and_an_end_in_one_turn() -> None:
    """The second one finds that the reader has been told, whichever it is."""
    now = asyncio.get_running_loop().time()
    for late in (True, False):
        connection, response, _, _ = asked()
        waiting = asyncio.ensure_future(response.head(now))
        await asyncio.sleep(0)
        if late:
            assert connection.expire(now) is None
        connection.connection_lost(None)
        assert connection.expire(now) is None
        with pytest.raises(TimeoutError if late else Disconnected):
            await waiting
    connection, response, _, _ = asked()
    waiting = asyncio.ensure_future(response.head(now))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert response.expire(now) is None
    await waiting
    assert response.status == 200


async def test_a_silence_begins_with_the_latest_chunk() -> None:
    """Also with one that was pushed, of which the reader knows nothing: a stream may last as long as it likes."""
    connection, response, _, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    waiting = asyncio.ensure_future(response.read(lambda chunk: True, idle=10))
    await asyncio.sleep(0)
    begun = asyncio.get_running_loop().time()
    response.push(b"x", begun + 9)
    assert response.expire(begun + 11) == begun + 19
    assert response.expire(begun + 19) is None
    with pytest.raises(TimeoutError):
        await waiting


async def test_chunks_are_pushed_to_a_callback_that_takes_them() -> None:
    """In the callback in which they arrive; one that is not taken, and the end, wake the reader; none comes twice."""
    connection, response, _, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
    taken: list[bytes] = []

    def on_chunk(data: bytes) -> bool:
        if data == b"no":
            return False
        taken.append(data)
        return True

    reading = asyncio.ensure_future(response.read(on_chunk))
    await asyncio.sleep(0)
    connection.data_received(b"a")
    connection.data_received(b"bc")
    assert taken == [b"a", b"bc"]
    assert response.silent_since is not None
    connection.data_received(b"no")
    assert await reading == b"no"
    reading = asyncio.ensure_future(response.read(on_chunk))
    await asyncio.sleep(0)
    connection.data_received(b"d")
    assert await reading == b""
    assert taken == [b"a", b"bc", b"d"]


async def test_what_comes_while_the_reader_sleeps_comes_once() -> None:
    """uvloop hands over several packets in one turn: what was refused is read alone, the rest after it, in order."""
    connection, response, wire, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    offered: list[bytes] = []

    def on_chunk(data: bytes) -> bool:
        offered.append(data)
        return data == b"a"

    reading = asyncio.ensure_future(response.read(on_chunk))
    await asyncio.sleep(0)
    for part in (b"a", b"b", b"c", b"d"):
        connection.data_received(part)
    assert await reading == b"b"
    assert offered == [b"a", b"b"]
    assert await response.read(on_chunk) == b"cd"
    reading = asyncio.ensure_future(response.read(on_chunk))
    await asyncio.sleep(0)
    connection.data_received(b"e")
    connection.data_received(b"x" * READ_HIGH_WATER)
    assert wire.reading
    connection.data_received(b"x")
    assert not wire.reading
    assert await reading == b"e"
    response.close()


async def test_a_bug_in_the_callback_reaches_the_reader() -> None:
    """Not the event loop."""
    connection, response, _, _ = asked()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    reading = asyncio.ensure_future(response.read(lambda data: bool(1 / 0)))
    await asyncio.sleep(0)
    connection.data_received(b"a")
    with pytest.raises(ZeroDivisionError):
        await reading
    response.close()


async def test_a_wait_has_an_end() -> None:
    """One timer of the pool's serves all; it fires for those whose time is over, and is set anew for the others."""
    held: list[asyncio.StreamWriter] = []

    async def silent(connection: upstreams.Connection) -> None:
        await connection.request()
        held.append(connection.writer)
        await connection.gone()

    async with upstream(silent) as server:
        pool = Pool(Address("gpu", server.url))
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def waits(seconds: float) -> float:
            with pytest.raises(TimeoutError):
                await pool.request("GET", "x", request_id=None, connect=1, until=started + seconds)
            return loop.time() - started

        took = await asyncio.gather(waits(0.3), waits(0.1), waits(0.2))
        assert all(seconds <= took[at] for at, seconds in enumerate((0.3, 0.1, 0.2)))
        await pool.close()


def test_waits_that_end_at_once_have_an_end_too() -> None:
    """For what is due uvloop makes a handle without a time: with two such waits in a turn the second one failed."""

    async def silent(connection: upstreams.Connection) -> None:
        await connection.request()
        await connection.gone()

    async def main() -> None:
        async with upstream(silent) as server:
            pool = Pool(Address("gpu", server.url))
            asking = [asyncio.ensure_future(pool.request("GET", "x", request_id=None, connect=5)) for _ in range(3)]
            await until(lambda: len(pool._open) == len(asking))
            now = asyncio.get_running_loop().time()
            for connection in list(pool._open):
                response = connection._response
                assert response is not None
                response._deadline = now
                connection.watch(now)
            for outcome in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(outcome, TimeoutError)
            await pool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("comes", [True, False])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_came_while_the_process_stood_still_has_come_in_time(
    loop: Callable[[], asyncio.AbstractEventLoop], comes: bool
) -> None:
    """After a stop (Ctrl-Z, a paused container) epoll_wait reports nothing once, so that what is due runs before
    anything is read."""

    async def silent(connection: upstreams.Connection) -> None:
        await connection.request()
        await connection.head()
        await connection.gone()

    async def main() -> bytes:
        async with upstream(silent) as server:
            pool = Pool(Address("gpu", server.url))
            response = await pool.request("GET", "x", request_id=None, connect=5)
            reading = asyncio.ensure_future(response.read(idle=60.0))
            await until(lambda: response.silent_since is not None)
            assert pool._deadline_timer is not None
            pool._deadline_timer.cancel()
            response._idle, stood_still = 0.0, 60.0
            pool._deadline -= 60.0 + stood_still
            if comes:
                socket_ = server.connections[0].writer.get_extra_info("socket")
                os.write(socket_.fileno(), b"2\r\nhi\r\n")
            pool._expire()
            await until(reading.done)
            await pool.close()
            return reading.result()

    with asyncio.Runner(loop_factory=loop) as runner:
        if comes:
            assert runner.run(main()) == b"hi"
        else:
            with pytest.raises(TimeoutError):
                runner.run(main())


@asynccontextmanager
async def served(
    answer: Callable[[upstreams.Connection, Seen], Awaitable[None]],
) -> AsyncIterator[tuple[Pool, upstreams.Upstream]]:
    async with upstream(each(answer)) as server:
        pool = Pool(Address("gpu", server.url + "/base"))
        yield pool, server
        await pool.close()


async def get(pool: Pool, body: bytes | None = None) -> bytes:
    response = await pool.request("POST", "x", request_id="id-1", body=body, connect=1)
    data = await body_of(response)
    response.release()
    return data


async def test_connections_are_used_again_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other over one connection; an idle one is closed before a server would do it."""
    monkeypatch.setattr(pool_module, "KEEP_ALIVE_TIMEOUT", 0.1)
    assert KEEP_ALIVE_TIMEOUT < 5

    async def answer(connection: upstreams.Connection, seen: Seen) -> None:
        await connection.reply(b"hi")

    async with served(answer) as (pool, server):
        for _ in range(3):
            assert await get(pool, b"{}") == b"hi"
        assert len(server.connections) == 1
        await asyncio.gather(get(pool, b"{}"), get(pool, b"{}"))
        assert len(server.connections) == 2
        for connection in server.connections:
            await asyncio.wait_for(connection.closed.wait(), 3)
        busy = await pool.request("POST", "x", request_id="id-1", body=b"{}", connect=1)
        assert await get(pool, b"{}") == b"hi"
        assert len(server.connections) == 4
        await asyncio.sleep(0.05)  # so that they have been idle for different times
        assert await body_of(busy) == b"hi"
        busy.release()
        for connection in server.connections:
            await asyncio.wait_for(connection.closed.wait(), 3)
        assert {s.path for s in server.seen} == {"/base/x"}


@pytest.mark.parametrize("size", [0, 10, 20_000, 5_000_000])
async def test_bodies_of_any_size_arrive(size: int) -> None:
    """Byte for byte, with head in one write where it is small."""
    sent = os.urandom(size)

    async def answer(connection: upstreams.Connection, seen: Seen) -> None:
        await connection.reply(seen.body)

    async with served(answer) as (pool, _):
        assert await get(pool, sent) == sent


async def test_a_provider_that_refuses_in_the_middle_of_the_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer counts; the connection, with half a request in it, is not used again."""

    async def script(connection: upstreams.Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await connection.upstream.go.wait()

    async with upstream(script) as server:
        pool = Pool(Address("gpu", server.url))
        response = await pool.request("POST", "x", request_id=None, body=b"x" * 50_000_000, connect=1)
        assert (response.status, await body_of(response)) == (413, b"no")
        response.release()
        assert pool._free == {}
        await pool.close()
        server.go.set()


async def test_why_there_is_no_connection() -> None:
    """Refused, not found, not in time, no TLS: each under its name."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for url, kind, detail in (
            (f"http://127.0.0.1:{port}", ConnectFailed, "refused"),
            ("http://nowhere.invalid", ConnectFailed, "dns"),
        ):
            pool = Pool(Address("gpu", url))
            with pytest.raises(kind) as told:
                await pool.request("GET", "x", request_id=None, connect=5)
            assert told.value.detail == detail
            await pool.close()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        pool = Pool(Address("gpu", f"http://127.0.0.1:{address[1]}"))
        with pytest.raises(ConnectTimeout):
            await pool.request("GET", "x", request_id=None, connect=0.1)
        with pytest.raises(TimeoutError):
            await pool.request("GET", "x", request_id=None, connect=9, until=asyncio.get_running_loop().time() + 0.1)
        await pool.close()
        for filler in fillers:
            filler.close()


async def test_a_pool_that_was_given_back_gives_nothing_out() -> None:
    """Also to a request whose connection was just being made; those in use are cut."""

    async def hang(connection: upstreams.Connection) -> None:
        await connection.request()
        await connection.gone()

    async with upstream(hang) as server:
        pool = Pool(Address("gpu", server.url))
        asking = asyncio.ensure_future(pool.request("GET", "x", request_id=None, connect=1))
        while not server.seen:
            await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(Disconnected):
            await asking
        await asyncio.sleep(0)
        with pytest.raises(Disconnected):
            await pool.request("GET", "x", request_id=None, connect=1)
        assert pool._open == set()
        pool = Pool(Address("gpu", server.url))
        until = asyncio.get_running_loop().time() + 5
        asking = asyncio.ensure_future(pool.request("GET", "x", request_id=None, connect=1, until=until))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(Disconnected):
            await asking
        assert pool._open == set() and len(server.seen) == 1


def test_no_header_can_begin_a_line() -> None:
    """The configuration refuses them first; this is the last door."""
    with pytest.raises(ValueError, match="line break"):
        Pool(Address("gpu", "http://gpu", headers={"A": "b\r\nC: d"}))


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_an_answer_or_the_providers_failure(tail: bytes, size: int) -> None:
    """Nothing else is raised, and nobody waits for ever once the connection ends."""

    async def run() -> None:
        for raw in (
            tail,
            b"HTTP/1.1 200 OK\r\n" + tail,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + tail,
        ):
            connection, response, wire, _ = asked()
            for at in range(0, len(raw), size):
                if not wire.gone:
                    connection.data_received(raw[at : at + size])
            connection.connection_lost(None)
            try:
                await asyncio.wait_for(response.head(None), 1)
                await asyncio.wait_for(body_of(response), 1)
            except ProviderError:
                pass
            response.close()

    asyncio.run(run())


async def test_one_connection_that_cannot_be_closed_keeps_no_other_open() -> None:
    """All are aborted; then the failures are raised together."""

    class Stuck(Wire):
        def abort(self) -> None:
            raise OSError("no")

    pool = Pool(Address("gpu", "http://gpu"))
    wires = [Stuck(), Wire(), Stuck(), Wire()]
    for wire in wires:
        connection = Connection("gpu", pool, asyncio.get_running_loop())
        connection.connection_made(wire)
        pool._open.add(connection)
    with pytest.raises(ExceptionGroup) as told:
        await pool.close()
    assert len(told.value.exceptions) == 2
    assert [wire.gone for wire in wires] == [False, True, False, True]
