"""config/nginx.conf.example under Debian's real nginx, with only its addresses and paths exchanged."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.nginx import EXAMPLE, nginx
from tests.proxy import HI, everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, answers, chunk, each, upstream


async def test_chunks_arrive_as_they_are_sent(tmp_path: Path) -> None:
    """Each event comes through nginx before the next one exists."""
    steps = [asyncio.Event() for _ in range(3)]

    async def slowly(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for number, step in enumerate(steps):
            await connection.chunk(chunk(f"word{number}"))
            await asyncio.wait_for(step.wait(), 5)
        await connection.chunk(chunk(finish="stop") + DONE)
        await connection.end()

    async with upstream(each(slowly)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{front}/v1/chat/completions", json=payload) as response:
                assert response.headers["Content-Type"] == "text/event-stream"
                for number, step in enumerate(steps):
                    got = b""
                    async with asyncio.timeout(3):
                        while f"word{number}".encode() not in got:
                            got += await response.content.readany()
                    step.set()
                assert (await response.read()).endswith(DONE)


async def test_address_and_request_id_are_handed_on(tmp_path: Path) -> None:
    """The client's own id survives; without one nginx makes it; the client's address reaches us."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            url = f"{front}/v1/chat/completions"
            async with p.client.post(url, json={"messages": []}, headers={"X-Request-Id": "mine-1"}) as response:
                assert response.headers["X-Request-Id"] == "mine-1"
            async with p.client.post(url, json={"messages": []}) as response:
                assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])
            assert "X-Forwarded-For" in EXAMPLE.read_text()


async def test_a_client_that_leaves_nginx_ends_the_upstream_request(tmp_path: Path) -> None:
    """nginx closes at once, so do we."""

    async def hangs(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        await connection.gone()

    async with upstream(each(hangs)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front, aiohttp.ClientSession() as leaving:
            payload = {"messages": [], "stream": True}
            response = await leaving.post(f"{front}/v1/chat/completions", json=payload)
            await response.content.readany()
            response.close()
            asked = next(c for c in gpu.connections if c.answering)
            await asyncio.wait_for(asked.closed.wait(), 1)


async def test_a_broken_stream_is_broken_behind_nginx_too(tmp_path: Path) -> None:
    """The error event arrives, and no last chunk after it: a client that looks only at the framing sees it as well."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        connection.reset()

    async with upstream(each(breaks)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{front}/v1/chat/completions", json=payload) as response:
                body = await everything(response)
                assert isinstance(response.content.exception(), aiohttp.ClientPayloadError)
            assert b"one" in body and b'"stream_interrupted"' in body and b"[DONE]" not in body


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/chat/completions", HI, b'data: {"error":'),
        ("/v1/completions", {"prompt": "hi"}, b'data: {"error":'),
        ("/v1/responses", {"input": "hi"}, b"event: error\ndata: "),
        ("/v1/messages", {**HI, "max_tokens": 9}, b"event: error\ndata: "),
        ("/api/chat", {**HI, "model": "mana/test"}, b'{"error":"'),
    ],
)
async def test_every_doors_broken_stream_ends_without_a_last_chunk(
    path: str, body: dict[str, Any], last: bytes, tmp_path: Path
) -> None:
    """By its bytes: the error is all there, a FIN comes after it, and neither a reset nor the chunk of length 0."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        text = {"index": 0, "text": "one", "finish_reason": None}
        await connection.chunk(
            f"data: {json.dumps({'choices': [text]})}\n\n".encode() if "prompt" in body else chunk("one")
        )
        connection.reset()

    async with upstream(each(breaks)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            port = int(front.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            data = json.dumps({**body, "stream": True}).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
            writer.write(head.encode() + b"\r\n\r\n" + data)
            async with asyncio.timeout(5):
                got = await reader.read()  # a reset would raise
            writer.close()
            assert b"Transfer-Encoding: chunked" in got and b"one" in got
            assert last in got and b"broke off" in got.rpartition(last)[2]
            assert not got.endswith(b"\r\n0\r\n\r\n") and b"[DONE]" not in got


async def test_large_bodies_pass_and_metrics_do_not(tmp_path: Path) -> None:
    """2 MB would be over nginx's default; /metrics is not for the outside."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with nginx(p, tmp_path) as front:
            big = io.BytesIO(b'{"messages":[{"role":"user","content":"%b"}]}' % (b"x" * 2_000_000))
            async with p.client.post(f"{front}/v1/chat/completions", data=big) as response:
                assert response.status == 200
            async with p.client.get(f"{front}/metrics") as response:
                assert response.status == 403


@pytest.mark.parametrize("directive", ["proxy_read_timeout 600s;", "proxy_buffering off;"])
def test_slow_answers_have_ten_minutes(directive: str) -> None:
    """What cannot be waited for in a test is at least written."""
    assert directive in re.sub(r"[ \t]+", " ", EXAMPLE.read_text())
