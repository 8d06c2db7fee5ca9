"""Nothing is lost when things change: reloads and restarts under load, with the real signals and descriptors."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import yaml

from manallm_proxy.gateway.exchange import Exchange
from tests.faults.load import Tally, load, one, pulse
from tests.faults.supervisor import Supervisor, supervised
from tests.ports import free_port
from tests.proxy import Process, logging_to, openai, process, proxy, settings
from tests.upstreams import DONE, Connection, Seen, Upstream, answers, chunk, each, upstream
from tests.waiting import until

pytestmark = pytest.mark.built_in

HEAVY = pytest.mark.heavy
STREAMS = 20
PATIENT = {"connect": 9, "first_byte": 60, "idle": 60}
"""A busy machine is not what is looked at here."""


async def word_by_word(connection: Connection, seen: Seen) -> None:
    """A stream that lasts until the test lets it end; everything else is answered at once."""
    if seen.json.get("model") != "slow":
        await answers(connection, seen)
        return
    await connection.head()
    while not connection.upstream.go.is_set():
        await connection.chunk(chunk("word"))
        await asyncio.sleep(0.05)
    await connection.chunk(chunk(finish="stop") + DONE)
    await connection.end()


async def streams(url: str, tally: Tally) -> list[asyncio.Task[None]]:
    """Open ones, each with a word in hand; their tasks end with them."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    made = [asyncio.ensure_future(one(session, url, tally, stream=True, model="gpu/slow")) for _ in range(STREAMS)]
    made.append(asyncio.ensure_future(_close_after(session, list(made))))
    return made


async def _close_after(session: aiohttp.ClientSession, tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)
    await session.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("times", "rate"), [(5, 50), pytest.param(100, 200, marks=HEAVY)])
async def test_reloads_lose_nothing(tmp_path: Path, times: int, rate: int) -> None:
    """SIGHUP under load and open streams, the chain turned round each time; health is kept.

    Then the same process gets files that are broken, and a storm of signals.
    """
    async with upstream(each(word_by_word)) as gpu, upstream(each(answers)) as other:
        providers = {
            "gpu": openai(gpu.url, timeouts=PATIENT),
            "other": openai(other.url),
            "dead": openai("http://127.0.0.1:9"),
        }
        config = settings(providers, ["gpu/m", "other/m"], health={"backoff": 600})
        config["aliases"]["mana/dead"] = {"chain": ["dead/m", "other/m"]}
        async with process(config, tmp_path) as running:
            tally, long = Tally(), Tally()
            async with aiohttp.ClientSession() as session:
                await one(session, running.url, Tally(), model="mana/dead")
                await one(session, running.url, Tally(), model="mana/dead")
                opened = await streams(running.url, long)
                await until(lambda: slow_ones(gpu) == STREAMS)
                async with load(running.url, rate, tally):
                    for number in range(times):
                        chain = ["gpu/m", "other/m"] if number % 2 else ["other/m", "gpu/m"]
                        config["aliases"]["mana/test"] = {"chain": chain}
                        (tmp_path / "new").write_text(yaml.safe_dump(config))
                        (tmp_path / "new").rename(tmp_path / "proxy.yaml")
                        os.kill(running.pid, signal.SIGHUP)
                        await running.logs('"reloaded"', number + 1)
                        await some_more(tally)
                gpu.go.set()
                await asyncio.gather(*opened)
                async with session.get(f"{running.url}/v1/health") as response:
                    dead = (await response.json())["providers"]["dead"]
            print(f"\n{times} reloads under {rate} requests/s: {tally}; streams over all of them: {long}")
            assert not tally.lost
            assert not long.lost
            assert long.served == STREAMS
            assert set(tally.by_target) == {"gpu/m", "other/m"}
            assert dead["status"] == "unhealthy"
            assert not any('"level":"error"' in line for line in running.output)
            await a_broken_file_changes_nothing(running, tmp_path / "proxy.yaml", config)
            await a_storm_of_reloads_holds_up_nobody(running)


async def some_more(tally: Tally) -> None:
    """Returns once the load has got some more answers."""
    before = tally.served + sum(tally.lost.values())
    await until(lambda: tally.served + sum(tally.lost.values()) >= before + 5, 20)


