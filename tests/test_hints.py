"""What one instance has found out about a provider, told to the others through a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from manallm_proxy.contract.provider_errors import ConnectFailed, RateLimited
from manallm_proxy.contract.targets import Target
from manallm_proxy.gateway.hints import address_digest
from manallm_proxy.routing.circuit import Hint, Policy, Skip
from manallm_proxy.routing.health import OWN_EVIDENCE, Health, Permit
from tests.proxy import openai, proxy, settings
from tests.redis_server import RedisServer, redis_server
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

OUTAGE = Hint(open_for=30.0, reach=True, reason="connect_error")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def served(health: Health, now: float) -> None:
    permit = health.admit("m", now)
    assert isinstance(permit, Permit)
    permit.served(now)


def test_an_outage_elsewhere_is_one_here() -> None:
    """For as long as it was said, never for longer than one of our own; its end lets one request try."""
    health = Health(Policy(2, 60.0))
    health.take_hint(None, OUTAGE, 100.0)
    assert health.refusal("m", 129.0) == Skip("unhealthy", 1.0, "connect_error")
    assert health.refusal("m", 130.0) is None
    health = Health(Policy(2, 60.0))
    health.take_hint("m", Hint(open_for=1e9, reason="http_500"), 100.0)
    assert health.refusal("m", 159.0) == Skip("unhealthy", 1.0, "http_500")
    assert health.refusal("other", 100.0) is None
    health.take_hint("m", Hint(), 110.0)
    assert isinstance(health.admit("m", 110.0), Permit)
    assert health.admit("m", 110.0) == Skip("unhealthy", detail="http_500"), "the one trial is under way"
    assert health.pending_update("m", 110.0) is None, "it is no news to those who said it"


def test_what_was_seen_here_counts_more() -> None:
    """A provider that serves us at this moment is probed, and that decides; an outage of our own keeps its time."""
    health = Health(Policy(2, 60.0))
    served(health, 100.0)
    assert health.take_hint(None, OUTAGE, 100.0 + OWN_EVIDENCE)
    assert health.refusal("m", 101.0) is None
    health.probed(None, 101.0)
    assert health.provider.is_blank
    assert health.take_hint(None, OUTAGE, 101.0)
    health.probed(ConnectFailed("x"), 101.0)
    assert health.refusal("m", 101.0) == Skip("unhealthy", 60.0, "connect_error")
    health = Health(Policy(2, 60.0))
    permit = health.admit("m", 200.0)
    assert isinstance(permit, Permit)
    permit.began(200.0)
    health.take_hint(None, OUTAGE, 250.0)
    assert health.refusal("m", 250.0) is None
    permit.served(250.0)
    for _ in range(2):
        permit = health.admit("m", 300.0)
        assert isinstance(permit, Permit)
        permit.failed(ConnectFailed("x"), 300.0)
    health.take_hint(None, OUTAGE, 301.0)
    assert health.refusal("m", 331.0) == Skip("unhealthy", 29.0, "connect_error")
    health = Health(Policy(2, 60.0))
    health.take_hint(None, OUTAGE, 100.0)
    health.probed(None, 101.0)
    assert health.refusal("m", 101.0) is None, "our own probe reaches it"


def test_a_cooling_is_shared_by_all() -> None:
    """The limit is the account's, whoever ran into it; no cooling is shortened, none is longer than a quota's."""
    health = Health()
    permit = health.admit("m", 100.0)
    assert isinstance(permit, Permit)
    permit.failed(RateLimited("x", retry_after=50.0), 100.0)
    health.take_hint("m", Hint(cooling_for=20.0, reason="rate_limited"), 110.0)
    assert health.refusal("m", 110.0) == Skip("cooling", 40.0, "rate_limited")
    served(health, 155.0)
    health.take_hint("m", Hint(cooling_for=1e9, reason="rate_limited"), 160.0)
    assert health.refusal("m", 160.0) == Skip("cooling", 600.0, "rate_limited")


async def test_instances_tell_each_other(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """A rate limit and an outage reach the other within a second, before and after Redis was away."""

    async def limited(connection: Connection, seen: Seen) -> None:
        if seen.json["model"] == "good":
            await answers(connection, seen)
        else:
            line = "429 Too Many Requests" if seen.json["model"] == "m" else "500 Oh"
            await connection.reply({"error": {"message": "no"}}, line, extra="Retry-After: 40\r\n")

    async with upstream(each(limited)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:

            def here(model: str) -> str | None:
                found = other.app.gateway.generation.registry.refusal(Target("up", model))
                return found.reason if found is not None else None

            await until(lambda: redis.client().pubsub_numsub("manallm:1:health")[0][1] == 2)
            assert (await one.chat(model="up/m"))[0] == 429
            await until(lambda: here("m") == "cooling", 1)
            for _ in range(2):
                assert (await one.chat(model="up/bad"))[0] == 503
            await until(lambda: here("bad") == "unhealthy", 1)
            assert (await other.chat(model="up/good"))[0] == 200
            redis.kill()
            assert (await one.chat(model="up/good"))[0] == 200
            redis.start()
            await until(lambda: redis.client().pubsub_numsub("manallm:1:health")[0][1] == 2)
            for _ in range(2):
                assert (await one.chat(model="up/worse"))[0] == 503
            await until(lambda: here("worse") == "unhealthy", 1)


async def test_an_outage_reaches_who_was_served_a_moment_ago(redis: RedisServer, tmp_path: Path, two: Path) -> None:
    """By a probe of its own."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as one, proxy(config, two) as other:
            await until(lambda: redis.client().pubsub_numsub("manallm:1:health")[0][1] == 2)
            assert (await other.chat(model="up/m"))[0] == 200
            await server.stop()
            for _ in range(2):
                assert (await one.chat(model="up/m"))[0] == 503
            registry = other.app.gateway.generation.registry
            await until(lambda: registry.refusal(Target("up", "m")) is not None, 1)


