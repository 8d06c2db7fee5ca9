"""Bytes that two parsers may read in two ways: refused, or one request; never two. Also behind the real nginx."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web

from manallm_proxy.config.model import Limits
from manallm_proxy.http_server.aiohttp_server import Runner, Server
from tests.nginx import nginx
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Upstream, answers, each, upstream
from tests.waiting import until

BODY = b'{"messages":[]}'
HIDDEN = b'{"messages":[],"s":"SMUGGLED"}'
EVIL = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN)
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HEAD = LINE + b"Host: x\r\nAuthorization: Bearer sk-CANARY\r\n"
LENGTH = b"Content-Length: 15\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"


def lengths(value: bytes) -> bytes:
    """A body of 15 bytes with its length written in this way."""
    return HEAD + b"Content-Length:" + value + b"\r\n\r\n" + BODY


def coded(value: bytes) -> bytes:
    """A chunked body, its coding named in this way."""
    return HEAD + b"Transfer-Encoding:" + value + b"\r\n\r\n" + CHUNKS + EVIL


def chunked(chunks: bytes) -> bytes:
    """A chunked body of these bytes."""
    return HEAD + CHUNKED + b"\r\n" + chunks


def field(line: bytes) -> bytes:
    """A sound request with one more header line."""
    return HEAD + line + LENGTH + b"\r\n" + BODY


def begun(line: bytes) -> bytes:
    """A sound request with another first line."""
    return line + HEAD[len(LINE) :] + LENGTH + b"\r\n" + BODY


REFUSED: dict[str, bytes] = {
    "length and chunked": HEAD + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + EVIL,
    "chunked and length": HEAD + CHUNKED + b"Content-Length: 4\r\n\r\n" + CHUNKS + EVIL,
    "two equal lengths": field(LENGTH),
    "two lengths": field(b"Content-Length: 0\r\n") + EVIL,
    "a list of lengths": lengths(b" 15, 15"),
    "a length with a plus": lengths(b" +15"),
    "a length below zero": lengths(b" -1"),
    "a length in hex": lengths(b" 0xf"),
    "a length in two words": lengths(b" 1 5"),
    "a length with _": lengths(b" 1_5"),
    "a length in other digits": lengths(" ١٥".encode()),
    "a length after \\v": lengths(b"\x0b15"),
    "no length": lengths(b""),
    "a huge length": lengths(b" 99999999999999999999999"),
    "an unknown coding": coded(b" xchunked"),
    "identity": coded(b" identity"),
    "chunked, identity": coded(b" chunked, identity"),
    "gzip, chunked": coded(b" gzip, chunked"),
    "chunked and a comma": coded(b" chunked,"),
    "chunked in quotes": coded(b' "chunked"'),
    "chunked after \\v": coded(b"\x0bchunked"),
    "chunked twice": coded(b" chunked\r\nTransfer-Encoding: chunked"),
    "chunked, then identity": coded(b" chunked\r\nTransfer-Encoding: identity"),
    "chunked on a folded line": coded(b"\r\n chunked"),
    "no coding": HEAD + b"Transfer-Encoding: \r\n" + LENGTH + b"\r\n" + BODY,
    "a blank before a colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "another one": HEAD + b"Content-Length : 15\r\n\r\n" + BODY,
    "a folded line": field(b"X: a\r\n b\r\n"),
    "a blank before the first header": LINE + b" X: y\r\n" + HEAD[len(LINE) :] + LENGTH + b"\r\n" + BODY,
    "bare LF everywhere": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 15\n\n" + BODY,
    "bare LF in a header": field(b"X: a\nTransfer-Encoding: chunked\r\n"),
    "bare CR in a header": field(b"X: a\rTransfer-Encoding: chunked\r\n"),
    "bare LF at the end": HEAD + LENGTH + b"\n" + BODY,
    "NUL": field(b"X: a\x00b\r\n"),
    "no colon": field(b"Xab\r\n"),
    "no name": field(b": x\r\n"),
    "a name with (": field(b"X(: x\r\n"),
    "a name in UTF-8": field("Contént-Length: 0\r\n".encode()),
    "LF after a chunk's size": chunked(b"f\n" + BODY + b"\r\n0\r\n\r\n"),
    "LF after a chunk": chunked(b"f\r\n" + BODY + b"\n0\r\n\r\n"),
    "LF in a chunk's extension": chunked(b"f;a\n" + BODY + b"\r\n0\r\n\r\n"),
    "CR in a chunk's extension": chunked(b"f;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "LF in a quoted extension": chunked(b'f;a="\n"\r\n' + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with 0x": chunked(b"0xf\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with _": chunked(b"0_f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with a plus": chunked(b"+f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size below zero": chunked(b"-f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size and a blank": chunked(b"f \r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size over 64 bits": chunked(b"1000000000000000f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size too small": chunked(b"e\r\n" + BODY + b"\r\n0\r\n\r\n" + EVIL),
    "no chunk's size": chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a length in the trailer": chunked(b"f\r\n" + BODY + b"\r\n0\r\nContent-Length: 50\r\n\r\n"),
    "a request in the trailer": chunked(b"f\r\n" + BODY + b"\r\n0\r\n" + HEAD + b"\r\n"),
    "no host": LINE + LENGTH + b"\r\n" + BODY,
    "two hosts": field(b"Host: y\r\n"),
    "HTTP/0.9": begun(b"POST /v1/chat/completions\r\n"),
    "HTTP/0.9 and bare LF": begun(b"POST /v1/chat/completions\n"),
    "HTTP/0.9 by name": begun(b"POST /v1/chat/completions HTTP/0.9\r\n"),
    "the shortest of HTTP/0.9": b"GET /v1/health\r\n\r\n",
    "HTTP/1.2": begun(b"POST /v1/chat/completions HTTP/1.2\r\n"),
    "HTTP/2.0": begun(b"POST /v1/chat/completions HTTP/2.0\r\n"),
    "HTTP/01.1": begun(b"POST /v1/chat/completions HTTP/01.1\r\n"),
    "http/1.1": begun(b"POST /v1/chat/completions http/1.1\r\n"),
    "ICE/1.1": begun(b"POST /v1/chat/completions ICE/1.1\r\n"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a tab for a blank": begun(b"POST\t/v1/chat/completions HTTP/1.1\r\n"),
    "a method in small letters": begun(b"post /v1/chat/completions HTTP/1.1\r\n"),
    "a method with (": begun(b"PO(T /v1/chat/completions HTTP/1.1\r\n"),
    "a path with a control character": begun(b"POST /v1/chat\x01 HTTP/1.1\r\n"),
    "chunked over HTTP/1.0": begun(b"POST /v1/chat/completions HTTP/1.0\r\n")
    .replace(LENGTH, CHUNKED)
    .replace(BODY, CHUNKS)
    + EVIL,
    "the same, kept alive": field(b"Connection: keep-alive\r\n")
    .replace(b"HTTP/1.1", b"HTTP/1.0")
    .replace(LENGTH, CHUNKED)
    .replace(BODY, CHUNKS)
    + EVIL,
    "a tunnel": b"CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n" + EVIL,
}
OTHER_STATUS: dict[str, tuple[bytes, int]] = {
    "an unknown expectation": (field(b"Expect: CANARY\r\n"), 417),
    "a header over the limit": (field(b"X: " + b"CANARY" * 3000 + b"\r\n"), 431),
    "a path over the limit": (begun(b"POST /" + b"CANARY" * 3000 + b" HTTP/1.1\r\n"), 431),
    "too many headers": (field(b"".join(b"X-%d: CANARY\r\n" % n for n in range(200))), 431),
    "too many bytes of headers": (field(b"".join(b"X-%d: %b\r\n" % (n, b"CANARY" * 2000) for n in range(20))), 431),
}
ONE_REQUEST: dict[str, bytes] = {
    "plain": HEAD + LENGTH + b"\r\n" + BODY,
    "chunked": HEAD + CHUNKED + b"\r\n" + CHUNKS,
    "CHUNKED": HEAD + b"Transfer-Encoding:\tCHUNKED\r\n\r\n" + CHUNKS,
    "a chunk with an extension": chunked(b"f;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's size with zeros": chunked(b"0" * 40 + b"f\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "an empty line first": b"\r\n" + HEAD + LENGTH + b"\r\n" + BODY,
    "another header's _": field(b"Content_Length: 0\r\n"),
    "the length as a hop's own": field(b"Connection: Content-Length\r\n"),
    "another host in the path": begun(b"POST http://evil.example/v1/chat/completions HTTP/1.1\r\n"),
    "HTTP/1.0": begun(b"POST /v1/chat/completions HTTP/1.0\r\n"),
    "100-continue": field(b"Expect: 100-continue\r\n"),
    "an upgrade to HTTP/2": field(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    ),
    "a GET with a body": b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL),
    "a HEAD with a body": b"HEAD /health HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL),
}


@attrs.define
class Activity:
    """When any of several connections last heard something: a busy machine answers late, but not all at once."""

    port: int
    at: float = attrs.field(factory=lambda: asyncio.get_running_loop().time())
    _proof: asyncio.Task[None] | None = None

    def heard(self) -> None:
        self.at, self._proof = asyncio.get_running_loop().time(), None

    def silent(self) -> float:
        return asyncio.get_running_loop().time() - self.at

    async def proven(self) -> bool:
        """Whether somebody who came later has been answered since all fell silent; if not, that is waited for.

        Else nginx, another process, may only have got no processor.
        """
        if self._proof is not None and self._proof.done():
            return True
        if self._proof is None:
            self._proof = asyncio.ensure_future(self._ask())
        await self._proof
        return False

    async def _ask(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()


async def statuses(port: int, data: bytes, activity: Activity | None = None) -> tuple[list[int], bytes, bool]:
    """Of what comes back: the statuses, the bytes, whether the connection was closed after them.

    A second answer has a second after the first one, and the first two, in which all are silent.
    """
    activity = activity or Activity(port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got, closed = b"", False
    try:
        writer.write(data)
        while not closed:
            try:
                async with asyncio.timeout(0.25):
                    part = await reader.read(65536)
            except TimeoutError:
                if activity.silent() >= (1 if got else 2) and await activity.proven():
                    break
            else:
                activity.heard()
                got += part
                closed = not part
    except ConnectionError:
        closed = True
    writer.close()
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", got)], got, closed


def lines(p: Proxy) -> list[Any]:
    """The log's lines of requests."""
    return [row for row in map(json.loads, p.log.getvalue().splitlines()) if row["event"] == "request"]


