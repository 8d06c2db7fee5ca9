"""Clients that vanish, say nothing, or too much."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from pathlib import Path

import aiohttp
import pytest

from tests.faults.dialects import DIALECTS
from tests.faults.matrix import turns
from tests.faults.raw import LEAVES, client, post
from tests.faults.scene import Scene, ask, scene, slow
from tests.proxy import openai, process, settings
from tests.upstreams import Connection, Seen, answers, chunk, each, status, upstream
from tests.waiting import until

PHASES = ["body upload", "first byte", "whole answer", "between fallbacks", "streaming", "error event"]


@pytest.mark.parametrize(("phase", "how", "connection"), turns(PHASES, list(LEAVES)))
async def test_a_client_that_leaves(tmp_path: Path, phase: str, how: str) -> None:
    """The provider is left within a second, nobody else is asked, nobody is blamed, the log says client_gone."""
    dies = status("503 No") if phase == "between fallbacks" else slow
    async with scene(DIALECTS["openai"], each(dies), tmp_path) as at, upstream(each(slow)) as second:
        config = settings({"bad": openai(at.faulty.url), "second": openai(second.url), "good": openai(at.good.url)})
        at.p.write(config | {"listen": {"port": 0}})
        await at.p.app.reload()
        if phase in ("streaming", "error event"):
            at.faulty.go.set()
        async with client(at.p.port) as (reader, writer):
            data = post("chat" if phase == "whole answer" else "stream")
            writer.write(data[:-5] if phase == "body upload" else data)
            asked = second if phase == "between fallbacks" else at.faulty
            if phase == "body upload":
                await until(lambda: at.p.app.gateway.pipeline.exchanges)
            else:
                await until(lambda: asked.posts)
            if phase in ("streaming", "error event"):
                await reader.readuntil(b"one")
            if phase == "error event":
                at.faulty.connections[-1].reset()
            LEAVES[how](writer)
            await until(lambda: not at.p.app.gateway.pipeline.exchanges, 1)
            held = [c for c in asked.connections if c.answering]
            await asyncio.wait_for(asyncio.gather(*(c.closed.wait() for c in held)), 1)
        [line] = at.logged("request")
        assert line["outcome"] in ("client_gone", "broken" if phase == "error event" else "client_gone")
        assert at.good.posts == []
        assert (await at.health())["in_flight"] == 0
        if phase not in ("between fallbacks", "error event"):
            assert (await at.health())["consecutive_failures"] == 0


@pytest.mark.built_in
async def test_the_real_process_notices_a_leaver(tmp_path: Path) -> None:
    """Over uvloop too: before the first byte and in a stream, in each of the ways to leave."""
    async with upstream(each(slow)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        for streaming, how in itertools.product((False, True), LEAVES):
            if streaming:
                gpu.go.set()
            async with client(port) as (reader, writer):
                writer.write(post("stream"))
                await until(lambda: gpu.posts)
                if streaming:
                    await reader.readuntil(b"one")
                gpu.seen.clear()
                LEAVES[how](writer)
                asked = [c for c in gpu.connections if c.answering]
                await asyncio.wait_for(asyncio.gather(*(c.closed.wait() for c in asked)), 1)
        await running.logs('"client_gone"', 2 * len(LEAVES))


@pytest.mark.parametrize(("how", "connection"), turns(LEAVES))
async def test_a_trial_that_is_left_is_free_again(tmp_path: Path, how: str) -> None:
    """A client that leaves while it holds the half-open circuit's one trial does not lock its target out."""

    async def script(connection: Connection, seen: Seen) -> None:
        many = len(connection.upstream.posts)
        if many <= 2:
            await connection.reply(b"{}", "503 No")
        elif many == 3:
            await connection.gone()
        else:
            await answers(connection, seen)

    async with scene(DIALECTS["openai"], each(script), tmp_path, proxy={"health": {"backoff": 0.1}}) as at:
        for _ in range(2):
            await at.ask("chat")
        assert (await at.health())["targets"]["m"]["status"] == "unhealthy"
        await asyncio.sleep(0.12)
        async with client(at.p.port) as (_, writer):
            writer.write(post("chat"))
            await until(lambda: len(at.faulty.posts) == 3)
            held = await at.ask("chat")
            assert (held.resolved, held.attempts) == ("good/m", 1)
            LEAVES[how](writer)
            await until(lambda: not at.p.app.gateway.pipeline.exchanges, 1)
        assert (await at.ask("chat")).resolved == "bad/m"


