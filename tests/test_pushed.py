"""From a provider's connection to a client's in the callback in which a chunk arrives: no task, parser or batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from aiohttp.test_utils import make_mocked_request
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.http_chunks import framed, unframed
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.openai_chat import ChatReply
from manallm_proxy.gateway.client_stream import ClientStream
from manallm_proxy.http_client.api import Address
from manallm_proxy.http_client.connection import Connection
from manallm_proxy.http_client.response import Response
from manallm_proxy.http_server.stream_writer import PART_BYTES, WRITE_HIGH_WATER, StreamTiming, StreamWriter
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.http_provider import HttpProvider, HttpStream
from manallm_proxy.providers.openai.stream import EventRelay
from manallm_proxy.providers.openai.wire import OpenAIWire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@define
class Side:
    """One end of a transport. ``unread``: bytes that its peer has not read."""

    written: list[bytes] = field(factory=list)
    unread: int = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...


class Pool:
    """The least that a connection needs of one."""

    def keep(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...

    def watch(self, deadline: float) -> None: ...


class Fed:
    """A parser, and what it was fed."""

    def __init__(self, parser: Any) -> None:
        self.parser, self.reads = parser, list[bytes]()

    def feed_data(self, data: bytes) -> None:
        self.reads.append(data)
        self.parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)


def asked(loop: asyncio.AbstractEventLoop) -> tuple[Connection, Response, Fed]:
    """A connection over which a request was sent."""
    connection = Connection("gpu", Pool(), loop)
    side: Any = Side()
    connection.connection_made(side)
    connection._parser = fed = Fed(connection._parser)  # type: ignore[assignment]  # has its methods
    return connection, connection.send(b"GET / HTTP/1.1\r\n\r\n", b""), fed


# -- frames of HTTP ----------------------------------------------------------------------------------------------------


def test_frames() -> None:
    """Of every size as `b"%x"` writes it, and read back; what has any other form is not read."""
    for size in (*range(1, 1100), 4095, 4096, 70_000):
        data = b"x" * size
        assert framed(data) == b"%x\r\n%b\r\n" % (size, data)
        assert unframed(framed(data)) == (data if size < 1024 else b"")
    for odd in (
        b"",
        b"\r\n",
        END,
        b"0\r\n\r\n\r\n",
        b"3\r\nabc\n\n",
        b"3\r\nab\r\n",
        b"03\r\nabc\r\n",
        b"A\r\n0123456789\r\n",
    ):
        assert unframed(odd) == b""
    for odd in (b"ff\r\n" + b"x" * 256 + b"\r\n", b"3;a\r\nabc\r\n", b" 3\r\nabc\r\n", b"3\r\nabc\r\n3\r\nabc\r\n"):
        assert unframed(odd) == b""


def read_all(reads: Iterable[bytes]) -> tuple[bytes, list[bytes], int]:
    """What a reader gets of the body that comes in `reads`, its end, and how many of them the parser was fed."""
    loop = asyncio.new_event_loop()
    got: list[bytes] = []

    async def run() -> tuple[bytes, int]:
        connection, response, fed = asked(loop)
        connection.data_received(HEAD)

        async def read() -> bytes:
            def take(data: bytes) -> bool:
                got.append(data)
                return True

            last = b""
            while True:
                try:
                    chunk = await response.read(take)
                except Exception as error:
                    return last + type(error).__name__.encode()
                if not chunk:
                    return last
                got.append(chunk)

        reading = loop.create_task(read())
        await asyncio.sleep(0)
        for data in reads:
            connection.data_received(data)
        for _ in range(3):
            await asyncio.sleep(0)
        end = reading.result() if reading.done() else b"open"
        reading.cancel()
        response.close()
        return end, len(fed.reads) - 1

    try:
        end, count = loop.run_until_complete(run())
    finally:
        loop.close()
    return end, got, count


def test_a_chunk_that_is_alone_in_its_read_is_taken_past_the_parser() -> None:
    """From the second on: the first one shows that the parser stands between two. Whatever else comes is parsed."""
    alone = [framed(b"data: %d\n\n" % n) for n in range(5)]
    assert read_all([*alone, END]) == (b"", [b"data: %d\n\n" % n for n in range(5)], 2)
    assert read_all([alone[0], alone[1] + alone[2], alone[3], alone[4], END])[2] == 4
    assert read_all([alone[0], alone[1][:4], alone[1][4:], alone[2], alone[3], END])[2] == 5
    assert read_all([alone[0], alone[1], b"x\r\n"])[0] == b"BadResponse"


def test_what_looks_like_a_chunk_within_another_is_part_of_it() -> None:
    """Wherever the one that holds it is cut."""
    small, inner = framed(b"data: 1\n\n"), framed(b"data: 2\n\n") * 2
    whole = framed(inner)
    for place in range(len(whole)):
        for length in (len(whole), len(small)):
            reads = [small, whole[:place], whole[place : place + length], whole[place + length :], small, END]
            end, got, _ = read_all(filter(None, reads))
            assert (end, b"".join(got)) == (b"", b"data: 1\n\n" + inner + b"data: 1\n\n"), (place, length)


def test_the_size_of_a_chunk_within_another_is_data() -> None:
    """Even where the end of one, and the size of the next, look like a whole one of which the parser says the same."""
    line = b"e6\r\n"
    looks = line * 59
    assert unframed(looks) == looks[:0xE6]
    reads = [framed(b"ok"), b"f0\r\n" + b"x" * 10, looks, within := framed(b"y" * 224), b"\r\n" + END]
    end, got, _ = read_all(reads)
    assert (end, b"".join(got)) == (b"", b"ok" + b"x" * 10 + looks[:0xE6] + within)


def test_the_size_of_a_chunk_of_one_byte_is_data() -> None:
    """As above, where the whole is shorter than the line with its size."""
    reads = [b"3\r\nab", b"1\r\n1\r\n", b"7\r\n4\r\nabcd\r\n", END]
    end, got, _ = read_all(reads)
    assert (end, b"".join(got)) == (b"", b"ab17abcd")


CHUNKS = st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([b"6\r\n6\r\n6\r\n", framed(b"ab")]), max_size=6)


@given(CHUNKS, st.lists(st.integers(0, 400), max_size=8))
def test_however_a_body_is_cut(chunks: list[bytes], places: list[int]) -> None:
    """The same bytes come out, as many as there are, once."""
    body = b"".join(map(framed, chunks)) + END
    at = sorted({0, len(body), *(place % len(body) for place in places)})
    end, got, _ = read_all(body[start:stop] for start, stop in pairwise(at))
    assert (end, b"".join(got)) == (b"", b"".join(chunks))


# -- down to the client ------------------------------------------------------------------------------------------------

BODY = b'{"model":"x","messages":[],"stream":true}'
CALL = Call(Endpoint.CHAT, SUMMARY := read_summary(BODY, ("messages", list)), BODY, "r")
FIRST = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'


def sent(word: bytes) -> bytes:
    """What the client gets of it."""
    return FIRST.replace(b'"m"', b'"gpu/m"') % word


def opened(connection: Connection, response: Response) -> tuple[HttpStream, StreamWriter, ClientStream, Any]:
    """A stream over `connection`, its client's end, and the client's transport."""
    provider = HttpProvider(Address("gpu", "http://gpu/v1"), OpenAIWire())
    translator = EventRelay(CALL, Entry(Target("gpu", "m")).target)
    stream = HttpStream(provider, response, translator, CALL, translator.relayed)
    client: Any = Side()
    request = make_mocked_request("POST", "/", transport=client)
    request.writer.output_size = 0  # a mock, where a connection's writer has a number
    writer = StreamWriter(request, {}, StreamTiming(heartbeat=0, write_timeout=60, write_rate=1), bytes)
    connection.data_received(HEAD)
    return stream, writer, ClientStream(ChatReply(SUMMARY), writer, stream), client


async def test_a_slow_client_gets_all_of_it_once() -> None:
    """What it does not take at once is not lost and not doubled; the task that waits for it goes on where it was."""
    connection, response, fed = asked(asyncio.get_running_loop())
    stream, writer, sink, client = opened(connection, response)
    for word in (b"a", b"b"):
        connection.data_received(framed(FIRST % word))
        await sink.send(await stream.next())
    stream.commit(60)
    del client.written[:]
    waiting = asyncio.ensure_future(stream.next(sink.try_write))
    await asyncio.sleep(0)
    connection.data_received(framed(FIRST % b"c"))
    connection.data_received(framed(FIRST % b"d"))
    assert client.written == [framed(sent(b"c")), framed(sent(b"d"))]  # in these very calls
    assert not waiting.done()
    before = writer.bytes_sent
    client.unread = WRITE_HIGH_WATER + 1
    connection.data_received(framed(FIRST % b"e"))
    connection.data_received(framed(FIRST % b"f"))
    assert len(client.written) == 2
    assert (await waiting).frames == sent(b"e")
    client.unread = 0
    assert (await stream.next(sink.try_write)).frames == sent(b"f")
    assert writer.bytes_sent == before and len(fed.reads) == 2
    # a chunk that ends within an event is translated once, though it was offered before
    waiting = asyncio.ensure_future(stream.next(sink.try_write))
    await asyncio.sleep(0)
    client.unread, cut = WRITE_HIGH_WATER + 1, FIRST % b"h"
    connection.data_received(framed(FIRST % b"g" + cut[:30]))
    assert (await waiting).frames == sent(b"g")
    client.unread = 0
    connection.data_received(framed(cut[30:]))
    assert (await stream.next(sink.try_write)).frames == sent(b"h")
    await stream.aclose()
    writer.close()


def test_what_only_looks_like_the_pattern_is_not_relayed_as_it() -> None:
    """A chunk of another choice, or one that ends it, may be as long, with words at the same place."""
    relay = EventRelay(CALL, Target("gpu", "m"))
    for word in (b"a", b"b", b"c"):
        relay.feed(FIRST % word)
    assert relay.relayed(FIRST % b"d") == sent(b"d")
    for other in (FIRST.replace(b'"index":0', b'"index":1'), FIRST.replace(b"null", b'"ok"')):
        assert relay.relayed(other % b"d") == b""


async def test_what_is_long_is_written_part_by_part_to_a_client_that_reads() -> None:
    """Whoever is next would wait for the copy of all of it."""
    connection, response, _ = asked(asyncio.get_running_loop())
    stream, writer, sink, client = opened(connection, response)
    for frames in (sent(b"a"), sent(b"b"), long := sent(b"c" * 3 * PART_BYTES)):
        await sink.send(StreamBatch(frames))
    parts = [unframed(part) or part for part in client.written[1:]]
    assert parts[0] == sent(b"b")
    assert len(parts) > 3 and max(map(len, parts)) < 1.01 * PART_BYTES
    assert writer.bytes_sent == len(sent(b"a") + sent(b"b") + long)
    await stream.aclose()
    writer.close()
