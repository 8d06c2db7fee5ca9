"""Exceptions of aiohttp become ours in the client, whichever call they come out of."""

from __future__ import annotations

import asyncio
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses

from manallm_proxy.chain import Entry, Target
from manallm_proxy.client import Address, HttpUpstream
from manallm_proxy.errors import BadResponse, ConnectFailed, ConnectTimeout, Disconnected, ProviderError, ReadTimeout
from manallm_proxy.schema import Head
from manallm_proxy.upstream import Call, Endpoint
from manallm_proxy.wires.openai import OpenAIWire
from tests.upstreams import Connection, upstream

KEY: Any = SimpleNamespace(ssl=None, host="gpu", port=1, is_ssl=False)
BODY = b'{"model":"m","messages":[]}'
CALL = Call(Endpoint.CHAT, Head.read(BODY, ("messages", list)), BODY, "id-1")
ENTRY = Entry(Target("gpu", "m"))

FAULTS: list[tuple[BaseException, type[ProviderError], str | None]] = [
    (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused")), ConnectFailed, "refused"),
    (aiohttp.ClientConnectorError(KEY, OSError(113, "no route")), ConnectFailed, "unreachable"),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), ConnectFailed, "dns"),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")), ConnectFailed, "tls: handshake failed"),
    (aiohttp.ConnectionTimeoutError(), ConnectTimeout, None),
    (aiohttp.SocketTimeoutError(), ReadTimeout, None),
    (aiohttp.ServerDisconnectedError(), Disconnected, "closed"),
    (aiohttp.ClientPayloadError("cut"), Disconnected, "closed"),
    (aiohttp.ClientOSError(104, "reset"), Disconnected, "reset"),
    (aiohttp.ClientResponseError(KEY, (), status=400, message="raw SECRET head"), BadResponse, "malformed http"),
]


@pytest.mark.parametrize(("raised", "becomes", "detail"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
async def test_each_fault_of_the_transport_has_its_error(
    raised: Exception, becomes: type[ProviderError], detail: str | None
) -> None:
    """By class alone: the texts may hold raw headers, and a parser's status 400 is not the provider's."""
    gpu = HttpUpstream(Address("gpu", "http://gpu/v1"), OpenAIWire())
    with aioresponses() as mocked:
        mocked.post("http://gpu/v1/chat/completions", exception=raised)
        mocked.get("http://gpu/v1/models", exception=raised)
        with pytest.raises(becomes) as told:
            await gpu.complete(CALL, ENTRY)
        with pytest.raises(becomes):
            await gpu.probe()
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


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_is_the_providers_failure(what: str) -> None:
    """Whatever a server sends that is no HTTP: retryable, blamed on the provider, never a 400 of the caller's."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(GARBAGE[what])
        connection.writer.close()

    async with upstream(script) as server:
        gpu = HttpUpstream(Address("gpu", server.url), OpenAIWire())
        with pytest.raises(ProviderError) as told:
            await asyncio.wait_for(gpu.complete(CALL, ENTRY), 5)
        await gpu.close()
    assert told.value.retryable
    assert isinstance(told.value, BadResponse | Disconnected)
