"""Two instances of two workers each behind the real nginx, with one Redis: one is killed in mid-load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import frozen

from tests.nginx import EXAMPLE, nginx
from tests.proxy import Process, everything, openai, process, settings
from tests.redis_server import redis_server
from tests.upstreams import DONE, Connection, Seen, answers, chunk, each, upstream

pytestmark = [pytest.mark.built_in, pytest.mark.heavy]


@frozen
class Front:
    """What nginx looks for first."""

    port: int


async def talks(connection: Connection, seen: Seen) -> None:
    """A stream waits for the test between its words."""
    if not seen.json.get("stream"):
        await answers(connection, seen)
        return
    await connection.head()
    await connection.chunk(chunk("one"))
    await connection.upstream.go.wait()
    await connection.chunk(chunk("two") + chunk(finish="stop") + DONE)
    await connection.end()


async def workers(running: Process, client: aiohttp.ClientSession) -> list[int]:
    """The processes that serve."""
    async with client.get(running.url + "/v1/health") as response:
        return [worker["pid"] for worker in (await response.json())["workers"].values()]


async def test_one_is_killed_in_mid_load(tmp_path: Path) -> None:
    """It takes its own streams along; every other request is answered, and conversations go on at the other."""
    folders = [tmp_path / name for name in ("one", "two", "nginx")]
    for folder in folders:
        os.mkdir(folder)
    with redis_server(tmp_path) as server:
        async with upstream(each(talks)) as up, aiohttp.ClientSession() as client:
            config = settings({"up": openai(up.url)}, state=server.url)
            config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
            two = ("--workers", "2")
            async with (
                process(config, folders[0], None, *two) as one,
                process(config, folders[1], None, *two) as other,
            ):
                ports = [int(each_.url.rpartition(":")[2]) for each_ in (one, other)]
                site = re.sub(
                    r"server 127\.0\.0\.1:3025[^;]*;",
                    f"server 127.0.0.1:3025 max_fails=0; server 127.0.0.1:{ports[1]} max_fails=0;",
                    EXAMPLE.read_text(),
                ).replace("proxy_next_upstream off", "proxy_next_upstream error")
                async with nginx(Front(ports[0]), folders[2], site) as url:

                    async def post(path: str, **body: Any) -> tuple[int, Any]:
                        async with client.post(url + path, json=body) as response:
                            is_ours = response.content_type == "application/json"  # nginx says its own in HTML
                            return response.status, await response.json() if is_ours else None

                    async def stream(n: int) -> bytes:
                        body = {"model": "mana/test", "stream": True, "messages": [{"role": "user", "content": str(n)}]}
                        async with client.post(url + "/v1/chat/completions", json=body) as response:
                            return await everything(response)

                    status, first = await post("/v1/responses", model="up/m", input="a", store=True)
                    assert status == 200
                    streams = [asyncio.ensure_future(stream(n)) for n in range(20)]
                    asked: list[int] = []
                    ended = asyncio.Event()

                    async def asks(n: int) -> None:
                        while not ended.is_set():
                            words = [{"role": "user", "content": f"{n} {len(asked) % 5}"}]
                            asked.append((await post("/v1/chat/completions", model="up/m", messages=words))[0])

                    asking = [asyncio.ensure_future(asks(n)) for n in range(4)]
                    async with asyncio.timeout(10):
                        while sum(bool(seen.json.get("stream")) for seen in up.posts) < 20 or len(asked) < 100:
                            await asyncio.sleep(0.01)
                    before = len(asked)
                    for pid in (one.pid, *(await workers(one, client))):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    async with asyncio.timeout(10):
                        while len(asked) < before + 200:
                            await asyncio.sleep(0.01)
                    ended.set()
                    await asyncio.gather(*asking, return_exceptions=True)
                    lost = [status for status in asked if status != 200]
                    assert len(lost) <= 8, f"at most those in flight, and one for each idle connection to it: {lost}"
                    assert set(asked[-100:]) == {200}
                    up.go.set()
                    whole = [DONE in body for body in await asyncio.gather(*streams)]
                    assert 0 < sum(whole) < 20, "those of the other go on"
                    status, _ = await post("/v1/responses", model="up/m", input="b", previous_response_id=first["id"])
                    assert status == 200