async def a_broken_file_changes_nothing(running: Process, path: Path, config: dict[str, Any]) -> None:
    """Half a file, no file, an unknown key: under load the old configuration serves on, and says so each time."""
    tally = Tally()
    async with load(running.url, 50, tally):
        for number, broken in enumerate(["providers: [", "", yaml.safe_dump({**config, "oops": 1}), None]):
            put(path, broken)
            os.kill(running.pid, signal.SIGHUP)
            await running.logs("reload refused", number + 1)
        await some_more(tally)
    assert not tally.lost
    put(path, yaml.safe_dump(config))


def put(path: Path, text: str | None) -> None:
    """Writes a file, or removes it."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


async def a_storm_of_reloads_holds_up_nobody(running: Process) -> None:
    """/health answers through twenty reloads in a row, as fast as ever."""
    before = sum('"reloaded"' in line for line in running.output)
    async with pulse(running.url) as beat:
        for _ in range(20):
            os.kill(running.pid, signal.SIGHUP)
            await asyncio.sleep(0.02)
        await running.logs('"reloaded"', before + 1)
    assert beat.failed == 0
    assert beat.percentile(0.99) < 1.0


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("times", "rate"), [(2, 50), pytest.param(20, 200, marks=HEAVY)])
async def test_restarts_lose_nothing(tmp_path: Path, times: int, rate: int) -> None:
    """With systemd's socket, no connection refused, none reset, no stream cut, by clients old and new.

    Then the same unit turns clients away, waits for those that have said nothing yet, and is killed.
    """
    async with upstream(each(paced)) as gpu:
        async with supervised(settings({"gpu": openai(gpu.url, timeouts=PATIENT)}), tmp_path) as unit:
            tally, long = Tally(), Tally()
            async with load(unit.url, rate, tally), aiohttp.ClientSession() as session:
                await some_more(tally)
                for number in range(times):
                    opened = [one(session, unit.url, long, stream=True, model="gpu/slow") for _ in range(5)]
                    running = asyncio.gather(*opened)
                    # mypy has no type for a lambda's default, which binds this round's number
                    # mypy knows no defaults of a lambda
                    await until(lambda so_many=5 * (number + 1): slow_ones(gpu) == so_many)  # type: ignore[misc]
                    await unit.restart()
                    await running
                    await some_more(tally)
            print(f"\n{times} restarts under {rate} requests/s: {tally}; streams across them: {long}")
            assert not tally.lost
            assert not long.lost
            assert long.served == 5 * times
            assert unit.codes == [0] * times
            assert not any('"level":"error"' in line for line in unit.output)
            await readyz_turns_first(unit)
            await connections_without_a_word_are_not_lost(unit)
            await sigkill_leaves_nothing(unit)


def slow_ones(gpu: Upstream) -> int:
    """How many of the long streams the provider has been asked for."""
    return sum(seen.json["model"] == "slow" for seen in gpu.posts)


async def paced(connection: Connection, seen: Seen) -> None:
    """A stream of half a second where ``slow`` is asked for."""
    if seen.json.get("model") != "slow":
        await answers(connection, seen)
        return
    await connection.head()
    for _ in range(10):
        await connection.chunk(chunk("word"))
        await asyncio.sleep(0.05)
    await connection.chunk(chunk(finish="stop") + DONE)
    await connection.end()


async def readyz_turns_first(unit: Supervisor) -> None:
    """From the first moment of a drain 503, while connections are still taken and answered."""
    async with aiohttp.ClientSession() as session:
        os.kill(unit.pid, signal.SIGTERM)
        await unit.hears("STOPPING=1")
        async with session.get(f"{unit.url}/readyz") as response:
            assert (response.status, response.headers["Connection"]) == (503, "close")
        async with session.get(f"{unit.url}/health") as response:
            assert response.status == 200
        assert unit.child is not None
        assert await asyncio.wait_for(unit.child.wait(), 40) == 0
        waiting = asyncio.ensure_future(_status(session, unit))
        await unit.start()
        assert await asyncio.wait_for(waiting, 5) == 200


async def _status(session: aiohttp.ClientSession, unit: Supervisor) -> int:
    async with session.get(f"{unit.url}/readyz") as response:
        return response.status


async def connections_without_a_word_are_not_lost(unit: Supervisor) -> None:
    """Accepted just before the listener goes, its request comes a moment later: it is answered."""
    os.kill(unit.pid, signal.SIGTERM)
    await unit.hears("STOPPING=1")
    tally: list[bytes] = []
    await asyncio.gather(*(_late(unit.port, 0.01 * n, tally) for n in range(70)), _next(unit))
    assert len(tally) == 70
    assert all(said.startswith(b"HTTP/1.1 200 ") for said in tally), sorted(tally)[:3]


async def _next(unit: Supervisor) -> None:
    assert unit.child is not None
    await asyncio.wait_for(unit.child.wait(), 40)
    await unit.start()


async def _late(port: int, connects: float, tally: list[bytes]) -> None:
    """Connects after so long, and asks 50 ms later."""
    await asyncio.sleep(connects)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.sleep(0.05)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        tally.append(await asyncio.wait_for(reader.read(), 20))
    except ConnectionError as error:
        tally.append(repr(error).encode())
    finally:
        writer.close()


async def sigkill_leaves_nothing(unit: Supervisor) -> None:
    """Killed under load, it is up again in 3 s under its socket's unit; no lock, no port is left over."""
    tally = Tally()
    async with load(unit.url, 50, tally):
        await until(lambda: tally.served > 10, 20)
        await unit.stop(signal.SIGKILL)
        started = time.monotonic()
        await unit.start()
        print(f"\nup again {time.monotonic() - started:.2f} s after SIGKILL")
        assert time.monotonic() - started < 40
        await some_more(tally)
    assert sum(tally.lost.values()) <= 10  # what was in hand
    assert not any("status" in why for why in tally.lost)


