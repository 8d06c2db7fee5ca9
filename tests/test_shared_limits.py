"""A key's requests per minute over several instances and a real Redis; by an estimate while that is away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from manallm_proxy.config.keys_model import ClientKey
from manallm_proxy.config.load import load
from manallm_proxy.contract.errors import KeyLimited
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.ratelimit import SPAN, Window
from manallm_proxy.gateway.shared_limits import SharedLimits
from manallm_proxy.process.start_notes import budget_storage, per_worker_limits
from manallm_proxy.state.link import ServerUnavailable
from tests.proxy import Proxy, openai, proxy, settings, written
from tests.redis_server import RedisServer, redis_server
from tests.upstreams import answers, each, upstream
from tests.waiting import until

KEY = "alice-key"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def asked(gate: Proxy) -> tuple[int, str]:
    """Status of one request of the key, and how many are left."""
    headers = {"Authorization": f"Bearer {KEY}"}
    status, _, told = await gate.post("/v1/chat/completions", {"messages": []}, headers=headers)
    return status, told["x-ratelimit-remaining-requests"]


def test_what_passed_elsewhere_is_estimated_where_nobody_can_be_asked() -> None:
    """It is forgotten within a minute, little by little; what passed here is known exactly."""
    window = Window(10)
    window.note(100.0)
    window.learn(7, 100.0)
    assert window.remaining(100.0) == 3
    assert [window.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert 0 < window.next_in(100.0) <= SPAN
    assert window.remaining(100.0 + SPAN / 2) == 3
    window.learn(4, 100.0 + SPAN)
    assert window.remaining(100.0 + SPAN) == 6, "of what passed here none counts any more"
    assert window.remaining(100.0 + 2 * SPAN) == 10


async def test_a_limit_is_one_for_all(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """Exactly, however many ask at once; a refusal says when to come again."""
    key = {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests_per_minute": 10}
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url, auth={"keys": [key]})
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            assert await asked(one) == (200, "9")
            assert await asked(other) == (200, "8")
            told = await asyncio.gather(*(asked(gate) for _ in range(15) for gate in (one, other)))
            assert sorted(status for status, _ in told) == [200] * 8 + [429] * 22
            headers = {"Authorization": f"Bearer {KEY}"}
            async with other.client.post(other.url + "/v1/chat/completions", json={}, headers=headers) as response:
                assert response.status == 429
                assert 50 <= int(response.headers["Retry-After"]) <= 60
            names = redis.names()
            assert [name.startswith(b"manallm:1:{spend}:limit:") for name in names] == [True]
            assert 0 < redis.client().pttl(names[0]) <= 60_000


async def test_without_the_server_each_counts_by_itself(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """By what it knew of the others; a foreign value in the way is removed."""
    key = {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests_per_minute": 10}
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url, auth={"keys": [key]})
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            for _ in range(3):
                await asked(one)
            assert await asked(other) == (200, "6")
            redis.stop()
            told = [(await asked(other))[0] for _ in range(8)]
            assert told == [200] * 6 + [429] * 2, "three of the ten were used at the other instance"
            redis.go_on()
            link = other.app.gateway.generation.answers.link
            assert link is not None
            await until(lambda: link.is_well)
            client = redis.client()
            (name,) = redis.names()
            client.set(name, "foreign")
            assert (await asked(one))[0] == 200
            assert not client.exists(name) or client.type(name) == b"zset"
            assert (await asked(one))[0] == 200
            assert client.type(name) == b"zset"


@define
class Away:
    """A link to a server that is not there."""

    is_well: bool = False

    async def use(self, command: object) -> Any:
        raise ServerUnavailable


async def test_what_was_used_while_the_server_was_away_counts_from_when_it_was(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Once it is back nobody is refused for what was used more than a minute ago, nor for longer than a minute."""
    key = ClientKey("alice", hashlib.sha256(KEY.encode()).hexdigest(), requests_per_minute=10, tokens_per_minute=100)
    now = 0.0
    async with proxy(settings({"up": openai("http://127.0.0.1:1")}, state=redis.url), tmp_path) as gate:
        limits = gate.app.gateway.generation.limits
        settlements, here = limits.spend.settlements, limits.link
        assert here is not None
        settlements.clock = lambda: now
        limits.spend.link = settlements.link = Away  # type: ignore[assignment]  # a stand-in
        alice = Caller(key)
        while now < 600:
            await limits.ask(alice, now)
            taken = await limits.take(alice, 9, 0, now)
            assert taken is not None
            limits.settle(alice, taken, 9, now)
            now += 10
        await until(lambda: settlements._sending is not None)
        limits.spend.link = settlements.link = lambda: here
        await until(lambda: settlements.is_idle)
        elsewhere = Caller(key)
        for _ in range(5):
            await limits.ask(elsewhere, now)
        with pytest.raises(KeyLimited) as refused:
            await limits.ask(elsewhere, now)
        assert 0 < (refused.value.retry_after or 0) <= 10
        assert await limits.take(elsewhere, 100 - 5 * 9, 0, now)
        with pytest.raises(KeyLimited) as refused:
            await limits.take(elsewhere, 1, 0, now)
        assert 0 < (refused.value.retry_after or 0) <= 11


