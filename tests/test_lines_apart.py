"""Ollama's own server sends each line as a chunk of its own, and some clients take each chunk for a line: they fail
where a proxy speaks of several at once (twinny issue 44, aichat issue 548, openresty issue 914)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from manallm_proxy.contract.http_chunks import framed, framed_lines
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.upstreams import DONE, USAGE, Connection, Seen, chunk, each, upstream

WORDS = [f"w{n} " for n in range(20)]


async def at_once(connection: Connection, seen: Seen) -> None:
    """All that it says comes in one read; ``cut`` has no end."""
    is_cut = seen.json["model"] == "cut"
    await connection.head()
    await connection.chunk(b"".join([*map(chunk, WORDS), *([] if is_cut else [chunk(finish="stop"), USAGE, DONE])]))
    if is_cut:
        connection.writer.close()
    else:
        await connection.end()


async def chunks_of(port: int, path: str, body: bytes, *, cut: bool = False) -> list[bytes]:
    """The chunks of an answer, as HTTP has them; without the last, empty one, which it lacks if it is `cut`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200 ")
    rest = await asyncio.wait_for(reader.read() if cut else reader.readuntil(b"\r\n0\r\n\r\n"), 5)
    writer.close()
    found = []
    while rest and not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        found.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return found


@pytest.mark.parametrize("model", ["m", "cut"])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_each_line_is_a_chunk(path: str, model: str, tmp_path: Path) -> None:
    """Also where its provider said much at a time, with the end behind it, or an error in its place."""
    async with upstream(each(at_once)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        body = {"model": f"p/{model}", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        lines = [
            json.loads(part) for part in await chunks_of(p.port, path, json.dumps(body).encode(), cut=model == "cut")
        ]
    said = [line["message"]["content"] if "message" in line else line["response"] for line in lines[:20]]
    assert said == WORDS
    assert [("error" in line, line.get("done")) for line in lines[20:]] == [(model == "cut", model == "m" or None)]


async def test_events_go_together(tmp_path: Path) -> None:
    """Of the other doors: their clients look for the ends of lines."""
    async with upstream(each(at_once)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        body = json.dumps({"stream": True, "messages": []}).encode()
        assert len(await chunks_of(p.port, "/v1/chat/completions", body)) == 1


@every(
    [
        (b"a\n", [b"a\n"]),
        (b"a\nb\n", [b"a\n", b"b\n"]),
        (b"a", [b"a"]),
        (b"a\nb", [b"a\n", b"b"]),
        (b"\n", [b"\n"]),
        (b"a\n" + 5000 * b"b" + b"\n", [b"a\n", 5000 * b"b" + b"\n"]),
    ]
)
def test_frames_of_lines(data: bytes, lines: list[bytes]) -> None:
    """Also of a part of a long line, and of what has no end."""
    assert framed_lines(data) == b"".join(map(framed, lines))
