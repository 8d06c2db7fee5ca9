"""State in Redis in all its forms, and what it costs, with its figures printed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from manallm_proxy.contract.events import Event
from manallm_proxy.contract.targets import Target
from manallm_proxy.state.channel import Channel
from manallm_proxy.state.kept import Kept
from manallm_proxy.state.link import BUDGET, Link
from manallm_proxy.state.redis_answers import RedisAnswers
from manallm_proxy.state.redis_client import client_of
from tests.needs import require
from tests.proxy import free_port, openai, process, settings
from tests.redis_server import redis_server
from tests.upstreams import answers, each, upstream
from tests.waiting import until

pytestmark = [pytest.mark.built_in, pytest.mark.heavy]
KEPT = Kept(b"{}", Target("up", "m"))
ROUNDS = 4000


@contextmanager
def redis(*arguments: str) -> Iterator[None]:
    """A server of any kind, until the context is left."""
    child = subprocess.Popen(
        [require("redis-server", "apt install redis-server"), *arguments], stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        child.kill()
        child.wait()


async def works(url: str) -> None:
    """What one keeps the other finds; what one says the other hears."""
    seen: list[Event] = []
    one, other = (RedisAnswers(Link("redis", client_of(url, BUDGET), seen.append)) for _ in range(2))
    heard: list[bytes] = []
    channel = Channel(other.link, "test", heard.append)
    channel.start()

    async def found(n: int) -> bool:
        one.keep(bytes([n]) * 32, KEPT, 60.0)
        await asyncio.sleep(0.1)
        channel.say(b"hey")
        return await other.find(bytes([n]) * 32) is not None

    for n in range(100):  # a cluster or a sentinel takes a while to know itself
        if await found(n) and heard:
            break
    assert heard and other.link.is_well
    await channel.close()
    for each_ in (one, other):
        await each_.close()
        await each_.link.close()


async def test_clusters_sentinels_and_tls(tmp_path: Path) -> None:
    """The forms of an address, each against a real server."""
    cluster, master, sentinel, secure = (str(free_port()) for _ in range(4))
    here = ("--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path))
    with redis("--port", cluster, "--cluster-enabled", "yes", *here):
        slots = ["redis-cli", "-p", cluster, "cluster", "addslotsrange", "0", "16383"]
        await until(lambda: b"OK" in subprocess.run(slots, capture_output=True, check=False).stdout)
        await works(f"redis+cluster://127.0.0.1:{cluster}")
    config = tmp_path / "sentinel.conf"
    watch = f"sentinel monitor main 127.0.0.1 {master} 1\nsentinel auth-pass main pw\n"
    config.write_text(f"port {sentinel}\nbind 127.0.0.1\n{watch}")
    with redis("--port", master, "--requirepass", "pw", *here), redis(str(config), "--sentinel"):
        await works(f"redis+sentinel://:pw@127.0.0.1:{sentinel}/main/1")
    authority = trustme.CA()
    issued, ca = authority.issue_cert("127.0.0.1"), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-auth-clients", "no")
    with redis("--port", "0", "--tls-port", secure, *here, *files, "--tls-ca-cert-file", str(ca)):
        await works(f"rediss://127.0.0.1:{secure}/0?ssl_ca_certs={ca}")


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def figures(config: dict[str, Any], folder: Path, path: str, expected: str | None) -> tuple[float, float]:
    """CPU of one request in microseconds, and the 99th percentile in milliseconds, one after the other."""
    body = {"model": "mana/test", "messages": [{"role": "user", "content": "hello there " * 150}]}
    async with process(config, folder, anew=True) as running, aiohttp.ClientSession() as client:

        async def took() -> float:
            began = time.perf_counter()
            async with client.post(running.url + path, json=body) as response:
                await response.read()
                last.append(response.headers.get("X-Mana-LLM-Cache"))
            return time.perf_counter() - began

        last: list[str | None] = []
        for _ in range(300):
            await took()
        last.clear()
        before = cpu(running.pid)
        times = sorted([await took() for _ in range(ROUNDS)])
        assert set(last) == {expected}
        return (cpu(running.pid) - before) / ROUNDS * 1e6, times[int(ROUNDS * 0.99)] * 1e3


async def test_what_a_hit_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a request that is read and not kept; with the server dead, and without one."""
    chat, count = "/v1/chat/completions", "/v1/messages/count_tokens"
    with redis_server(tmp_path) as server:
        async with upstream(each(answers)) as up:

            def config(ttl: bool, **more: Any) -> dict[str, Any]:
                made = settings({"up": openai(up.url)}, log={"level": "info"}, **more)
                made["aliases"]["mana/test"] |= {"cache": {"ttl": "1h"}} if ttl else {}
                return made

            dead = config(True, state="redis://127.0.0.1:9")
            rows = {
                "read and counted, nobody asked": await figures(config(False), tmp_path, count, None),
                "asked, not kept": await figures(config(False), tmp_path, chat, None),
                "hit in memory": await figures(config(True), tmp_path, chat, "hit"),
                "hit in Redis": await figures(config(True, state=server.url), tmp_path, chat, "hit"),
                "asked, Redis dead": await figures(dead, tmp_path, chat, "miss"),
            }
    with capsys.disabled():
        for name, (microseconds, p99) in rows.items():
            print(f"\n{name}: {microseconds:.0f} us of CPU, p99 {p99:.2f} ms", end="")
        print()
    assert rows["hit in memory"][0] < rows["asked, not kept"][0]
    assert rows["hit in Redis"][0] - rows["hit in memory"][0] < 250