async def test_a_drain_is_not_over_while_something_is_in_hand(tmp_path: Path) -> None:
    """Idle for a moment and busy again before the drain looks: what came meanwhile is not interrupted."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        web = p.app.gateway.pipeline
        first, second = cast(Exchange, object()), cast(Exchange, object())
        web.exchanges.add(first)
        waiting = asyncio.ensure_future(p.app._until_idle(10))
        for _ in range(10):
            await asyncio.sleep(0)
        web.leave(first)
        web.exchanges.add(second)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        web.leave(second)
        await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigterm_while_it_starts(tmp_path: Path, workers: str) -> None:
    """While the first round of probes waits for a provider, it ends at once all the same, and well."""

    async def hangs(connection: Connection) -> None:
        await connection.gone()

    async with upstream(hangs) as gpu:
        config = settings({"gpu": openai(gpu.url)}, listen={"port": free_port()}, health={"probe_timeout": 60})
        async with logging_to(tmp_path / "log", tmp_path, config, "--workers", workers) as (child, _):
            started = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 40) == 0
            assert time.monotonic() - started < 40
            log = (tmp_path / "log").read_text()
            assert '"stopped"' in log
            assert '"error"' not in log


async def test_a_stuck_loop_is_ended_with_its_stack(tmp_path: Path) -> None:
    """A loop that stands still pings no more; SIGABRT, the watchdog's, leaves the stack in the log."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "watchdog"))
    notify.setblocking(False)
    loop = asyncio.get_running_loop()
    environ: dict[str, Any] = {
        "NOTIFY_SOCKET": str(tmp_path / "watchdog"),
        "WATCHDOG_USEC": "200000",
        "PYTHONFAULTHANDLER": "1",
    }
    async with process(settings({"gpu": openai("http://127.0.0.1:9")}), tmp_path, environ) as running:
        async with asyncio.timeout(10):
            while b"WATCHDOG=1" not in await loop.sock_recv(notify, 4096):
                pass
        os.kill(running.pid, signal.SIGSTOP)
        while True:  # what was sent before
            try:
                notify.recv(4096)
            except BlockingIOError:
                break
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(notify, 4096), 0.6)
        os.kill(running.pid, signal.SIGABRT)
        os.kill(running.pid, signal.SIGCONT)
        assert await asyncio.wait_for(running.child.wait(), 40) == -signal.SIGABRT
        await until(lambda: any("Fatal Python error: Aborted" in line for line in running.output))
    notify.close()
