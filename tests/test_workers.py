"""Several real processes on one port: health is shared, metrics are summed, one dies, all drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.command import DEVNULL, start
from tests.figures import samples, value
from tests.proxy import HI, Process, accepts, everything, openai, process, run, settings
from tests.supervised import Systemd, get, health, pids
from tests.upstreams import Connection, Seen, Upstream, answers, each, endless, status, upstream

LOOP = {"loop": {"kind": "loopback"}}
SERVED = {"endpoint": "chat/completions", "status": "200"}


@asynccontextmanager
async def workers(
    config: dict[str, Any], folder: Path, number: int = 2, environ: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    async with process(config, folder, environ, "--workers", str(number)) as running:
        yield running


async def chat(url: str, **body: Any) -> tuple[int, str]:
    """The same for a chat."""
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json={**HI, **body}) as response:
            return response.status, await response.text()


async def holds(what: Callable[[], Awaitable[bool]], seconds: float = 40.0) -> None:
    """Returns once it does."""
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.03)  # to ask takes all workers 5 ms


def lines(running: Process, event: str, **fields: Any) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in running.output if line.startswith("{")]
    return [line for line in found if line["event"] == event and fields.items() <= line.items()]


async def stream(client: aiohttp.ClientSession, url: str) -> aiohttp.ClientResponse:
    """One that has begun."""
    response = await client.post(f"{url}/v1/chat/completions", json={**HI, "stream": True})
    assert b"one" in await response.content.readany()
    return response


async def test_all_workers_serve(tmp_path: Path) -> None:
    """Each gets its share of the connections; one line tells where, one of each that it is there."""
    async with workers(settings(LOOP), tmp_path, 3) as running:
        await asyncio.gather(*(chat(running.url) for _ in range(60)))
        own = await pids(running.url)
        assert len({running.pid, *own.values()}) == 4
        [line] = lines(running, "started", worker=2)
        assert line["detail"] == f"pid {own['2']}"
        [line] = [line for line in lines(running, "started") if "worker" not in line]
        assert line["detail"] == f"listening on {running.url} with 3 workers"
        for pid in own.values():
            os.kill(pid, signal.SIGKILL)
        await running.logs("worker ended", 3)
        await holds(lambda: accepts(running.url))


async def test_two_workers_are_one_proxy(tmp_path: Path) -> None:
    """The same two all the time: they are counted as one, reload as one, and nobody else gets their port."""
    async with workers(settings(LOOP), tmp_path) as running:
        await metrics_are_the_sum(running)
        await a_reload_is_everybodys(running, tmp_path)
        await a_port_of_workers_is_taken(running, tmp_path)


async def metrics_are_the_sum(running: Process) -> None:
    """Whichever worker is asked; and they do not fall when one dies, nor when its successor begins at nought."""

    async def count() -> float:
        return value((await get(running.url, "/metrics"))[1], "mana_llm_requests_total", **SERVED) or 0

    async def counts(number: int) -> bool:
        return await count() == number

    for _ in range(40):
        assert (await chat(running.url))[0] == 200
    await holds(lambda: counts(40))
    assert {await count() for _ in range(10)} == {40}
    text = (await get(running.url, "/metrics"))[1]
    assert samples(text)
    assert value(text, "mana_llm_worker_up", worker="2") == 1
    os.kill((await pids(running.url))["1"], signal.SIGKILL)
    await running.logs("worker ended")
    assert {await count() for _ in range(10)} == {40}
    await running.logs('"started","worker":1', 2)
    for _ in range(10):
        await chat(running.url)
    await holds(lambda: counts(50))
    text = (await get(running.url, "/metrics"))[1]
    assert value(text, "mana_llm_worker_restarts_total") == 1
    os.kill((await pids(running.url))["2"], signal.SIGTERM)  # one alone may be told to go, too
    await running.logs('"started","worker":2', 2)
    await holds(lambda: counts(50))


async def test_what_becomes_of_streams(tmp_path: Path) -> None:
    """Over the same two workers: one is killed, one is told to go, and at last all are hurried."""
    async with upstream(each(endless)) as gpu:
        config = settings({"gpu": openai(gpu.url), **LOOP}, ["gpu/m"])
        async with workers(config, tmp_path) as running:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0)) as client:
                await one_that_is_killed_costs_its_own_streams_only(running, gpu, client)
                gpu.go.clear()
                await one_that_is_told_to_go_hands_on_what_comes(running, gpu, client)
                gpu.go.clear()
                await a_second_signal_hurries_all(running, client)


async def one_that_is_killed_costs_its_own_streams_only(
    running: Process, gpu: Upstream, client: aiohttp.ClientSession
) -> None:
    """The others' go on to their end, and another takes its place at once."""
    streams = [await stream(client, running.url) for _ in range(20)]
    assert (await health(running.url))["providers"]["gpu"]["in_flight"] == 20
    os.kill((await pids(running.url))["1"], signal.SIGKILL)
    await running.logs('"started","worker":1', 2)
    gpu.go.set()
    ends = await asyncio.gather(*(each_one.read() for each_one in streams), return_exceptions=True)
    whole = [end for end in ends if isinstance(end, bytes) and end.endswith(b"data: [DONE]\n\n")]
    assert 0 < len(whole) < 20
    assert all(isinstance(end, aiohttp.ClientError) for end in ends if end not in whole)
    [line] = lines(running, "worker ended")
    assert (line["worker"], line["how"]) == (1, "SIGKILL")


