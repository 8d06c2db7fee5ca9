"""Faults of the connection itself: nobody there, no name, no trust; and pooled connections that died meanwhile."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.before import LIMIT, full_backlog
from tests.faults.dialects import DIALECTS, Asked
from tests.faults.matrix import turns
from tests.faults.scene import ask, scene
from tests.proxy import BIG, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, completion, each, upstream
from tests.waiting import until

ASKED: tuple[Asked, ...] = ("chat", "stream", "embeddings")


@pytest.mark.parametrize(("kind", "asked", "connection"), turns(DIALECTS, ASKED))
async def test_a_closed_port(tmp_path: Path, kind: str, asked: Asked) -> None:
    """Refused, fallen back from, blamed; when it is back, its first probe lets requests in again."""
    health = {"probe_interval": 0.3, "probe_timeout": 5, "backoff": 0.4}
    async with scene(DIALECTS[kind], each(DIALECTS[kind].good), tmp_path, proxy={"health": health}) as at:
        await at.faulty.stop()
        reply = await at.ask(asked)
        assert (reply.status, reply.resolved) == (200, "good/m")
        assert reply.seconds < 1
        assert at.logged("attempt failed")[0]["detail"] == "refused"
        assert (await at.health())["last_error"] == "connect_error"
        await at.faulty.start()
        async with asyncio.timeout(5):
            while (await at.ask(asked)).resolved != "bad/m":
                await asyncio.sleep(0.05)


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port on which no SYN is answered."""
    listener, waiting = full_backlog()
    yield listener.getsockname()[1]
    for each_socket in (listener, *waiting):
        each_socket.close()


@pytest.mark.parametrize(("kind", "asked", "connection"), turns(DIALECTS, ASKED))
async def test_a_black_hole(tmp_path: Path, black_hole: int, kind: str, asked: Asked) -> None:
    """A machine that is switched off costs ``connect``, and once its circuit is open nothing."""
    async with upstream(each(answers)) as good:
        off = DIALECTS[kind].config(f"http://127.0.0.1:{black_hole}", timeouts={"connect": LIMIT})
        config = settings({"bad": off, "good": openai(good.url)}, health={"probe_timeout": LIMIT})
        async with proxy(config, tmp_path) as p:
            reply = await ask(p, asked)
            assert (reply.status, reply.resolved, reply.attempts) == (200, "good/m", 2)
            assert LIMIT - 0.05 <= reply.seconds <= LIMIT + 1.0
            assert '"reason":"connect_timeout"' in p.log.getvalue()
            await ask(p, asked)
            skipped = await ask(p, asked)
            assert (skipped.resolved, skipped.attempts) == ("good/m", 1)


async def test_a_chain_of_four_that_hang(tmp_path: Path, black_hole: int) -> None:
    """The sum of their limits, and a 503 that names all four with their times."""
    off = openai(f"http://127.0.0.1:{black_hole}", timeouts={"connect": LIMIT})
    config = settings(dict.fromkeys("abcd", off), health={"probe_timeout": LIMIT})
    async with proxy(config, tmp_path) as p:
        reply = await ask(p, "chat")
        assert reply.status == 503
        assert 4 * LIMIT - 0.1 <= reply.seconds <= 4 * LIMIT + 1
        attempts = reply.json["error"]["attempts"]
        assert [a["model"] for a in attempts] == ["a/m", "b/m", "c/m", "d/m"]
        assert all(a["reason"] == "connect_timeout" and a["duration_ms"] >= LIMIT * 900 for a in attempts)


