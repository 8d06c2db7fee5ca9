"""Exceptions of aiohttp become ours in the client, whichever call they come out of."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses

from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    FirstByteTimeout,
    ProviderError,
    ProxyRefused,
    ReadTimeout,
    ResourcesExhausted,
)
from manallm_proxy.contract.targets import Entry, Target, Timeouts
from manallm_proxy.http_client.aiohttp_session import SessionConnections
from manallm_proxy.http_client.api import Address
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.http_provider import HttpProvider
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests.cases import every
from tests.upstreams import DONE, Connection, Script, Seen, Upstream, chunk, completion, each, upstream

pytestmark = pytest.mark.usefixtures("http")
KEY: Any = SimpleNamespace(ssl=None, host="gpu", port=1, is_ssl=False)
BODY = b'{"model":"m","messages":[]}'
CALL = Call(Endpoint.CHAT, read_summary(BODY, ("messages", list)), BODY, "id-1")
ENTRY = Entry(Target("gpu", "m"))

FAULTS: list[tuple[BaseException, type[ProviderError], str | None]] = [
    (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused")), ConnectFailed, "refused"),
    (aiohttp.ClientConnectorError(KEY, OSError(113, "no route")), ConnectFailed, "unreachable"),
    (aiohttp.ClientConnectorError(KEY, OSError(24, "x")), ResourcesExhausted, "no file descriptors left here"),
    (
        aiohttp.ClientConnectorError(KEY, OSError(23, "x")),
        ResourcesExhausted,
        "no file descriptors left on this machine",
    ),
    (aiohttp.ClientConnectorError(KEY, OSError(105, "x")), ResourcesExhausted, "no buffers left here"),
    (aiohttp.ClientConnectorError(KEY, OSError(12, "x")), ResourcesExhausted, "no memory left here"),
    (aiohttp.ClientConnectorError(KEY, OSError(99, "x")), ResourcesExhausted, "no local ports left here"),
    (aiohttp.ClientHttpProxyError(KEY, (), status=407, message="x"), ProxyRefused, "407 of its proxy"),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), ConnectFailed, "dns"),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")), ConnectFailed, "tls: handshake failed"),
    (aiohttp.ConnectionTimeoutError(), ConnectTimeout, None),
    (aiohttp.SocketTimeoutError(), ReadTimeout, None),
    (aiohttp.ServerDisconnectedError(), Disconnected, "closed"),
    (aiohttp.ClientPayloadError("cut"), Disconnected, "closed"),
    (aiohttp.ClientOSError(104, "reset"), Disconnected, "reset"),
    (aiohttp.ClientResponseError(KEY, (), status=400, message="raw SECRET head"), BadResponse, "malformed http"),
]


@every(FAULTS)
async def test_each_fault_of_the_transport_has_its_error(
    raised: Exception, becomes: type[ProviderError], detail: str | None
) -> None:
    """By class alone: the texts may hold raw headers, and a parser's status 400 is not the provider's."""
    address = Address("gpu", "http://gpu/v1")
    gpu = HttpProvider(address, OpenAIWire(), connections=SessionConnections(address))
    with aioresponses() as mocked:
        mocked.post("http://gpu/v1/chat/completions", exception=raised)
        mocked.get("http://gpu/v1/models", exception=raised)
        with pytest.raises(becomes) as told:
            await gpu.complete(CALL, ENTRY)
        with pytest.raises(becomes):
            await gpu.probe(3)
    await gpu.close()
    assert told.value.detail == detail
    assert "SECRET" not in str(told.value)


async def test_configured_headers_win_whatever_their_case() -> None:
    """Never two of one name."""
    address = Address("gpu", "http://gpu", "key", {"authorization": "Basic x", "HTTP-Referer": "http://me"})
    headers = address.headers_for("id-1")
    assert headers.getall("Authorization") == ["Basic x"]
    assert headers["http-referer"] == "http://me"
    assert "key" not in repr(address)


GARBAGE = {
    "a status line of rubbish": b"HTTP/1.1 abc def\r\n\r\n",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two differing lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "an unknown encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: nope\r\nContent-Length: 2\r\n\r\n{}",
    "a body cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    "nothing": b"",
}


@every(GARBAGE)
async def test_garbage_is_the_providers_failure(what: str) -> None:
    """Whatever a server sends that is no HTTP: retryable, blamed on the provider, never a 400 of the caller's."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(GARBAGE[what])
        connection.writer.close()

    async with upstream(script) as server:
        gpu = HttpProvider(Address("gpu", server.url), OpenAIWire())
        with pytest.raises(ProviderError) as told:
            await asyncio.wait_for(gpu.complete(CALL, ENTRY), 5)
        await gpu.close()
    assert told.value.retryable
    assert isinstance(told.value, BadResponse | Disconnected)


async def posts(
    script: Script, of: Call = CALL, pooled: int = 0, **times: float
) -> tuple[ProviderError | None, Upstream]:
    """The attempt's error and the server, after `pooled` connections were warmed with answered requests."""
    async with upstream(script) as server:
        gpu = HttpProvider(Address("gpu", server.url), OpenAIWire())
        entry = Entry(Target("gpu", "m"), Timeouts(**times))
        await asyncio.gather(*(gpu.complete(CALL, entry) for _ in range(pooled)))
        server.go.set()
        server.seen.clear()
        told = None
        try:
            if of.summary.stream:
                await (await gpu.stream(of, entry)).aclose()
            else:
                await gpu.complete(of, entry)
        except ProviderError as error:
            told = error
        await gpu.close()
    return told, server


