"""A request that ended holds nothing: failures of each kind, with the cycle collector off, and memory stays flat."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.openai.json_object import encode
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import Answer, Connection, Seen, answers, chunk, each, status, upstream

BODY = 3 * 2**17  # over what is parsed beside the loop
"""Bytes of one prompt."""
REQUESTS = 8
ROOM = 3 * BODY
"""Bytes that may be held after all of them: a few prompts, where there were eight or more."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the collector would free stays, and is seen."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


async def breaks(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk("one"))
    connection.reset()


async def resets(connection: Connection, seen: Seen) -> None:
    connection.reset()


async def page(connection: Connection, seen: Seen) -> None:
    await connection.reply(b"<html>sign in</html>", content_type="text/html")


async def error_first(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(b'data: {"error": {"message": "no", "code": 500}}\n\n')
    await connection.end()


FAILURES: dict[str, tuple[Answer, dict[str, Any]]] = {
    "400": (status("400 Bad Request", b'{"error": {"message": "no"}}'), {}),
    "400, streamed": (status("400 Bad Request", b'{"error": {"message": "no"}}'), {"stream": True}),
    "500": (status("500 Internal Server Error"), {}),
    "401": (status("401 Unauthorized"), {}),
    "429": (status("429 Too Many Requests"), {}),
    "reset": (resets, {}),
    "a page": (page, {}),
    "an error in place of the first event": (error_first, {"stream": True}),
    "broken after the commit": (breaks, {"stream": True}),
    "unknown model": (answers, {"model": "mana/nosuch"}),
    "wrong type": (answers, {"stream": "yes"}),
    "served": (answers, {}),
    "served, streamed": (answers, {"stream": True}),
}


async def ask(p: Proxy, asked: dict[str, Any]) -> None:
    body = encode({"messages": [{"role": "user", "content": "x" * BODY}], **asked})
    headers = {"Content-Type": "application/json"}
    async with p.client.post(f"{p.url}/v1/chat/completions", data=body, headers=headers) as response:
        await everything(response)


@pytest.mark.parametrize(
    ("failure", "kind"), [*((f, "openai") for f in FAILURES), ("400", "ollama"), ("500", "ollama"), ("reset", "ollama")]
)
async def test_a_request_that_ended_holds_nothing(failure: str, kind: str, tmp_path: Path, no_collector: None) -> None:
    """Neither its body nor what was made of it."""
    answer, asked = FAILURES[failure]
    async with upstream(each(answer)) as server:
        provider = openai(server.url) if kind == "openai" else {"kind": "ollama", "base_url": server.url}
        config = settings({"p": provider}, health={"failure_threshold": 10**6})
        async with proxy(config, tmp_path) as p:
            for _ in range(2):
                await ask(p, asked)
            server.seen.clear()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(REQUESTS):
                await ask(p, asked)
                server.seen.clear()
            await asyncio.sleep(0)
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < ROOM