async def test_a_slow_accept_is_no_fault(tmp_path: Path) -> None:
    """The kernel has shaken hands, the server comes late, within ``first_byte``: it serves."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await asyncio.sleep(0.2)
        await answers(connection, seen)

    async with scene(DIALECTS["openai"], each(slow), tmp_path, timeouts={"connect": 0.1}) as at:
        for asked in ASKED:
            reply = await at.ask(asked)
            assert (reply.status, reply.resolved, reply.attempts) == (200, "bad/m", 1)


class Dripping(Connection):
    """A few bytes at a time."""

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), 5):
            await super().send(data[at : at + 5])
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("kind", "asked", "connection"), turns(DIALECTS, ASKED))
async def test_a_slow_drip_is_no_fault(tmp_path: Path, kind: str, asked: Asked) -> None:
    """A byte at a time, none later than ``idle``, all longer than ``idle``: it arrives whole."""

    async def drip(connection: Connection, seen: Seen) -> None:
        await DIALECTS[kind].good(Dripping(connection.reader, connection.writer, connection.upstream), seen)

    async with scene(DIALECTS[kind], each(drip), tmp_path, timeouts={"idle": 2}) as at:
        reply = await at.ask(asked)
        assert (reply.status, reply.resolved) == (200, "bad/m")
        if asked == "stream":
            assert reply.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("kind", "how", "connection"), turns(DIALECTS, ["fin", "reset", "after the next request"]))
async def test_stale_pooled_connections(tmp_path: Path, kind: str, how: str) -> None:
    """Three in the pool have died: the same provider serves over a fresh one, and nobody is blamed."""
    dialect = DIALECTS[kind]
    turn = asyncio.Event()

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if turn.is_set() and connection in old:
                return
            if seen.method == "GET":
                await connection.upstream.probe(connection)
            else:
                await dialect.good(connection, seen)

    old: list[Connection] = []
    async with scene(dialect, script, tmp_path) as at:
        await asyncio.gather(*(at.ask("chat") for _ in range(3)))
        old.extend(at.faulty.connections)
        turn.set()
        for connection in old:
            if how == "reset":
                connection.reset()
            elif how == "fin":
                connection.writer.close()
        for _ in range(4):
            reply = await at.ask("chat")
            assert (reply.status, reply.resolved, reply.attempts) == (200, "bad/m", 1)
        assert at.good.posts == []
        assert (await at.health())["consecutive_failures"] == 0
        assert len(at.faulty.posts) <= 3 + 4 * 2


async def test_an_answer_that_nobody_asked_for_is_nobodys_answer(tmp_path: Path) -> None:
    """Bytes that wait in a pooled connection before the request: the next client must not get them."""

    poisoned = asyncio.Event()

    async def twice(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("mine"))
        if len(connection.upstream.posts) == 1:
            await connection.upstream.go.wait()
            await connection.reply(completion("POISON"))
            poisoned.set()

    async with scene(DIALECTS["openai"], each(twice), tmp_path) as at:
        await at.ask("chat")
        at.faulty.go.set()
        await asyncio.wait_for(poisoned.wait(), 2)
        for _ in range(3):
            assert b"POISON" not in (await at.ask("chat")).body


async def test_an_answer_longer_than_it_says(tmp_path: Path) -> None:
    """An overlong body: what is over is dropped with its connection, not taken for the next answer."""

    async def overlong(connection: Connection, seen: Seen) -> None:
        data = json.dumps(completion("mine")).encode()
        evil = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\nPOISON"
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data + evil))

    async with scene(DIALECTS["openai"], each(overlong), tmp_path) as at:
        for _ in range(3):
            reply = await at.ask("chat")
            assert (reply.status, reply.resolved) == (200, "bad/m")
            assert b"POISON" not in reply.body


async def test_a_server_that_reads_nothing(tmp_path: Path) -> None:
    """A prompt larger than the buffers, a provider that never reads it: ``first_byte`` counts all the same."""

    async def deaf(connection: Connection) -> None:
        await asyncio.wait_for(connection.upstream.go.wait(), 10)

    probes = {"health": {"probe_timeout": 0.1}}
    async with scene(DIALECTS["openai"], deaf, tmp_path, timeouts={"first_byte": LIMIT}, proxy=probes) as at:
        big = {"model": "mana/test", "messages": [{"role": "user", "content": "x" * BIG}]}
        data = io.BytesIO(json.dumps(big).encode())
        started = asyncio.get_running_loop().time()
        async with at.p.client.post(f"{at.p.url}/v1/chat/completions", data=data) as response:
            assert (response.status, response.headers["X-Mana-LLM-Resolved"]) == (200, "good/m")
        assert asyncio.get_running_loop().time() - started < 5
        at.faulty.go.set()


async def test_switched_off_in_mid_flight(tmp_path: Path) -> None:
    """What waits at the provider falls back when it dies; what streams is broken, once."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.gone()

    async with scene(DIALECTS["openai"], each(waits), tmp_path) as at:
        asking = [asyncio.ensure_future(ask(at.p, "chat")) for _ in range(20)]
        await until(lambda: len(at.faulty.posts) >= 20)
        await at.faulty.stop()
        replies = await asyncio.gather(*asking)
        assert {(reply.status, reply.resolved) for reply in replies} == {(200, "good/m")}
        unhealthy = [line for line in at.logged("health") if line["provider"] == "bad" and line["now"] == "unhealthy"]
        assert len(unhealthy) == 1
