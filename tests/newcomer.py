"""What a newcomer does: starts it, and runs the command that it prints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.command import STDOUT, Child, start
from tests.ports import free_port
from tests.upstreams import Connection

Script = Callable[[Connection], Awaitable[None]]


def ollama(name: str, says: str) -> Script:
    """As much of Ollama as is needed, with one model."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/api/tags":
                await connection.reply({"models": [{"name": name, "model": name}]})
            elif seen.path == "/api/chat":
                message = {"role": "assistant", "content": says}
                await connection.reply({"model": name, "message": message, "done": True, "done_reason": "stop"})
            else:
                await connection.reply({"error": "not found"}, "404 Not Found")

    return script


@asynccontextmanager
async def started(
    folder: Path,
    environ: dict[str, str],
    *arguments: str,
    command: Sequence[str | Path] = (),
    ends: Container[int | None] = (0,),
    seconds: float = 20,
) -> AsyncIterator[tuple[str, list[str]]]:
    """`serve` with nothing in its environment but `environ`: its address, and what it printed until it was ready.

    `command`: what starts it in place of the tests' own interpreter; ``{port}`` in it is the port.
    """
    port = free_port()
    environ = {"PATH": os.defpath, **environ}
    child: Child
    if command:
        child = await asyncio.create_subprocess_exec(
            *(str(word).replace("{port}", str(port)) for word in (*command, *arguments)),
            cwd=folder,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # without a terminal
        )
    else:
        child = await start("serve", "--port", str(port), *arguments, environ=environ, folder=folder, stderr=STDOUT)
    assert child.stdout is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(seconds):
            while not (said and said[-1].lstrip().startswith("curl")):
                said.append((await child.stdout.readline()).decode())
                assert said[-1], said
        yield f"http://127.0.0.1:{port}", said
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        rest, _ = await child.communicate()
    assert child.returncode in ends, rest
    assert b"Traceback" not in rest


async def answer(said: list[str]) -> tuple[str, str]:
    """Who answers the printed command, and what."""
    shell = await asyncio.create_subprocess_shell(f"{said[-1].strip()} -s", stdout=asyncio.subprocess.PIPE)
    body = json.loads((await shell.communicate())[0])
    return body["model"], body["choices"][0]["message"]["content"]