def test_the_start_names_what_is_each_workers_own(tmp_path: Path) -> None:
    """Requests per minute are not, where a server counts them for all."""
    key = {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests_per_minute": 10}
    for more, named in ({}, False), ({"concurrent_requests": 2}, True):
        for state in (None, "redis://127.0.0.1:9"):
            config = settings({"up": openai("http://a")}, state=state, auth={"keys": [key | more]})
            path = tmp_path / "proxy.yaml"
            path.write_text(written(config))
            said = per_worker_limits(load(path, {}))
            assert ("alice" in said) is (named or state is None)
            assert ("requests_per_minute" in said, "concurrent_requests" in said) == (state is None, named)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [(None, "in memory only (spend_file)"), ("redis://:secret@127.0.0.1:9/1", "in redis://127.0.0.1:9/1")],
)
def test_the_start_says_where_budgets_are_kept(tmp_path: Path, state: str | None, wanted: str) -> None:
    """With a shared state they are kept there; a file besides serves while it is away."""
    key = {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "budget": {"day": "5 USD"}}
    path = tmp_path / "proxy.yaml"
    path.write_text(written(settings({"up": openai("http://a")}, state=state, auth={"keys": [key]})))
    config = load(path, {})
    assert budget_storage(config, None) == f"; budgets are kept {wanted}"
    both = "" if state is None else f"{wanted.removeprefix('in ')} and in "
    assert budget_storage(config, Path("/x/spend.json")) == f"; budgets are kept in {both}/x/spend.json"


async def test_a_request_is_in_flight_while_the_server_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the configuration that it began with; a client that leaves meanwhile has its line."""
    go, asking = asyncio.Event(), asyncio.Event()

    async def waits(self: SharedLimits, caller: Caller, now: float) -> None:
        asking.set()
        await go.wait()

    monkeypatch.setattr(SharedLimits, "ask", waits)
    key = {"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "requests_per_minute": 10}
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state="redis://127.0.0.1:1", auth={"keys": [key]})
        async with proxy(config, tmp_path) as gate:
            for leaves in (True, False):
                request = asyncio.ensure_future(asked(gate))
                await asking.wait()
                asking.clear()
                if leaves:
                    request.cancel()
                    await until(lambda: "client_gone" in gate.log.getvalue())
            gate.write({**config, "providers": {"up": openai(server.url, headers={"X-New": "1"})}})
            gate.app.reload()
            await until(lambda: '"reloaded"' in gate.log.getvalue())
            go.set()
            assert await request == (200, "10")
            assert "x-new" not in server.posts[-1].headers
            assert not gate.app.gateway.pipeline.exchanges