async def one_that_is_told_to_go_hands_on_what_comes(
    running: Process, gpu: Upstream, client: aiohttp.ClientSession
) -> None:
    """While it drains nobody waits for it; its streams end well, and another takes its place."""
    streams = [await stream(client, running.url) for _ in range(16)]
    os.kill((await pids(running.url))["1"], signal.SIGTERM)

    async def leaves() -> bool:
        return bool((await health(running.url))["workers"]["1"]["status"] == "leaving")

    await holds(leaves)
    for _ in range(10):
        assert (await chat(running.url, model="loop/echo"))[0] == 200
    gpu.go.set()
    for each_one in streams:
        assert (await each_one.read()).endswith(b"data: [DONE]\n\n")
    await running.logs('"started","worker":1', 3)
    assert len(lines(running, "worker ended")) == 1  # the one that was killed


async def a_second_signal_hurries_all(running: Process, client: aiohttp.ClientSession) -> None:
    """Their streams end with an error event."""
    streams = [await stream(client, running.url) for _ in range(4)]
    drained = sum('"draining"' in line for line in running.output)
    os.kill(running.pid, signal.SIGTERM)
    await running.logs('"draining"', drained + 3)
    os.kill(running.pid, signal.SIGTERM)
    # all at once: aiohttp forgets what it has buffered once the broken end has come
    for rest in await asyncio.gather(*(everything(each_one) for each_one in streams)):
        assert b'"shutting_down"' in rest
    for each_one in streams:
        each_one.close()
    assert await asyncio.wait_for(running.child.wait(), 40) == 0


async def test_one_that_is_killed_refuses_no_connection(tmp_path: Path) -> None:
    """Those that wait for it find the next in its place, as long as it does not die again and again."""
    async with workers(settings(LOOP), tmp_path) as running:
        for number in range(3):
            os.kill((await pids(running.url))["1"], signal.SIGKILL)
            for _ in range(8):
                assert (await chat(running.url))[0] == 200
            await running.logs('"started","worker":1', number + 2)


async def test_one_finds_a_dead_target_for_all(tmp_path: Path) -> None:
    """It is asked once in all before it has rested; found well again by one, all use it. One line each."""
    bad, rest = True, 1.0
    asked: list[float] = []

    async def moody(connection: Connection, seen: Seen) -> None:
        asked.append(time.monotonic())
        await (status("502 Bad Gateway") if bad else answers)(connection, seen)

    async def target_is(word: str) -> bool:
        targets = (await health(running.url))["providers"]["gpu"].get("targets", {})
        return bool(targets.get("m", {"status": "healthy"})["status"] == word)

    async with upstream(each(moody)) as gpu, upstream(each(answers)) as spare:
        config = settings(
            {"gpu": openai(gpu.url), "spare": openai(spare.url)}, health={"failure_threshold": 1, "backoff": rest}
        )
        async with workers(config, tmp_path, 4) as running:
            assert "spare/m" in (await chat(running.url))[1]
            await holds(lambda: target_is("unhealthy"))
            for _ in range(30):
                assert "spare/m" in (await chat(running.url))[1]
            # uvloop's clock counts whole milliseconds; on a machine so busy that it has rested, each worker tries it
            assert all(later - asked[0] > rest - 0.01 for later in asked[1:])
            bad = False

            async def serves() -> bool:
                return '"gpu/m"' in (await chat(running.url))[1]

            await holds(serves)
            await holds(lambda: target_is("healthy"))
            assert len(lines(running, "health", now="unhealthy")) == 1
            assert len(lines(running, "health", now="healthy")) == 1
            await gpu.stop()
            await spare.stop()

            async def are_down() -> bool:
                await chat(running.url)
                return (await get(running.url, "/v1/health"))[0] == 503

            await holds(are_down)


async def test_a_new_worker_knows_what_the_others_know(tmp_path: Path) -> None:
    """It need not find out again."""
    async with upstream(each(status("502 Bad Gateway"))) as gpu, upstream(each(answers)) as spare:
        config = settings({"gpu": openai(gpu.url), "spare": openai(spare.url)}, health={"failure_threshold": 1})
        async with workers(config, tmp_path) as running:
            await chat(running.url)
            for number, pid in (await pids(running.url)).items():
                os.kill(pid, signal.SIGKILL)
                await running.logs(f'"started","worker":{number}', 2)
            for _ in range(20):
                assert "spare/m" in (await chat(running.url))[1]
            assert len(gpu.posts) == 1


