"""Health and routing under faults: storms, flapping, all down, clocks that jump."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from tests.faults.dialects import DIALECTS, Asked
from tests.faults.matrix import turns
from tests.faults.scene import ask, scene
from tests.upstreams import Connection, Seen, answers, chunk, each, status
from tests.waiting import until

PATIENT = {"connect": 9, "first_byte": 60, "idle": 60}
"""For a hundred at once on a busy machine, which is not what is looked at."""


@pytest.mark.parametrize(
    "kind", [kind if kind == "openai" else pytest.param(kind, marks=pytest.mark.heavy) for kind in DIALECTS]
)
async def test_a_flapping_provider_costs_no_client_anything(tmp_path: Path, kind: str) -> None:
    """Up and down ten times under load: every request is served, and each turn is reported once."""
    health = {"health": {"probe_interval": 0.1, "probe_timeout": 5, "backoff": 0.1}}
    async with scene(DIALECTS[kind], each(DIALECTS[kind].good), tmp_path, proxy=health) as at:
        over = False

        async def load(asked: Asked) -> set[int]:
            seen = set()
            while not over:
                seen.add((await ask(at.p, asked)).status)
                await asyncio.sleep(0.01)
            return seen

        loads = [asyncio.ensure_future(load(asked)) for asked in ("chat", "embeddings")]
        for _ in range(10):
            await at.faulty.stop()
            await asyncio.sleep(0.05)
            await at.faulty.start()
            await asyncio.sleep(0.05)
        over = True
        assert set.union(*await asyncio.gather(*loads)) == {200}
        turns = [line["now"] for line in at.logged("health") if line["provider"] == "bad" and line.get("model") is None]
        assert len(turns) <= 40
        assert all(one != two for one, two in itertools.pairwise(turns))


async def test_a_storm_of_429(tmp_path: Path) -> None:
    """It cools, nothing is retried there, nobody is blamed, and no client sees it."""
    storm = status("429 Too Many", extra="Retry-After: 70\r\n")
    async with scene(DIALECTS["openai"], each(storm), tmp_path, proxy={"timeouts": PATIENT}) as at:
        replies = await asyncio.gather(*(ask(at.p, "chat") for _ in range(50)))
        assert {(reply.status, reply.resolved) for reply in replies} == {(200, "good/m")}
        assert len(at.faulty.posts) <= 50
        at.faulty.seen.clear()
        replies = await asyncio.gather(*(ask(at.p, "stream") for _ in range(50)))
        assert {(reply.status, reply.resolved) for reply in replies} == {(200, "good/m")}
        assert at.faulty.posts == []
        row = await at.health()
        assert (row["status"], row["consecutive_failures"]) == ("cooling", 0)
        assert len([line for line in at.logged("health") if line["now"] == "cooling"]) == 1


async def test_a_hundred_at_the_moment_of_failure(tmp_path: Path) -> None:
    """At most one try each on the dead one; one change of state, one line."""

    async def dies(connection: Connection, seen: Seen) -> None:
        await asyncio.wait_for(connection.upstream.go.wait(), 10)
        connection.reset()

    async with scene(DIALECTS["openai"], each(dies), tmp_path, proxy={"timeouts": PATIENT}) as at:
        asking = [asyncio.ensure_future(ask(at.p, "chat")) for _ in range(100)]
        await until(lambda: len(at.faulty.posts) >= 100, 10)
        at.faulty.go.set()
        replies = await asyncio.gather(*asking)
        assert {(reply.status, reply.resolved) for reply in replies} == {(200, "good/m")}
        assert len(at.faulty.posts) <= 101  # one of them over a pooled connection, and so once more
        assert [line["now"] for line in at.logged("health") if line["provider"] == "bad"] == ["unhealthy"]


@pytest.mark.parametrize(("asked", "connection"), turns(["chat", "stream", "embeddings"]))
async def test_a_provider_that_fails_half_the_time_gets_no_more_than_was_asked(tmp_path: Path, asked: Asked) -> None:
    """80 in flight, every second one refused: no target is tried twice, the next gets the refused ones only.

    A budget that gave up a fallback for it would break the promise that whoever can answer is asked.
    """
    turn = itertools.count()

    async def every_second(connection: Connection, seen: Seen) -> None:
        await (answers if next(turn) % 2 else status("503 No"))(connection, seen)

    patient = {"health": {"probe_timeout": 5, "failure_threshold": 1000}, "timeouts": PATIENT}
    async with scene(DIALECTS["openai"], each(every_second), tmp_path, proxy=patient) as at:
        replies = await asyncio.gather(*(ask(at.p, asked) for _ in range(80)))
        assert {reply.status for reply in replies} == {200}
        assert len(at.faulty.posts) == 80
        assert len(at.good.posts) == 40 == sum(reply.resolved == "good/m" for reply in replies)


@pytest.mark.parametrize(("asked", "connection"), turns(["chat", "stream", "embeddings"]))
async def test_all_down(tmp_path: Path, asked: Asked) -> None:
    """Once known, a 503 at once, entry by entry, with the time of the earliest trial."""
    async with scene(DIALECTS["openai"], each(answers), tmp_path, proxy={"health": {"backoff": 9}}) as at:
        await at.faulty.stop()
        await at.good.stop()
        for _ in range(2):
            await at.ask(asked)
        reply = await at.ask(asked)
        assert reply.status == 503
        assert [a["reason"] for a in reply.json["error"]["attempts"]] == ["unhealthy", "unhealthy"]
        assert 1 <= int(reply.headers["retry-after"]) <= 9
        assert (await at.p.get("/v1/health"))[0] == 503
        assert (await at.p.get("/readyz"))[0] == 200


@pytest.mark.parametrize(("probe", "connection"), turns(["hangs", "404", "200 while requests fail"]))
async def test_what_a_probe_may_say(tmp_path: Path, probe: str) -> None:
    """A probe has a limit of its own, a 404 is alive, and a good probe does not heal what requests show."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "POST" and probe == "200 while requests fail":
                await connection.reply(b"{}", "503 No")
            elif seen.method == "POST":
                await answers(connection, seen)
            elif probe == "hangs" and connection.upstream.go.is_set():
                await connection.gone()
            else:
                await connection.reply({"data": []}, "404 No" if probe == "404" else "200 OK")

    health = {"health": {"probe_interval": 0.05, "probe_timeout": 0.15}}
    async with scene(DIALECTS["openai"], script, tmp_path, proxy=health) as at:
        at.faulty.go.set()
        for _ in range(2):
            await at.ask("chat")
        async with asyncio.timeout(5):
            wanted = {"hangs": "unhealthy", "404": "healthy", "200 while requests fail": "degraded"}[probe]
            while (await at.health())["status"] != wanted:
                await asyncio.sleep(0.02)
        probes = len(at.faulty.seen)
        await until(lambda: len(at.faulty.seen) >= probes + 3)
        row = await at.health()
        assert row["status"] == wanted
        assert wanted != "degraded" or row["targets"]["m"]["status"] == "unhealthy"
        at.faulty.go.clear()