async def test_a_provider_that_a_reload_has_removed_fails(redis: RedisServer, tmp_path: Path) -> None:
    """There is nothing to publish: the request that waited for it goes on to the next one."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        connection.reset()

    async with upstream(each(waits)) as gone, upstream(each(answers)) as stays:
        providers = {"gone": openai(gone.url), "stays": openai(stays.url)}
        health = {"failure_threshold": 1}
        async with proxy(settings(providers, state=redis.url, health=health), tmp_path) as gate:
            asking = asyncio.ensure_future(gate.chat())
            await until(lambda: gone.posts)
            gate.write(settings({"stays": openai(stays.url)}, state=redis.url, health=health))
            await gate.app.reload()
            gone.go.set()
            status, answer, headers = await asking
            assert (status, headers.get("x-mana-llm-resolved")) == (200, "stays/m"), answer


async def test_what_is_no_hint_is_passed_over(redis: RedisServer, tmp_path: Path) -> None:
    """Foreign, poisoned, of another server by the same name, too long: nothing happens, and the next is heard."""
    async with upstream(each(answers)) as server:
        config = settings({"up": openai(server.url)}, state=redis.url)
        async with proxy(config, tmp_path) as gate:
            client, registry = redis.client(), gate.app.gateway.generation.registry
            await until(lambda: client.pubsub_numsub("manallm:1:health")[0][1] == 1)
            heard = {"sender": "x", "provider": "up", "where": "elsewhere", "model": "m", "hint": {"open_for": 30}}
            for message in (
                *(b"", b"\xff\x00", b"[]", b"{}", b"x" * 5000, msgspec.json.encode(heard)),
                msgspec.json.encode({**heard, "provider": "nobody"}),
                msgspec.json.encode({**heard, "hint": {"open_for": "long"}}),
            ):
                client.publish("manallm:1:health", message)
            where = address_digest(gate.app.config.providers["up"])
            poison = {**heard, "where": where, "hint": {"open_for": 30, "reason": "a line\nfor the log"}}
            client.publish("manallm:1:health", msgspec.json.encode(poison))
            client.publish("manallm:1:health", msgspec.json.encode({**heard, "where": where, "model": "last"}))
            await until(lambda: registry.refusal(Target("up", "last")) is not None)
            assert registry.refusal(Target("up", "m")) is None
            assert (await gate.chat(model="up/m"))[0] == 200
