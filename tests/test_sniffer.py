"""A stream is recognised by its first bytes, whatever its Content-Type says, and whatever stands before them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.cases import each_with_each
from tests.proxy import Proxy, openai, proxy, settings
from tests.servers import LAST, gemini, line
from tests.upstreams import DONE, Answer, Connection, Seen, chunk, completion, each, upstream

BOM = b"\xef\xbb\xbf"
BEFORE = [BOM, BOM + b": ping\n\n", BOM + b"\n" * 100, b"\n" * 100]
OPENAI = chunk("Hello") + chunk(finish="stop") + DONE
GEMINI = b"data: " + gemini("Hello", finish="STOP") + b"\r\n\r\n"


OLLAMA = line("Hello") + LAST
WHOLE = {"gpu": json.dumps(completion()).encode(), "google": gemini("Hello", finish="STOP"), "box": OLLAMA}


def sends(data: bytes, step: int, content_type: str) -> Answer:
    """Sends its start in reads of `step` bytes."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.head(content_type=content_type)
        for at in range(0, 16, step):
            await connection.chunk(data[at : at + step])
        await connection.chunk(data[-(-16 // step) * step :])
        await connection.end()

    return answer


def providers(url: str) -> dict[str, Any]:
    return {"gpu": openai(url), "google": {"kind": "google", "base_url": url, "api_key": "k"}} | {
        "box": {"kind": "ollama", "base_url": url}
    }


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Proxy]:
    with TemporaryDirectory() as folder:
        async with proxy(settings(providers(url)), Path(folder)) as p:
            yield p


def texts(body: bytes) -> Iterator[str]:
    for row in body.split(b"\n"):
        if row.startswith(b"data: {"):
            yield from (each["delta"].get("content") or "" for each in json.loads(row[6:])["choices"])


@each_with_each(["gpu", "google"], BEFORE, [1, 3, 64])
async def test_what_stands_before_a_stream(name: str, before: bytes, step: int) -> None:
    """A BOM there made it a broken answer, and after two of them nobody was served."""
    data = before + (OPENAI if name == "gpu" else GEMINI)
    async with upstream(each(sends(data, step, "text/plain"))) as up, opened(up.url) as p:
        status, body, _ = await p.stream(model=f"{name}/m")
        assert (status, "".join(texts(body)), body.count(DONE)) == (200, "Hello", 1)


@each_with_each(["gpu", "google", "box"], [BOM, BOM + b" ", b"\n" * 100], [1, 3, 64])
async def test_what_stands_before_a_whole_answer(name: str, before: bytes, step: int) -> None:
    """In place of a stream; Ollama's streams are such answers."""
    async with upstream(each(sends(before + WHOLE[name], step, "application/json"))) as up, opened(up.url) as p:
        status, body, _ = await p.stream(model=f"{name}/m")
        assert (status, "".join(texts(body)), body.count(DONE)) == (200, "Hello", 1)
