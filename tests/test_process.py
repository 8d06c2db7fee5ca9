"""The real process: signals, drain, reload, exit codes, notifications to systemd."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.command import DEVNULL, STDOUT, start
from tests.ports import free_port
from tests.proxy import (
    BIG,
    HI,
    Process,
    accepts,
    alive,
    everything,
    logging_to,
    openai,
    process,
    run,
    settings,
    shell,
    written,
)
from tests.upstreams import DONE, Connection, Seen, answers, chunk, completion, each, endless, upstream
from tests.waiting import until


async def chat(url: str, client: aiohttp.ClientSession, **body: Any) -> tuple[int, Any]:
    async with client.post(f"{url}/v1/chat/completions", json={**HI, **body}) as response:
        return response.status, await response.json()


async def test_it_starts_with_everything_down(tmp_path: Path) -> None:
    """No provider answers: it serves, says so, and tells entry by entry why."""
    config = settings({"gpu": openai("http://127.0.0.1:9"), "cloud": openai("http://127.0.0.1:9", api_key="${NO_KEY}")})
    async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
        code, body = await chat(running.url, client)
        assert (code, len(body["error"]["attempts"])) == (503, 2)
        async with client.get(f"{running.url}/health") as response:
            assert response.status == 200


async def test_it_takes_the_descriptors_that_it_may_have(tmp_path: Path) -> None:
    """The soft limit, which a shell sets low, becomes the hard one."""
    async with process(settings({"loopback": {"kind": "loopback"}}), tmp_path) as running:
        soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        assert soft == hard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_a_drain_lets_answers_end(tmp_path: Path, number: signal.Signals) -> None:
    """Not ready at once; the open stream ends well; no new connection; exit code 0; a line of the log for each turn."""
    async with upstream(each(endless)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{running.url}/v1/chat/completions", json={**HI, "stream": True}) as response:
                assert b"one" in await response.content.readany()
                os.kill(running.pid, number)
                await running.logs("draining")
                async with client.get(f"{running.url}/readyz") as ready:
                    assert (ready.status, ready.headers["Connection"]) == (503, "close")
                async with asyncio.timeout(5):
                    while await accepts(running.url):
                        await asyncio.sleep(0.02)
                gpu.go.set()
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert await asyncio.wait_for(running.child.wait(), 40) == 0
            await running.logs('"event":"stopped"')
        life = [
            word for line in running.output if (word := json.loads(line)["event"]) in ("started", "draining", "stopped")
        ]
        assert life == ["started", "draining", "stopped"]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_signals_that_mean_nothing_end_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """They are ignored in every process; SIGQUIT drains, also where a terminal sends it to all of them."""
    config = settings({"loopback": {"kind": "loopback"}})
    async with process(config, tmp_path, None, *arguments) as running:
        children = _children(running.pid)
        for pid in (running.pid, *children):
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
                os.kill(pid, number)
        os.kill(running.pid, signal.SIGHUP)
        await running.logs("reload")
        assert await accepts(running.url)
        for pid in (*children, running.pid):
            os.kill(pid, signal.SIGQUIT)
        assert await asyncio.wait_for(running.child.wait(), 40) == 0


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
async def test_a_second_start_leaves_the_first_alone(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """On the unix socket of a proxy that lives: exit code 78, and who connects still reaches the first."""
    path = tmp_path / "s"
    config = settings({"loopback": {"kind": "loopback"}}) | {"listen": {"unix": str(path)}}
    (tmp_path / "proxy.yaml").write_text(written(config))
    command = ("serve", "--config", str(tmp_path / "proxy.yaml"), *workers)
    first = await start(*command, environ=os.environ, stdout=DEVNULL, stderr=DEVNULL)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client:
            await until(path.exists, 10)
            code, told = await run(*command)
            assert (code, f"{path} is in use" in told) == (78, True)
            async with client.get("http://x/health", headers={"Host": "localhost"}) as response:
                assert response.status == 200
    finally:
        first.kill()
        await first.wait()


async def test_a_drain_waits_for_a_whole_answer_too(tmp_path: Path) -> None:
    """SIGTERM while a client reads a big answer slowly: it gets the last byte, and then the process ends."""

    async def huge(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("x" * BIG))

    async with upstream(each(huge)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{running.url}/v1/chat/completions", json=HI) as response:
                os.kill(running.pid, signal.SIGTERM)
                await running.logs("draining")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(running.child.wait(), 0.5)
                assert len(await response.read()) == response.content_length
        assert await asyncio.wait_for(running.child.wait(), 40) == 0


async def test_every_event_comes_once_and_in_order(tmp_path: Path) -> None:
    """As fast as the provider can, to a slow client: on uvloop, which reads several packets in one turn."""
    sizes = (10, 3_000, 90_000)

    def many(size: int) -> int:
        return BIG // 2 // (size + 300)  # more than the kernel's buffers hold

    async def counts(connection: Connection, seen: Seen) -> None:
        size = int(seen.json["user"])
        await connection.head()
        for at in range(many(size)):
            await connection.chunk(chunk(f"{at}:" + "x" * size))
        await connection.chunk(DONE)
        await connection.end()

    async with upstream(each(counts)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        for size in sizes:
            body = await read_slowly(running, json.dumps({**HI, "stream": True, "user": str(size)}).encode())
            rows = [json.loads(row[6:]) for row in body.split(b"\n\n")[:-2]]
            assert body.endswith(DONE)
            told = [int(row["choices"][0]["delta"]["content"].partition(":")[0]) for row in rows]
            assert told == list(range(many(size)))


async def read_slowly(running: Process, asked: bytes) -> bytes:
    """The body of an answer, taken a little at a time out of a small buffer."""
    parts: list[bytes] = []
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(asked), asked)
        )
        slow.setblocking(False)
        while part := await asyncio.get_running_loop().sock_recv(slow, 500_000):
            parts.append(part)
            await asyncio.sleep(0.001)
    return b"".join(parts).partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("hurried", [True, False])
async def test_a_stream_that_outlasts_the_drain_gets_an_error_event(tmp_path: Path, hurried: bool) -> None:
    """An endless stream gets an error event, never a silent end: at the limit, or at a second signal."""
    config = settings({"gpu": openai(gpu_url := "http://127.0.0.1:9")}, limits={"drain": 30 if hurried else 0.3})
    async with upstream(each(endless)) as gpu:
        config["providers"]["gpu"]["base_url"] = f"{gpu.url}/v1"
        assert gpu_url != gpu.url
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            async with client.post(f"{running.url}/v1/chat/completions", json={**HI, "stream": True}) as response:
                await response.content.readany()
                started = asyncio.get_running_loop().time()
                os.kill(running.pid, signal.SIGTERM)
                await running.logs("draining")
                if hurried:
                    os.kill(running.pid, signal.SIGTERM)
                rest = await everything(response)
                assert b'"shutting_down"' in rest
                assert b"[DONE]" not in rest
            assert await asyncio.wait_for(running.child.wait(), 40) == 0
            assert asyncio.get_running_loop().time() - started < 25
            await asyncio.wait_for(gpu.connections[-1].closed.wait(), 1)


async def test_a_reload_swaps_everything_as_one(tmp_path: Path) -> None:
    """SIGHUP: the new chain serves, health survives; a stream that began before goes on; a mistake changes nothing."""
    async with upstream(each(endless)) as slow, upstream(each(answers)) as gpu:
        config = settings({"slow": openai(slow.url)})
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            payload = {**HI, "stream": True}
            async with client.post(f"{running.url}/v1/chat/completions", json=payload) as response:
                assert b"one" in await response.content.readany()

                path = tmp_path / "proxy.yaml"
                path.write_text(yaml.safe_dump({**settings({"gpu": openai(gpu.url)}), "oops": 1}))
                os.kill(running.pid, signal.SIGHUP)
                await running.logs("oops: unknown key")

                path.write_text(yaml.safe_dump(settings({"gpu": openai(gpu.url)})))
                os.kill(running.pid, signal.SIGHUP)
                async with asyncio.timeout(5):
                    while (got := (await aliases(running, client))[0]["chain"]) != ["gpu/m"]:
                        assert got == ["slow/m"]
                assert (await chat(running.url, client))[1]["model"] == "gpu/m"

                slow.go.set()
                assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def aliases(running: Process, client: aiohttp.ClientSession) -> list[dict[str, Any]]:
    async with client.get(f"{running.url}/v1/aliases") as response:
        rows: list[dict[str, Any]] = (await response.json())["aliases"]
        return rows


async def test_health_survives_a_reload(tmp_path: Path) -> None:
    """An unchanged provider stays unhealthy; one that changed begins anew."""
    async with upstream(each(answers)) as gpu:
        config = settings({"dead": openai("http://127.0.0.1:9"), "gpu": openai(gpu.url)})
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            await chat(running.url, client)
            assert (await status_of(running, client, "dead")) == "unhealthy"
            config["aliases"]["mana/more"] = {"chain": ["gpu/m"]}
            (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
            os.kill(running.pid, signal.SIGHUP)
            async with asyncio.timeout(5):
                while len(await aliases(running, client)) < 2:
                    await asyncio.sleep(0.005)
            assert (await status_of(running, client, "dead")) == "unhealthy"


async def status_of(running: Process, client: aiohttp.ClientSession, provider: str) -> str:
    async with client.get(f"{running.url}/v1/health") as response:
        said: str = (await response.json())["providers"][provider]["status"]
        return said


async def test_systemd_hears_the_life_of_the_process(tmp_path: Path) -> None:
    """READY once it listens, WATCHDOG from the loop, RELOADING and READY again, STOPPING."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.setblocking(False)
    loop = asyncio.get_running_loop()

    async def next_with(word: str) -> str:
        async with asyncio.timeout(5):
            while word not in (message := (await loop.sock_recv(heard, 4096)).decode()):
                pass
        return message

    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    async with process(settings({"gpu": openai("http://127.0.0.1:9")}), tmp_path, environ) as running:
        await next_with("READY=1")
        await next_with("WATCHDOG=1")
        await next_with("WATCHDOG=1")
        os.kill(running.pid, signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await next_with("RELOADING=1")
        await next_with("READY=1")
        os.kill(running.pid, signal.SIGTERM)
        await next_with("STOPPING=1")
        assert await asyncio.wait_for(running.child.wait(), 40) == 0
    heard.close()


async def test_a_mistake_never_starts_a_half_configured_proxy(tmp_path: Path) -> None:
    """All mistakes at once, exit code 78, nothing listens."""
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"groq": openai("http://127.0.0.1:9")}, ["gorq/m"], oops=1)))
    code, output = await run("serve", "--config", str(path))
    assert code == 78
    assert "oops: unknown key" in output
    assert "aliases.mana/test.chain[0]: no provider 'gorq' (did you mean 'groq'?)" in output
    assert (await run("check", "--config", str(path)))[0] == 78