@pytest.mark.parametrize(("jump", "connection"), turns([3600.0, -3600.0, 1e9]))
async def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Neither limits, cooling, circuits nor probes look at the wall."""

    async def script(connection: Connection, seen: Seen) -> None:
        if connection.upstream.go.is_set():
            await connection.head()
            await connection.chunk(chunk("one"))
            await asyncio.sleep(0.1)
            await connection.chunk(chunk(finish="stop") + b"data: [DONE]\n\n")
            await connection.end()
        else:
            await connection.reply(b"{}", "503 No")

    real = time.time
    health = {"health": {"backoff": 0.25, "probe_interval": 0.1, "probe_timeout": 5}}
    async with scene(DIALECTS["openai"], each(script), tmp_path, proxy=health, timeouts={"idle": 2}) as at:
        for _ in range(2):
            await at.ask("stream")
        opened = time.monotonic()
        assert (await at.health())["targets"]["m"]["status"] == "unhealthy"
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        at.faulty.go.set()
        assert (await ask(at.p, "stream")).attempts == 1  # the circuit is as open as before
        async with asyncio.timeout(5):
            while (reply := await ask(at.p, "stream")).resolved != "bad/m":
                monkeypatch.setattr(time, "time", real)
                monkeypatch.setattr(time, "time", lambda: real() - jump)
                await asyncio.sleep(0.02)
        assert time.monotonic() - opened >= 0.2
        assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_a_cold_model_is_not_dead(tmp_path: Path) -> None:
    """Silent for far longer than ``idle`` and ``connect`` before its first word: only ``first_byte`` counts."""

    class AtOnce(Connection):
        """Sends what it was given in one piece: between two, a busy machine may be silent for longer than ``idle``."""

        async def send(self, data: bytes) -> None:
            together.append(data)

    together: list[bytes] = []

    async def cold(connection: Connection, seen: Seen) -> None:
        await asyncio.sleep(0.25)
        together.clear()
        await answers(AtOnce(connection.reader, connection.writer, connection.upstream), seen)
        await connection.send(b"".join(together))

    times = {"timeouts": {"connect": 0.1, "idle": 0.1, "first_byte": 9}}
    async with scene(DIALECTS["openai"], each(cold), tmp_path, **times) as at:
        for asked in ("chat", "stream", "embeddings"):
            assert (await at.ask(asked)).resolved == "bad/m"
        assert (await at.health())["consecutive_failures"] == 0
