"""DNS: a name that is not there, a resolver that hangs, and what it means for everybody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from manallm_proxy.http_client import pool
from manallm_proxy.http_client.api import Address
from tests.faults.before import LIMIT
from tests.faults.dialects import DIALECTS
from tests.faults.matrix import turns
from tests.faults.scene import ask
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, status, upstream
from tests.waiting import until

LONGEST = 20.0
"""Seconds that a look-up hangs if the test forgets it."""


@define(eq=False)
class Names:
    """What the resolver answers for names below ``.test``: an address, nothing, or never."""

    known: set[str] = field(factory=set)
    address: str = "127.0.0.1"
    hanging: set[str] = field(factory=set)
    go: threading.Event = field(factory=threading.Event)
    asked: list[str] = field(factory=list)

    def look_up(self, host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not isinstance(name, str) or not name.endswith(".test"):
            return REAL(host, *arguments, **options)
        self.asked.append(name)
        if name in self.hanging:
            self.go.wait(LONGEST)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return REAL(self.address, *arguments, **options)


REAL = socket.getaddrinfo


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.look_up)
    yield made
    made.go.set()


@pytest.mark.parametrize(("kind", "connection"), turns(DIALECTS))
async def test_a_name_that_fails_and_recovers(tmp_path: Path, names: Names, kind: str) -> None:
    """Fallback at once; when the name is there again, so is the provider, within a probe or its backoff."""
    async with upstream(each(DIALECTS[kind].good)) as gpu, upstream(each(answers)) as good:
        providers = {"bad": DIALECTS[kind].config(f"http://gpu.test:{gpu.port}"), "good": openai(good.url)}
        health = {"probe_interval": 0.3, "probe_timeout": 5, "backoff": 0.3}
        async with proxy(settings(providers, health=health), tmp_path) as p:
            reply = await ask(p, "chat")
            assert (reply.status, reply.resolved) == (200, "good/m")
            assert '"detail":"dns"' in p.log.getvalue()
            assert '"level":"error"' not in p.log.getvalue(), "a name that is not there is no fault of ours"
            names.known.add("gpu.test")
            async with asyncio.timeout(5):
                while (await ask(p, "chat")).resolved != "bad/m":
                    await asyncio.sleep(0.05)


@pytest.mark.built_in
async def test_a_name_is_looked_up_now_and_then(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each connection; but again before long, since it may have another address by then."""
    names.known.add("gpu.test")
    async with upstream(each(status("200 OK", extra="Connection: close\r\n"))) as gpu:
        connections = pool.Pool(Address("gpu", f"http://gpu.test:{gpu.port}"))

        async def looked_up() -> int:
            response = await connections.request("POST", "x", request_id=None, body=b"{}", connect=1)
            response.close()
            return len(names.asked)

        assert [await looked_up() for _ in range(3)] == [1, 1, 1]
        monkeypatch.setattr(pool, "DNS_TTL", 0.0)
        assert [await looked_up() for _ in range(2)] == [2, 3]
        assert len(gpu.connections) == 5
        await connections.close()


@pytest.mark.built_in  # aiohttp's client, which only forward proxies need, keeps it for ten seconds
async def test_a_name_that_moves_is_looked_up_again(tmp_path: Path, names: Names) -> None:
    """Once nobody is at the address that was known: the next request goes to the new one."""
    names.known.add("gpu.test")
    names.address = "127.0.0.2"
    async with upstream(each(answers)) as gpu:
        config = settings({"gpu": openai(f"http://gpu.test:{gpu.port}")}, health={"failure_threshold": 9})
        async with proxy(config, tmp_path) as p:
            assert (await ask(p, "chat")).status == 503
            names.address = "127.0.0.1"
            assert (await ask(p, "chat")).status == 200


async def test_a_resolver_that_hangs_costs_connect(tmp_path: Path, names: Names) -> None:
    """Not 30 s: it belongs to connecting."""
    names.hanging.add("gpu.test")
    async with upstream(each(answers)) as good:
        providers = {"bad": openai("http://gpu.test:1", timeouts={"connect": LIMIT}), "good": openai(good.url)}
        async with proxy(settings(providers, health={"probe_timeout": LIMIT}), tmp_path) as p:
            reply = await ask(p, "chat")
            assert (reply.status, reply.resolved, reply.attempts) == (200, "good/m", 2)
            assert LIMIT - 0.05 <= reply.seconds <= LIMIT + 1
            assert '"reason":"connect_timeout"' in p.log.getvalue()
            names.go.set()


async def test_twenty_names_that_hang_leave_the_others_alone(tmp_path: Path, names: Names) -> None:
    """A provider whose name can be looked up is reached while twenty others cannot."""
    names.known.add("good.test")
    names.hanging |= {f"gpu{n}.test" for n in range(20)}
    async with upstream(each(answers)) as good:
        off = {f"gpu{n}": openai(f"http://gpu{n}.test:1", timeouts={"connect": 9}) for n in range(20)}
        config = settings({**off, "good": openai(f"http://good.test:{good.port}")}, health={"probe_timeout": 0.1})
        async with proxy(config, tmp_path) as p:
            hanging = [asyncio.ensure_future(ask(p, "chat", f"gpu{n}/m")) for n in range(20)]
            started = asyncio.get_running_loop().time()
            await until(lambda: len(set(names.asked)) >= 4)
            reply = await ask(p, "chat", "good/m")
            assert reply.status == 200
            assert asyncio.get_running_loop().time() - started < 5
            names.go.set()
            await asyncio.gather(*hanging)