@pytest.mark.parametrize("what", [*REFUSED, *OTHER_STATUS])
async def test_a_doubtful_request_is_refused_and_ends_its_connection(tmp_path: Path, what: str) -> None:
    """One answer in our shape, one log line without what was sent, counted, no provider, the connection closed."""
    data, wanted = OTHER_STATUS[what] if what in OTHER_STATUS else (REFUSED[what], 400)
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        codes, got, closed = await statuses(p.port, data)
        assert (codes, closed) == ([wanted], True)
        head, _, body = got.partition(b"\r\n\r\n")
        error = json.loads(body)["error"]
        assert (error["type"], error["source"]) == ("invalid_request_error", "manallm-proxy")
        assert gpu.posts == []
        assert p.app.gateway.pipeline.exchanges == set()
        [line] = lines(p)
        assert (line["status"], line["outcome"], line["error"]) == (wanted, "error", error["code"])
        assert f"X-Request-Id: {line['request_id']}".encode() in head
        assert b"CANARY" not in got
        assert "CANARY" not in p.log.getvalue()
        assert len(p.log.getvalue().splitlines()) == 2  # the start, and this
        async with p.client.get(f"{p.url}/metrics") as response:
            counted = [
                row for row in (await response.text()).splitlines() if row.startswith("mana_llm_requests_total{")
            ]
        assert [row.rpartition(" ")[2] for row in counted] == ["1.0"]
        assert f'status="{wanted}"' in counted[0]


