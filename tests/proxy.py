"""The proxy under test: in this process over real sockets, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from attrs import define

from manallm_proxy.config.load import load
from manallm_proxy.observe.log import Logs
from manallm_proxy.process.app import App
from tests.command import DEVNULL, ROOT, STDOUT, Child, start
from tests.quick_yaml import by_libyaml
from tests.waiting import until

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
"""The shortest chat."""
POST = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"messages":[]}'
"""One as bytes."""
BIG = 12_000_000
"""Bytes: far more than a connection takes of which nobody reads, which is some 4 MiB (tcp(7), tcp_wmem)."""

FAST: dict[str, Any] = {
    "listen": {"port": 0},
    "timeouts": {"connect": 5, "first_byte": 5, "idle": 5},
    "health": {"probe_interval": 600, "probe_timeout": 5},
    "log": {"format": "json", "level": "debug"},
}
"""No probe but the first round, and limits that a loaded machine keeps: tests tell time themselves."""


def settings(providers: dict[str, Any], chain: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """A configuration with one alias, ``mana/test``, over `chain` (else every provider's model ``m``)."""
    chain = chain if chain is not None else [f"{name}/m" for name in providers]
    merged = {**FAST, "providers": providers, "aliases": {"mana/test": {"chain": chain}}, "default": "mana/test"}
    for key, value in more.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


def written(config: dict[str, Any]) -> str:
    """As YAML, by libyaml where it is there: hundreds of configurations are written."""
    return yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def openai(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "base_url": f"{url}/v1", **more}


async def everything(response: aiohttp.ClientResponse) -> bytes:
    """The body as far as it came: a broken stream ends without its last chunk."""
    body = bytearray()
    with contextlib.suppress(aiohttp.ClientPayloadError):
        async for part in response.content.iter_any():
            body += part
    return bytes(body)


@define(eq=False)
class Proxy:
    """A running proxy, and a client of it."""

    app: App
    path: Path
    log: io.StringIO
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.app.addresses[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def write(self, config: dict[str, Any]) -> None:
        self.path.write_text(written(config))

    async def chat(self, **body: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body, headers (lower case) of one chat completion."""
        return await self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], **body})

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any, dict[str, str]]:
        async with self.client.post(self.url + path, json=body, **options) as response:
            return response.status, await response.json(), {k.lower(): v for k, v in response.headers.items()}

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.url + path) as response:
            return response.status, await response.json()

    async def stream(self, **body: Any) -> tuple[int, bytes, dict[str, str]]:
        """Status, all bytes and headers of one streamed chat completion."""
        payload = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **body}
        async with self.client.post(self.url + "/v1/chat/completions", json=payload) as response:
            return response.status, await everything(response), {k.lower(): v for k, v in response.headers.items()}


@asynccontextmanager
async def proxy(config: dict[str, Any], folder: Path, environ: dict[str, str] | None = None) -> AsyncIterator[Proxy]:
    """The whole application on a free port, in this loop; it is drained at the end."""
    path = folder / "proxy.yaml"
    path.write_text(written(config))
    with by_libyaml():
        loaded = load(path, environ or {})
    log = io.StringIO()
    app = App(loaded, environ or {}, Logs.open(loaded.log.level, loaded.log.format, log))
    running = asyncio.ensure_future(app.run())
    await app.ready(running)
    if running.done():
        await running
    async with aiohttp.ClientSession() as client:
        yield Proxy(app, path, log, client)
    app.stop()
    app.stop()
    await asyncio.wait_for(running, 10)


@define(eq=False)
class Process:
    """``python -m manallm_proxy serve`` as a child."""

    child: Child
    url: str
    output: list[str]

    @property
    def pid(self) -> int:
        return self.child.pid

    async def logs(self, text: str, times: int = 1, seconds: float = 20.0) -> None:
        """Returns once it has logged `text` so many times."""
        await until(lambda: sum(text in line for line in self.output) >= times, seconds)


@asynccontextmanager
async def process(
    config: dict[str, Any],
    folder: Path,
    environ: dict[str, str] | None = None,
    *arguments: str,
    program: Path | None = None,
    anew: bool = False,
) -> AsyncIterator[Process]:
    """The real thing, from the log line that tells where it listens; ended at the end, whatever the test did."""
    path = folder / "proxy.yaml"
    path.write_text(written(config))
    child = await start(
        *("serve", "--config", str(path), *arguments),
        environ={**os.environ, "JOURNAL_STREAM": "1:1", **(environ or {})},
        stdout=DEVNULL,
        program=program,
        anew=anew,
    )
    output: list[str] = []
    url = asyncio.get_running_loop().create_future()
    assert child.stderr is not None

    async def collect(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            output.append(line.decode())
            if not url.done() and (match := re.search(r"http://[\d.:]+|unix:[^\s\",]+", output[-1])):
                url.set_result(match[0])
        if not url.done():
            url.set_exception(RuntimeError("".join(output)))

    collecting = asyncio.ensure_future(collect(child.stderr))
    try:
        yield Process(child, await asyncio.wait_for(url, 30), output)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await collecting


async def accepts(url: str) -> bool:
    """Whether a new connection is taken."""
    try:
        async with aiohttp.ClientSession() as late, late.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientConnectorError:
        return False


async def run(
    *arguments: str, environ: dict[str, str] | None = None, program: Path | None = None
) -> tuple[int | None, str]:
    """Exit code and all output of one command."""
    child = await start(*arguments, environ={**os.environ, **(environ or {})}, stderr=STDOUT, program=program)
    output, _ = await asyncio.wait_for(child.communicate(), 40)
    return child.returncode, output.decode()


@asynccontextmanager
async def logging_to(
    log: Path | int,
    folder: Path,
    config: dict[str, Any],
    *arguments: str,
    stdout: int = DEVNULL,
    **surroundings: object,
) -> AsyncIterator[tuple[Child, str]]:
    """The real process, once it is alive, with its log in a file or descriptor: the process, and its URL.

    `surroundings`: see `forkserver.py`.
    """
    (folder / "proxy.yaml").write_text(written(config))
    command = ("serve", "--config", str(folder / "proxy.yaml"), *arguments)
    url = f"http://127.0.0.1:{config['listen']['port']}"
    number = os.dup(log) if isinstance(log, int) else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    environ = {**os.environ, "JOURNAL_STREAM": "1:1"}
    try:
        child = await start(*command, environ=environ, stdout=stdout, stderr=number, surroundings=surroundings)
    finally:
        os.close(number)
    try:
        await alive(url)
        yield child, url
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@asynccontextmanager
async def shell(
    folder: Path, config: dict[str, object], line: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The real process behind a shell `line` in which ``$@`` is its command: the process, and its URL."""
    (folder / "proxy.yaml").write_text(written(config))
    command = [sys.executable, "-m", "manallm_proxy", "serve", "--config", str(folder / "proxy.yaml")]
    environ = {**os.environ, "JOURNAL_STREAM": "1:1", "PYTHONPATH": str(ROOT)}  # it starts in another folder
    child = await asyncio.create_subprocess_exec(
        "sh", "-c", line, "sh", *command, cwd=folder, env=environ, start_new_session=True
    )
    try:
        # `settings` makes a mapping of "listen"; its values are typed as any object
        yield child, f"http://127.0.0.1:{config['listen']['port']}"  # type: ignore[index]  # a mapping of any values
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the shell, and what it has started
        await child.wait()


async def alive(url: str, seconds: float = 40.0) -> None:
    """Returns once /health answers."""
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    assert response.status == 200
                    return
            await asyncio.sleep(0.02)


def resident(pid: int, which: str = "VmRSS") -> float:
    """MiB; ``VmHWM``: the most it ever was."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{which}:")[1].split()[0]) / 1024