async def test_a_taken_port_is_a_configuration_mistake(tmp_path: Path) -> None:
    """Exit code 78 and one line that names the address: systemd does not restart on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path = tmp_path / "proxy.yaml"
        path.write_text(yaml.safe_dump(settings({"gpu": openai("http://127.0.0.1:9")})))
        port = str(taken.getsockname()[1])
        code, output = await run("serve", "--config", str(path), "--port", port)
    assert code == 78
    assert f"127.0.0.1:{port}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
async def test_a_socket_that_was_announced_but_not_passed_is_refused(tmp_path: Path, workers: tuple[str, ...]) -> None:
    """Exit code 78 and one line. With workers one of our own had the number, and each worker died, again and again."""
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"here": {"kind": "loopback"}})))
    child = await start(
        *("serve", "--config", str(path), *workers),
        environ=os.environ,
        stderr=STDOUT,
        surroundings={"announced": True},
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), 40)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 78
    [said] = out.decode().splitlines()
    assert said.startswith("LISTEN_FDS=1: descriptor 3 is not a socket that accepts connections")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["--help"], 0), ([], 2), (["serve", "--port", "x"], 2)]
)
async def test_exit_codes(arguments: list[str], code: int) -> None:
    """0 fine, 2 usage."""
    assert (await run(*arguments))[0] == code


async def test_check_live_names_the_models_that_are_missing(tmp_path: Path) -> None:
    """Exit code 1 where a chain entry names a model that its provider does not list."""
    async with upstream(each(answers), ["here"]) as gpu:
        path = tmp_path / "proxy.yaml"
        path.write_text(yaml.safe_dump(settings({"gpu": openai(gpu.url)}, ["gpu/here", "gpu/gone"])))
        code, output = await run("check", "--live", "--config", str(path))
    assert code == 1
    assert "aliases.mana/test.chain[1]: gpu does not list a model 'gone'" in output
    assert "chain[0]" not in output


async def test_check_live_knows_a_model_by_each_of_its_names(tmp_path: Path) -> None:
    """A path on the server, its file, an alias, a name without its tag: whatever a request may use is listed."""
    rows = [
        {"id": "/models/Smol-135M.gguf", "aliases": ["smol", "tiny"]},
        {"id": "org/m", "aliases": None},
        {"id": "tagged:latest"},
    ]

    async def lists(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply({"object": "list", "data": rows})

    names = (
        "/models/Smol-135M.gguf",
        "Smol-135M.gguf",
        "smol-135m",
        "smol",
        "tiny",
        "org/m",
        "tagged",
        "tagged:latest",
    )
    async with upstream(lists) as gpu:
        path = tmp_path / "proxy.yaml"
        chain = [f"gpu/{name}" for name in (*names, "gone")]
        path.write_text(yaml.safe_dump(settings({"gpu": openai(gpu.url)}, chain)))
        code, output = await run("check", "--live", "--config", str(path))
    assert code == 1
    assert f"chain[{len(names)}]: gpu does not list a model 'gone'" in output
    assert output.count("does not list") == 1


async def test_check_live_asks_google(tmp_path: Path) -> None:
    """Nobody probes it, so this is where its list of models is read; a model goes by both of its names."""

    async def models(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply({"models": [{"name": "models/here"}]})

    async with upstream(models) as gemini:
        path = tmp_path / "proxy.yaml"
        google = {"kind": "google", "base_url": gemini.url, "api_key": "AIzaNotARealKey"}
        chain = ["google/here", "google/models/here", "google/gone"]
        path.write_text(yaml.safe_dump(settings({"google": google}, chain)))
        code, output = await run("check", "--live", "--config", str(path))
    assert code == 1
    assert "aliases.mana/test.chain[2]: google does not list a model 'gone'" in output
    assert "chain[0]" not in output and "chain[1]" not in output and "providers.google: alive" in output


async def test_check_live_compares_the_vectors_of_an_alias(tmp_path: Path) -> None:
    """One embedding each: lengths that differ are the operator's mistake, and only the operator can mend it."""

    async def three(connection: Connection, seen: Seen) -> None:
        rows = [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0, 0.0]}]
        await connection.reply({"object": "list", "data": rows, "model": "m"})

    async with upstream(each(answers), ["m"]) as one, upstream(each(three), ["m"]) as two:
        path = tmp_path / "proxy.yaml"
        config = settings({"one": openai(one.url), "two": openai(two.url)})
        config["aliases"]["mana/embed"] = {"chain": ["one/m", "two/m"]}
        path.write_text(yaml.safe_dump(config))
        code, output = await run("check", "--live", "--config", str(path))
    assert code == 1
    assert "one/m gives 2, two/m gives 3" in output
    assert output.count("different length") == 1