async def all_statuses(port: int, probes: Mapping[Any, bytes]) -> dict[Any, tuple[list[int], bytes, bool]]:
    """The same of each, all at once, over a connection each."""
    activity = Activity(port)
    seen = await asyncio.gather(*(statuses(port, data, activity) for data in probes.values()))
    return dict(zip(probes, seen, strict=True))


async def test_an_odd_but_sound_request_is_one(tmp_path: Path) -> None:
    """It is answered once, and nothing of it is taken for another request."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for what, (codes, _, _) in (await all_statuses(p.port, ONE_REQUEST)).items():
            assert [code for code in codes if code != 100] == [200], what
        assert len(lines(p)) == len(gpu.posts) == sum(b"/health" not in data for data in ONE_REQUEST.values())
        assert [seen for seen in gpu.posts if b"SMUGGLED" in seen.body] == []


async def test_behind_nginx_none_becomes_two(tmp_path: Path) -> None:
    """nginx forgives more than we do; what it makes of each is one request at most, and never the hidden one."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            port = int(front.rpartition(":")[2])
            probes = {**REFUSED, **{what: data for what, (data, _) in OTHER_STATUS.items()}, **ONE_REQUEST}
            seen = await all_statuses(port, probes)
            for what, (codes, got, _) in seen.items():
                assert len([code for code in codes if code != 100]) <= 1, what
                assert b"CANARY" not in got, what
            await until(lambda: len(gpu.posts) <= len(lines(p)))  # a line is written once its answer is
            told = b"".join(got for _, got, _ in seen.values()).decode(errors="replace")
            unseen = [line for line in lines(p) if line["request_id"] not in told]
            assert len(unseen) <= 1, unseen  # each is one answer; that over HTTP/0.9 has no head to show it
            assert [seen for seen in gpu.posts if b"SMUGGLED" in seen.body] == []
            assert "CANARY" not in p.log.getvalue()
            assert await healthy(p, gpu)