async def a_reload_is_everybodys(running: Process, folder: Path) -> None:
    """One line; a mistake is reported once and changes nothing, also for a worker that begins after it."""
    path = folder / "proxy.yaml"
    config = settings(LOOP)

    async def chains() -> set[str]:
        told = [json.loads((await get(running.url, "/v1/aliases"))[1]) for _ in range(20)]
        return {one["aliases"][0]["chain"][0] for one in told}

    started = len(lines(running, "started", worker=1))
    config["aliases"]["mana/test"] = {"chain": ["loop/other"]}
    path.write_text(yaml.safe_dump(config))
    os.kill(running.pid, signal.SIGHUP)
    await running.logs('"reloaded"')
    assert await chains() == {"loop/other"}
    path.write_text("oops: 1")
    os.kill(running.pid, signal.SIGHUP)
    await running.logs("oops: unknown key")
    os.kill((await pids(running.url))["1"], signal.SIGKILL)
    await running.logs('"started","worker":1', started + 1)
    assert await chains() == {"loop/other"}
    text = (await get(running.url, "/metrics"))[1]
    assert value(text, "mana_llm_reloads_total", result="success") == 1
    assert value(text, "mana_llm_reloads_total", result="failure") == 1
    assert len(lines(running, "reloaded")) == 1
    assert sum("reload refused" in line for line in running.output) == 1


@pytest.mark.parametrize("group", [False, True])
async def test_a_drain_lets_the_answers_of_all_end(tmp_path: Path, group: bool) -> None:
    """No new connection, and exit code 0. A terminal's Ctrl-C reaches every process, and is no second one."""
    async with upstream(each(endless)) as gpu, workers(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0)) as client:
            streams = [await stream(client, running.url) for _ in range(8)]
            everybody = [running.pid, *(await pids(running.url)).values()]
            for pid in everybody if group else everybody[:1]:
                os.kill(pid, signal.SIGINT if group else signal.SIGTERM)
            await running.logs('"draining"', 3)

            async def refuses() -> bool:
                return not await accepts(running.url)

            await holds(refuses)
            gpu.go.set()
            for each_one in streams:
                assert (await each_one.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(running.child.wait(), 40) == 0


async def test_a_worker_that_dies_in_a_drain_shows_in_the_exit_code(tmp_path: Path) -> None:
    """1, and nobody is started in its place."""
    async with upstream(each(endless)) as gpu, workers(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0)) as client:
            streams = [await stream(client, running.url) for _ in range(8)]
            own = await pids(running.url)
            os.kill(running.pid, signal.SIGTERM)
            await running.logs('"draining"', 3)
            os.kill(own["1"], signal.SIGKILL)
            await running.logs("worker ended")
            gpu.go.set()
            await asyncio.gather(*(each_one.read() for each_one in streams), return_exceptions=True)
        assert await asyncio.wait_for(running.child.wait(), 40) == 1
        assert len(lines(running, "started", worker=1)) == 1


async def test_without_their_supervisor_workers_drain(tmp_path: Path) -> None:
    """Nobody would start another: streams end well, nothing listens, no process stays."""
    async with upstream(each(endless)) as gpu, workers(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        async with aiohttp.ClientSession() as client:
            begun = await stream(client, running.url)
            os.kill(running.pid, signal.SIGKILL)
            await running.logs('"draining"', 2)
            gpu.go.set()
            assert (await begun.read()).endswith(b"data: [DONE]\n\n")
        await running.logs('"stopped"', 2)

        async def refuses() -> bool:
            return not await accepts(running.url)

        await holds(refuses)


async def a_port_of_workers_is_taken(running: Process, folder: Path) -> None:
    """78 and one line, as ever, though workers share it among themselves."""
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(settings(LOOP)))
    port = running.url.rpartition(":")[2]
    code, output = await run("serve", "--config", str(path), "--port", port, "--workers", "2")
    assert (code, output.count("\n")) == (78, 1)
    assert f"127.0.0.1:{port}" in output


async def test_a_mistake_starts_no_worker(tmp_path: Path) -> None:
    """In the configuration: 78, told once. In their number: 2."""
    path = tmp_path / "other.yaml"
    path.write_text("oops: 1")
    code, output = await run("serve", "--config", str(path), "--workers", "2")
    assert (code, output.count("unknown key")) == (78, 1)
    for wrong in ("0", "-1", "many", "1000"):
        assert (await run("serve", "--workers", wrong))[0] == 2