async def test_models_lists_what_a_running_proxy_serves(tmp_path: Path) -> None:
    """One name a line; exit code 1 and one line where nobody answers."""
    async with upstream(each(answers), ["m"]) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        code, output = await run("models", "--url", running.url)
        assert (code, output.split()) == (0, ["mana/test", "gpu/m"])
    code, output = await run("models", "--url", "http://127.0.0.1:9")
    assert (code, output.count("\n")) == (1, 1)


async def test_a_fresh_key_opens_the_proxy(tmp_path: Path) -> None:
    """hash-key prints a key and the entry that lets it in; `models` takes it from the environment, and says so."""
    code, output = await run("hash-key", "alice")
    assert code == 0
    [key] = re.findall(r"^  (sk-mana-[A-Za-z0-9_-]{43})$", output, re.MULTILINE)
    assert output.count(key) == 1
    entry = yaml.safe_load(output[output.index("\nauth:") :])
    assert entry["auth"]["keys"][0]["name"] == "alice"
    async with process({**settings({"l": {"kind": "loopback"}}), **entry}, tmp_path) as running:
        code, output = await run("models", "--url", running.url, environ={"MANALLM_API_KEY": f"{key}\n"})
        assert (code, output.split()[0]) == (0, "mana/test")
        for environ in ({}, {"MANALLM_API_KEY": f"{key}x"}):
            code, output = await run("models", "--url", running.url, environ=environ)
            assert (code, output.count("\n"), "MANALLM_API_KEY" in output, key in output) == (1, 1, True, False)
        assert key not in "".join(running.output)


