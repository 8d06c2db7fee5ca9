"""A request that ended holds nothing: failures of each kind, with the cycle collector off, and memory stays flat."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import encode
from tests.native_servers import speaks_messages, speaks_responses
from tests.proxy import HI, Proxy, everything, openai, proxy, settings
from tests.upstreams import Answer, Connection, Seen, answers, chunk, each, status, upstream
from tests.waiting import until

BODY = 3 * 2**17  # over what is parsed beside the loop
"""Bytes of one prompt."""
REQUESTS = 8
ROOM = 5 * BODY
"""Bytes that may be held after all of them: those that are just being given back, where eight or more would be held."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the collector would free stays, and is seen."""
    gc.disable()
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
    headers = {"Content-Type": "application/json"}
    async with (
        p.client.post(  # without a name for the body: of a broken answer, Python 3.13 keeps this frame in a cycle
            f"{p.url}/v1/chat/completions",
            data=encode({"messages": [{"role": "user", "content": "x" * BODY}], **asked}),
            headers=headers,
        ) as response
    ):
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
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(REQUESTS):
                await ask(p, asked)
                server.seen.clear()
            await asyncio.sleep(0)
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < ROOM


async def hangs(connection: Connection, seen: Seen) -> None:
    await connection.gone()


async def hangs_after_one(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk("one"))
    await connection.gone()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "begun"), [("openai", False), ("openai", True), ("ollama", False)])
async def test_who_left_holds_nothing(kind: str, stream: bool, begun: bool, tmp_path: Path, no_collector: None) -> None:
    """Before the answer has begun, or in the middle of it."""
    body = encode({"messages": [{"role": "user", "content": "x" * BODY}], "stream": stream})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with upstream(each(hangs_after_one if begun else hangs)) as server:
        provider = openai(server.url) if kind == "openai" else {"kind": "ollama", "base_url": server.url}
        async with proxy(settings({"p": provider}), tmp_path) as p:

            async def leave() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                writer.write(head + body)
                await until(lambda: server.posts)
                if begun and stream:
                    await reader.readuntil(b"one")
                writer.transport.abort()
                await until(lambda: not p.app.gateway.pipeline.exchanges)
                server.seen.clear()

            for _ in range(2):
                await leave()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(REQUESTS):
                await leave()
            await asyncio.sleep(0)
            after, _ = tracemalloc.get_traced_memory()
            assert after - before < ROOM


DOORS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": HI,
    "/v1/messages": {**HI, "max_tokens": 9},
    "/v1/responses": {"input": "hi"},
    "/api/chat": HI,
}


def calls_of(others: Iterable[Call]) -> list[Call]:
    """All calls that there are, but for `others`."""
    known = set(map(id, others))
    return [one for one in gc.get_objects() if type(one) is Call and id(one) not in known]


async def test_no_door_leaves_its_call_to_the_collector(tmp_path: Path, no_collector: None) -> None:
    """Translated, in the provider's own format, and where the one failed before the other: no call is in a circle."""
    gc.collect()
    others = calls_of(())  # which test modules have in their tables
    async with (
        upstream(each(answers)) as chat,
        upstream(each(speaks_messages)) as messages,
        upstream(each(speaks_responses)) as responses,
        upstream(each(status("500 Internal Server Error"))) as bad,
    ):
        providers = {
            "chat": openai(chat.url),
            "messages": openai(messages.url, speaks=["messages"]),
            "responses": openai(responses.url, speaks=["responses"]),
            "bad": openai(bad.url, speaks=["chat", "messages", "responses"]),
        }
        config = settings(providers, ["bad/m", "chat/m"], health={"failure_threshold": 10**6})
        async with proxy(config, tmp_path) as p:
            for (path, body), stream in itertools.product(DOORS.items(), (False, True)):
                own = f"{path.rpartition('/')[2]}/m"
                for model in ("mana/test", *([own] if own in ("messages/m", "responses/m") else ())):
                    async with p.client.post(p.url + path, json={**body, "model": model, "stream": stream}) as response:
                        assert response.status == 200, (path, model, await everything(response))
                        await everything(response)
                    await until(lambda: calls_of(others) == [])