async def test_a_request_is_sent_twice_at_most_over_dead_connections() -> None:
    """A provider that reads each request and then closes has begun to work: twenty warm connections or none."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None and not connection.upstream.go.is_set():
            await connection.reply(completion())
        connection.writer.close()

    told, server = await posts(script, pooled=20)
    assert isinstance(told, Disconnected)
    assert len(server.posts) == 2


@pytest.mark.parametrize("begins", [b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
async def test_what_has_begun_to_answer_is_not_asked_again(begins: bytes) -> None:
    """Its connection was not dead: it has had the request, and another try is the next target's."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None and not connection.upstream.go.is_set():
            await connection.reply(completion())
        await connection.send(begins)
        connection.writer.close()

    told, server = await posts(script, pooled=1)
    assert isinstance(told, Disconnected)
    assert len(server.posts) == 1


STREAM_BODY = b'{"model":"m","messages":[],"stream":true}'
STREAM = Call(Endpoint.CHAT, read_summary(STREAM_BODY, ("messages", list)), STREAM_BODY, "id-1")


async def test_a_refusal_that_quotes_the_prompt_is_no_amplifier() -> None:
    """A 422 that holds the word whatever is sent: asked twice, and the provider's own status comes out."""

    async def refuse(connection: Connection, seen: Seen) -> None:
        await connection.reply(b'{"detail":[{"msg":"bad temperature","input":"stream_options"}]}', "422 No")

    told, server = await posts(each(refuse), STREAM)
    assert told is not None and told.provider_status == 422
    assert len(server.posts) == 2


@pytest.mark.parametrize("status", [400, 401, 503])
async def test_a_refusal_whose_body_breaks_keeps_its_status(status: int) -> None:
    """What it is was said before the body."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 %d No\r\nContent-Length: 100\r\n\r\n{" % status)
        connection.reset()

    told, _ = await posts(script)
    assert told is not None and told.provider_status == status


async def test_the_first_byte_has_one_limit() -> None:
    """Headers early and a body never: one ``first_byte``, under its own name."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await connection.gone()

    started = asyncio.get_running_loop().time()
    told, _ = await posts(script, first_byte=0.3, idle=9.0)
    assert isinstance(told, FirstByteTimeout)
    assert asyncio.get_running_loop().time() - started < 5.0  # not ``idle``


async def test_a_body_that_falls_silent_is_a_read_timeout() -> None:
    """After its first byte ``idle`` counts."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await connection.gone()

    assert isinstance((await posts(script, first_byte=5.0, idle=0.1))[0], ReadTimeout)


REFUSED = b'data: {"error": {"message": "no", "code": 500}}\n\n'


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_an_answer_that_is_there_in_full_costs_no_connection(framing: str) -> None:
    """A refusal of a probe, of which only the status is wanted, and a stream that ends with its first event."""

    async def answer(connection: Connection, seen: Seen) -> None:
        status, body = ("404 Not Found", b"{}") if seen.method == "GET" else ("200 OK", REFUSED)
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\n".encode()
        if framing == "length":
            await connection.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            await connection.send(head + chunked)

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            await answer(connection, seen)

    async with upstream(script) as server:
        gpu = HttpProvider(Address("gpu", server.url), OpenAIWire())
        for _ in range(3):
            found = await gpu.probe(3)
            assert found is not None and found.status == 404
            stream = await gpu.stream(CALL, ENTRY)
            assert (await stream.next()).error is not None
            await stream.aclose()
            await stream.aclose()
        assert len(server.connections) == 1
        await gpu.close()


PLAIN = {
    "none": b"Content-Encoding: none\r\n",
    "None": b"Content-Encoding: None\r\n",
    "none with blanks": b"Content-Encoding: none \t\r\n",
    "identity with blanks": b"Content-Encoding: identity \r\n",
    "nothing": b"Content-Encoding: \r\n",
    "blanks before and after": b"Content-Encoding: \t identity \t \r\nX-A:  b  \r\n",
}


@pytest.mark.parametrize("what", PLAIN)
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_that_is_not_encoded_is_read_as_it_is(what: str, framing: str) -> None:
    """Whatever word a server has for that, and whatever white space follows its headers' values."""
    body = json.dumps(completion()).encode()
    framed = (
        b"Content-Length: %d  \r\n\r\n%b" % (len(body), body)
        if framing == "length"
        else b"Transfer-Encoding: chunked \r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json \r\n" + PLAIN[what] + framed)

    async with upstream(each(answer)) as server:
        gpu = HttpProvider(Address("gpu", server.url), OpenAIWire())
        for _ in range(2):
            answered = await gpu.complete(CALL, ENTRY)
            assert b"Hello" in (answered.body or b"")
        assert len(server.connections) == 1
        await gpu.close()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]),
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", PACKED)
async def test_a_body_that_is_compressed_is_inflated(encoding: str) -> None:
    """Though nobody has asked for that: of both kinds of answers. One without its checksum's end is not whole."""
    whole = json.dumps(completion()).encode()
    events = chunk("Hello") + chunk(finish="stop") + DONE
    cut = None

    async def answer(connection: Connection, seen: Seen) -> None:
        body = PACKED[encoding](events if seen.json.get("stream") else whole)
        await connection.reply(body[:cut], extra=f"Content-Encoding: {encoding}\r\n")

    async with upstream(each(answer)) as server:
        gpu = HttpProvider(Address("gpu", server.url), OpenAIWire())
        for _ in range(2):
            assert b"Hello" in ((await gpu.complete(CALL, ENTRY)).body or b"")
            stream = await gpu.stream(STREAM, ENTRY)
            got = b""
            while not (batch := await stream.next()).done:
                assert batch.error is None
                got += batch.frames
            assert b"Hello" in got + batch.frames
            await stream.aclose()
        assert len(server.connections) == 1
        cut = -2
        with pytest.raises(BadResponse):
            await gpu.complete(CALL, ENTRY)
        await gpu.close()