async def healthy(p: Proxy, gpu: Upstream) -> bool:
    """Nothing is left over of all that."""
    code, _, _ = await p.chat()
    await until(lambda: not p.app.gateway.pipeline.exchanges)
    return code == 200


# fmt: off
TRICKS = [
    b"/v1/../metrics", b"//metrics", b"/./metrics", b"/v1/%2e%2e/metrics", b"/%2e/metrics", b"/v1/..;/metrics",
    b"/metrics/", b"/metrics%00", b"/metrics;x", b"/%6detrics", b"/metrics%2f", b"/metrics%20", b"/metrics.",
    b"/METRICS",
    b"/v1/models/../../metrics", b"/v1/models/%2e%2e%2f%2e%2e%2fmetrics", b"/v1/models/..%2f..%2fmetrics",
    b"http://x/metrics", b"http://127.0.0.1/metrics", b"/\\metrics", b"/v1\\..\\metrics", b"/metrics?x#y", b"*",
    b"/?/metrics",
]
# fmt: on


@pytest.mark.parametrize("fronted", [False, True])
async def test_no_spelling_of_a_path_leads_elsewhere(tmp_path: Path, fronted: bool) -> None:
    """No redirect ever; what nginx denies stays denied however it is written; a path below /v1 stays there."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            port = int(front.rpartition(":")[2]) if fronted else p.port
            starts = [b"OPTIONS *", *(b"GET " + path for path in TRICKS)]
            asked = {start: start + b" HTTP/1.1\r\nHost: x\r\n\r\n" for start in starts}
            for start, (codes, got, _) in (await all_statuses(port, asked)).items():
                assert len(codes) == 1, start
                assert not 300 <= codes[0] < 400, start
                assert b"\r\nlocation:" not in got.lower(), start
                if fronted or b".." in start or b"%2e" in start:
                    assert b"process_cpu" not in got, start
        assert gpu.posts == []


async def test_a_body_in_a_packet_of_its_own_starts_no_clock(tmp_path: Path) -> None:
    """It comes at the very moment that its request is handed over: no head has begun, so none can be late."""

    async def read(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.read())

    runner = Runner(
        Server(read, header=1000, head_timeout=lambda: 0.2, limits=Limits, refusal=lambda error: ("id-1", b"{}"))
    )
    await runner.on_address("127.0.0.1", 0, 1)
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(HEAD + LENGTH + b"\r\n" + BODY)
    await reader.readuntil(BODY)
    [connection] = runner.server.connections
    connection.data_received(HEAD + LENGTH + b"\r\n")
    asyncio.get_running_loop().call_soon(connection.data_received, BODY)
    await asyncio.wait_for(reader.readuntil(BODY), 3)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.5)
    writer.close()
    await runner.cleanup()


async def test_a_head_without_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    """In pieces, each line of it short enough: 431, long before the time is over, and not much memory."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"]), tmp_path) as p:
        _, writer = await asyncio.open_connection("127.0.0.1", p.port)

        async def endless() -> None:
            writer.write(LINE + b"Host: x\r\n")
            while True:
                writer.write(b"X: %b\r\n" % (b"y" * 8000))
                await writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(endless(), 5)
        writer.close()
        [line] = lines(p)
        assert (line["status"], line["error"]) == (431, "header_too_large")