@pytest.mark.built_in
async def test_a_crowd_that_says_nothing(tmp_path: Path) -> None:
    """300 connections, silent or in the middle of a head, disturb nobody and are closed at their limit."""
    async with scene(DIALECTS["openai"], each(answers), tmp_path, proxy={"limits": {"body_timeout": 0.5}}) as at:
        crowd = []
        for number in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.p.port)
            writer.write(b"" if number % 2 else b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-")
            crowd.append((reader, writer))
        reply = await at.ask("chat")
        assert (reply.status, reply.resolved) == (200, "bad/m")
        told = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in crowd)), 5)
        assert all(not said or said.startswith(b"HTTP/1.1 408 ") for said in told)
        for _, writer in crowd:
            writer.close()


@pytest.mark.built_in
async def test_a_flood_of_rubbish(tmp_path: Path) -> None:
    """A thousand requests that are none: each refused, a few noted in the log, and others are served."""
    async with scene(DIALECTS["openai"], each(answers), tmp_path) as at:
        before = len(at.p.log.getvalue())

        async def rubbish(number: int) -> bytes:
            async with client(at.p.port) as (reader, writer):
                writer.write(b"GARBAGE %d\x00\r\nAuthorization: Bearer sk-CANARY-client\r\n\r\n" % number)
                return await asyncio.wait_for(reader.read(), 10)

        for start in range(0, 1000, 100):
            said = await asyncio.gather(*(rubbish(n) for n in range(start, start + 100)))
            assert all(b" 400 " in each_said[:20] for each_said in said)
            assert (await at.ask("chat")).status == 200
        assert len(at.p.log.getvalue()) - before < 100_000


async def test_a_flood_over_the_limit_is_shed(tmp_path: Path) -> None:
    """Overload: 503 at once with Retry-After, while /health and the streams in flight go on."""
    limits = {"limits": {"concurrent_requests": 20}}
    async with scene(DIALECTS["openai"], each(slow), tmp_path, proxy=limits) as at:
        at.faulty.go.set()
        streams = [await _opened(at) for _ in range(20)]
        (alive, _), *replies = await asyncio.gather(at.p.get("/health"), *(ask(at.p, "chat") for _ in range(60)))
        assert alive == 200
        assert {reply.status for reply in replies} == {503}
        assert all(reply.json["error"]["type"] == "overloaded_error" for reply in replies)
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies)
        assert len(at.faulty.posts) == 20
        for connection in at.faulty.connections:
            if connection.answering:
                await connection.chunk(chunk("two"))
        for response in streams:
            assert b"two" in await asyncio.wait_for(response.content.readany(), 2)
            response.close()


async def _opened(at: Scene) -> aiohttp.ClientResponse:
    response = await at.p.client.post(f"{at.p.url}/v1/chat/completions", json={"messages": [], "stream": True})
    assert b"one" in await response.content.readany()
    return response


@pytest.mark.built_in
@pytest.mark.parametrize("many", [2, 100])
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path, many: int) -> None:
    """Each its own answer, none twice, none missing."""

    async def echo(connection: Connection, seen: Seen) -> None:
        await connection.reply({"object": "chat.completion", "choices": [], "id": seen.json["id"]} | _choice(seen))

    async with scene(DIALECTS["openai"], each(echo), tmp_path) as at:
        async with client(at.p.port) as (reader, writer):
            for number in range(many):
                writer.write(post("chat", body={"messages": [], "id": f"n{number}"}))
            for number in range(many):
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                assert json.loads(await reader.readexactly(length))["id"] == f"n{number}"


def _choice(seen: Seen) -> dict[str, object]:
    message = {"role": "assistant", "content": "x"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.mark.built_in
async def test_descriptors_of_a_process_after_leavers(tmp_path: Path) -> None:
    """200 clients that leave in every way leave nothing behind in the real process."""
    async with upstream(each(slow)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        gpu.go.set()

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{running.pid}/fd"))

        async def leave(number: int) -> None:
            async with client(port) as (reader, writer):
                writer.write(post("stream"))
                await reader.readuntil(b"one")
                list(LEAVES.values())[number % 3](writer)

        before = descriptors()
        for start in range(0, 200, 50):
            await asyncio.gather(*(leave(n) for n in range(start, start + 50)))
        await until(lambda: descriptors() <= before + 2)