async def test_workers_share_a_unix_socket(tmp_path: Path) -> None:
    """One path for all; it outlives any of them."""
    path = str(tmp_path / "proxy.sock")
    config = settings(LOOP, listen={"unix": path})
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
    command = ("serve", "--workers", "2", "--config", str(tmp_path / "proxy.yaml"))
    environ = {name: text for name, text in os.environ.items() if name != "JOURNAL_STREAM"}
    child = await start(*command, environ=environ, stderr=DEVNULL)
    try:
        assert child.stdout is not None
        async with asyncio.timeout(20):
            while "curl" not in (line := (await child.stdout.readline()).decode()):
                assert line, "it ended"
        assert f"--unix-socket {path}" in line

        async def ask(where: str) -> dict[str, Any]:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client:
                async with client.get(f"http://proxy{where}") as response:
                    body: dict[str, Any] = await response.json()
                    return body

        first = (await ask("/v1/health"))["workers"]
        os.kill(first["1"]["pid"], signal.SIGKILL)

        async def replaced() -> bool:
            now = (await ask("/v1/health"))["workers"]
            return bool(now["1"]["status"] == "serving" and now["1"]["pid"] != first["1"]["pid"])

        await holds(replaced)
        child.terminate()
        rest = await asyncio.wait_for(child.stdout.read(), 10)
        assert b"curl" not in rest
        assert await asyncio.wait_for(child.wait(), 40) == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_systemd_hears_one_process(tmp_path: Path) -> None:
    """READY when all serve, and again after a reload; pings, also while one hangs; STOPPING."""
    systemd = Systemd(tmp_path)
    environ = systemd.environ | {"WATCHDOG_USEC": "3000000"}  # silent for half of that is too long
    async with workers(settings(LOOP), tmp_path, 2, environ) as running:
        assert "serving 1 aliases, 1 of 1 providers usable" in await systemd.hears("READY=1")
        assert len(lines(running, "started")) == 3
        await systemd.hears("WATCHDOG=1")
        os.kill(running.pid, signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await systemd.hears("RELOADING=1")
        await systemd.hears("READY=1")
        (tmp_path / "proxy.yaml").write_text("oops: 1")
        os.kill(running.pid, signal.SIGHUP)
        await systemd.hears("RELOADING=1")
        assert "reload refused" in await systemd.hears("READY=1")
        await one_that_hangs_is_left_out_and_replaced(running)
        await systemd.hears("WATCHDOG=1")
        os.kill(running.pid, signal.SIGTERM)
        await systemd.hears("STOPPING=1")
        assert await asyncio.wait_for(running.child.wait(), 40) == 0
    systemd.heard.close()


async def one_that_hangs_is_left_out_and_replaced(running: Process) -> None:
    """Asked for all, the others answer without it and name it; then it is ended, and the watchdog never barks."""
    hung = (await pids(running.url))["1"]
    os.kill(hung, signal.SIGSTOP)

    async def asked(path: str) -> list[str]:
        """The answers of those who answer: some connections are the one's that hangs."""
        asking = [asyncio.ensure_future(get(running.url, path)) for _ in range(8)]
        done, late = await asyncio.wait(asking, timeout=1.0)
        for each_one in late:
            each_one.cancel()
        return [each_one.result()[1] for each_one in done if each_one.exception() is None]

    async def left_out() -> bool:
        said = [json.loads(text)["workers"]["1"] for text in await asked("/v1/health")]
        return {"status": "silent", "pid": hung} in said

    async def named() -> bool:
        return 0 in [value(text, "mana_llm_worker_up", worker="1") for text in await asked("/metrics")]

    await asyncio.gather(holds(left_out), holds(named))
    await running.logs("worker ended", seconds=20)
    [line] = lines(running, "worker ended")
    assert line["pid"] == hung
    assert "silent" in line["how"]
    await running.logs('"started","worker":1', 2)
    for _ in range(10):
        assert (await chat(running.url))[0] == 200


async def test_workers_share_systemds_socket(tmp_path: Path) -> None:
    """Descriptor 3 is the supervisor's by its pid; a worker that dies refuses no connection."""
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(settings(LOOP)))
    systemd = Systemd(tmp_path)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environ = {**os.environ, "JOURNAL_STREAM": "1:1", "NOTIFY_SOCKET": systemd.environ["NOTIFY_SOCKET"]}
        command = ("serve", "--config", str(tmp_path / "proxy.yaml"), "--workers", "2")
        child = await start(*command, environ=environ, stdout=DEVNULL, stderr=DEVNULL, listener=listener)
        try:
            await systemd.hears("READY=1")
            for pid in (await pids(url)).values():
                os.kill(pid, signal.SIGKILL)
                for _ in range(5):
                    assert (await chat(url))[0] == 200
            child.terminate()
            assert await asyncio.wait_for(child.wait(), 40) == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    systemd.heard.close()