async def test_no_two_fresh_keys_are_the_same() -> None:
    """Without a name there is one to be changed; a name that no key may have is a mistake of usage."""
    (first, one), (second, other) = await asyncio.gather(run("hash-key"), run("hash-key"))
    assert (first, second) == (0, 0)
    assert set(re.findall("sk-mana-.*|sha256.*", one)).isdisjoint(re.findall("sk-mana-.*|sha256.*", other))
    assert "name: someone" in one
    code, output = await run("hash-key", "a b")
    assert (code, output.count("\n")) == (2, 1)


async def test_the_banner_shows_a_newcomer_what_to_try(tmp_path: Path) -> None:
    """Providers, aliases and a curl line that answers, as `make run` prints them."""
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"])))
    environ = {k: v for k, v in os.environ.items() if k != "JOURNAL_STREAM"}
    child = await start("serve", "--config", str(path), environ=environ, stderr=DEVNULL)
    try:
        assert child.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(30):
            while not (lines and "curl" in lines[-1]):
                line = await child.stdout.readline()
                assert line, "it ended"
                lines.append(line.decode())
        shell = await asyncio.create_subprocess_shell(f"{lines[-1].strip()} -s", stdout=asyncio.subprocess.PIPE)
        answer = json.loads((await shell.communicate())[0])
        assert "loopback" in answer["choices"][0]["message"]["content"]
        assert any("mana/test" in line for line in lines)
        assert any("loopback" in line and "healthy" in line for line in lines)
    finally:
        child.kill()
        await child.wait()


@pytest.mark.parametrize("closed", [[0, 1, 2], [0]])
async def test_closed_standard_descriptors_are_opened_on_nothing(tmp_path: Path, closed: list[int]) -> None:
    """Else a listening socket or a provider's connection gets such a number, and is written to as if it were a log."""
    config = settings({"here": {"kind": "loopback"}}, listen={"port": free_port()})
    by_a_shell = shell(tmp_path, config, 'unset JOURNAL_STREAM; exec "$@" <&- >&- 2>&-')
    async with by_a_shell if len(closed) == 3 else logging_to(tmp_path / "log", tmp_path, config, closed=closed) as at:
        child, url = at
        await alive(url)
        async with aiohttp.ClientSession() as client, client.post(f"{url}/v1/chat/completions", json=HI) as response:
            assert response.status == 200
        links = [os.readlink(f"/proc/{child.pid}/fd/{number}") for number in range(3)]
        assert [links[number] for number in closed] == ["/dev/null"] * len(closed)
        assert not any("socket" in link or "eventpoll" in link for link in links)
        if 1 in closed:  # a start screen that nobody can see ends nothing
            child.terminate()
            assert await asyncio.wait_for(child.wait(), 40) == 0
