"""Budgets and tokens per minute over two instances and a real Redis; by an estimate while that is away."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from manallm_proxy.gateway.shared_spend import BELIEVED, Hold, SharedSpend
from manallm_proxy.routing.ledger import Spend
from manallm_proxy.state import link
from manallm_proxy.state.link import Link, ServerUnavailable
from manallm_proxy.state.scripts import name_of
from tests.proxy import Proxy, openai, proxy, settings
from tests.redis_server import RedisServer, redis_server
from tests.upstreams import Connection, Seen, Upstream, answers, each, endless, upstream
from tests.waiting import until

SECRET = "k" * 40
DEAR = {"target": "cloud/m", "price": {"input": 100_000, "output": 100_000}}
"""Ten cents a token: an answer of `upstreams.answers` has 5, so it costs half a dollar."""
ALIAS = "alias mana/test"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def config_of(server: Upstream, redis: RedisServer, budget: dict[str, str] | None = None, **key: Any) -> dict[str, Any]:
    """The alias has the `budget`, alice's key the limits."""
    config = settings({"cloud": openai(server.url)}, [DEAR], state=redis.url)
    if budget is not None:
        config["aliases"]["mana/test"]["budget"] = budget
    if key:
        alice = {"name": "alice", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), **key}
        config["auth"] = {"keys": [alice]}
    return config


@asynccontextmanager
async def instances(config: dict[str, Any], folder: Path) -> AsyncIterator[tuple[Proxy, Proxy]]:
    folders = [folder / name for name in ("one", "other")]
    for each_ in folders:
        each_.mkdir(exist_ok=True)
    async with proxy(config, folders[0]) as one, proxy(config, folders[1]) as other:
        yield one, other


async def ask(p: Proxy, **body: Any) -> tuple[int, dict[str, str]]:
    """A chat of alice's with an empty prompt, whose estimate is some 15 tokens."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    code, _, told = await p.post("/v1/chat/completions", {"messages": [], "max_tokens": 5, **body}, headers=headers)
    return code, told


def shared(p: Proxy) -> SharedSpend:
    return p.app.gateway.generation.limits.spend


def spent(p: Proxy) -> float:
    """USD, by the ledger of one instance."""
    return sum(usd for name, _, usd, _ in p.app.gateway.generation.ledger.rows() if name == ALIAS)


def told(redis: RedisServer, name: str = name_of("account", ALIAS)) -> dict[str, int]:
    """What stands there: ``du``, ``mt``, ``hu``, whichever day or minute it is of."""
    found: dict[str, int] = {}
    for field, number in redis.client().hgetall(name).items():
        key = chr(field[0]) + chr(field[-1])
        found[key] = found.get(key, 0) + int(number)
    return found


async def settled(*proxies: Proxy) -> None:
    """The server knows all."""
    for p in proxies:
        settlements = shared(p).settlements
        await until(partial(getattr, settlements, "is_idle"))


async def test_a_budget_is_one_for_all(redis: RedisServer, tmp_path: Path) -> None:
    """To the cent, one after the other and all at once; nothing stays reserved, and the next process knows it."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "12 USD", "month": "500 USD"})
        async with instances(config, tmp_path) as (one, other):
            assert [(await ask(p))[0] for p in (one, other) * 3] == [200] * 6
            codes = [code for code, _ in await asyncio.gather(*(ask(p) for _ in range(20) for p in (one, other)))]
            await settled(one, other)
            assert sorted(set(codes)) == [200, 429]
            while (await ask(one))[0] == 200 or (await ask(other))[0] == 200:
                await settled(one, other)
            cents = len(cloud.posts) * 50
            assert 1000 - 50 <= cents <= 1200, "another would not have fit: it reserves two dollars"
            nano = cents * 10**7
            assert told(redis) == {"du": nano, "mu": nano, "dt": len(cloud.posts) * 5, "mt": len(cloud.posts) * 5}
            assert one.app.gateway.generation.ledger._reserved == other.app.gateway.generation.ledger._reserved == {}
            assert spent(one) == pytest.approx(cents / 100)
            client = redis.client()
            names = redis.names()
            assert all(name.startswith(b"manallm:1:{spend}:") and client.pttl(name) > 0 for name in names), names
        async with instances(config, tmp_path) as (one, other):
            assert ((await ask(one))[0], (await ask(other))[0]) == (429, 429)


async def test_what_is_reserved_elsewhere_counts(redis: RedisServer, tmp_path: Path) -> None:
    """Until its answer has ended; a local target serves meanwhile, with the reason in the log."""
    async with upstream(each(endless)) as cloud, upstream(each(answers)) as gpu:
        config = config_of(cloud, redis, {"day": "40 USD"})
        config["providers"]["box"] = openai(gpu.url, local=True)
        config["aliases"]["mana/test"]["chain"] = [DEAR, "box/m"]
        async with instances(config, tmp_path) as (one, other):
            streaming = asyncio.ensure_future(one.stream(max_tokens=300))
            await until(lambda: len(cloud.posts) == 1)
            assert told(redis)["hu"] > 30 * 10**9
            code, headers = await ask(other, max_tokens=100)
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (200, "box/m", "1")
            _, rows = await other.get("/v1/requests")
            _, row = await other.get(f"/v1/requests/{rows['requests'][0]['id']}")
            assert [(a["model"], a.get("reason")) for a in row["attempts"]] == [("cloud/m", "budget"), ("box/m", None)]
            cloud.go.set()
            assert (await streaming)[0] == 200
            await until(lambda: "hu" not in told(redis))
            assert (await other.stream(max_tokens=100))[2]["x-mana-llm-resolved"] == "cloud/m"
            await until(lambda: "hu" not in told(redis))


async def test_tokens_a_minute_are_one_limit_for_all(redis: RedisServer, tmp_path: Path) -> None:
    """Reserved and settled; a refusal says when to come again; what stands in the way is removed."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, tokens_per_minute=100)
        async with instances(config, tmp_path) as (one, other):
            left: list[int] = []
            for p in (one, other) * 3:
                code, headers = await ask(p)
                await settled(p)
                left.append(int(headers["x-ratelimit-remaining-tokens"]))
                assert (code, headers["x-ratelimit-limit-tokens"]) == (200, "100")
            assert left == [95, 90, 85, 80, 75, 70]
            code, headers = await ask(other, max_tokens=75)
            assert (code, 1 <= int(headers["retry-after"]) <= 61) == (429, True)
            code, headers = await ask(one, max_tokens=200)
            assert (code, "retry-after" in headers) == (429, False)
            codes = [code for code, _ in await asyncio.gather(*(ask(p) for _ in range(10) for p in (one, other)))]
            await settled(one, other)
            while (await ask(one))[0] == 200:
                await settled(one)
            assert sorted(set(codes)) == [200, 429] and 80 <= 5 * len(cloud.posts) <= 100
            name, client = name_of("tokens", "alice"), redis.client()
            assert 0 < client.pttl(name) <= 61_000
            for foreign in (b"x", {"1": "5"}, {"9" * 12: "5"}, {"a": "b"}, {"1": "-1"}, {"1": "1e400"}, {"1": "nan"}):
                client.delete(name)
                put(redis, name, foreign)
                code, headers = await ask(one)
                assert (code, client.type(name)) == (200, b"hash"), foreign
                await settled(one)
                assert sum(map(int, client.hvals(name))) == 5, foreign


def put(redis: RedisServer, name: str, foreign: Any) -> None:
    """What none of ours has written."""
    if isinstance(foreign, dict):
        redis.client().hset(name, mapping=foreign)
    else:
        redis.client().set(name, foreign)


async def test_a_server_that_forgets_is_told_again(redis: RedisServer, tmp_path: Path) -> None:
    """Emptied, or poisoned: what is known here stands there again, and no budget opens."""
    async with upstream(each(answers)) as cloud:
        async with instances(config_of(cloud, redis, {"day": "5 USD"}), tmp_path) as (one, other):
            assert [(await ask(p))[0] for p in (one, other)] == [200] * 2
            await settled(one, other)
            await ask(one)
            await settled(one)
            client, name = redis.client(), name_of("account", ALIAS)
            day = shared(one).ledger.day
            poison: list[Any] = [
                {f"d{day}u": "x"},
                {f"d{day}u": "-5"},
                {f"d{day}u": "0.5"},
                {f"d{day}u": "1e300"},
                {f"f{n}": "1" for n in range(600)},
                b"foreign",
                None,
            ]
            for foreign in poison:
                client.delete(name)
                if foreign is not None:
                    put(redis, name, foreign)
                found = await shared(one).hold([(ALIAS, limits(one))], Spend(0.1, 1), Spend())
                assert isinstance(found, Hold), foreign
                shared(one).give_back(found)
                await settled(one)
                assert told(redis) == {"du": 15 * 10**8, "mu": 15 * 10**8, "dt": 15, "mt": 15}, foreign
            client.hset(name, mapping={"d1u": 7, "d99999u": 7, "m1t": 7, "h1u": 7, "what": 7})
            assert (await ask(other))[0] == 200
            await settled(other)
            assert set(told(redis)) == {"du", "mu", "dt", "mt"} and told(redis)["du"] == 2 * 10**9
            for _ in range(6):
                await ask(other)
            shared(other).charge(ALIAS, Spend(3.0, 30))
            await settled(other)
            later = asyncio.get_running_loop().time() + BELIEVED + 1
            shared(other).clock = lambda: later
            _, explained = await other.get("/v1/explain?model=mana/test")
            assert explained["chain"][0]["reason"] == "budget", "also where nobody has asked for a while"


@define
class Late:
    """`then` happens after the first answer."""

    link: Link
    then: Callable[[], None]
    is_well: bool = True
    asked: int = 0

    async def use(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        found = await self.link.use(command)
        self.asked += 1
        if self.asked == 1:
            self.then()
        return found


async def test_a_reservation_that_is_just_given_back_refuses_nobody(redis: RedisServer, tmp_path: Path) -> None:
    """It is written behind: the client's next request may be at another instance before it."""
    async with upstream(each(answers)) as cloud:
        async with instances(config_of(cloud, redis, {"day": "5 USD"}), tmp_path) as (one, other):
            hold = await shared(one).hold([(ALIAS, limits(one))], Spend(4.0, 1), Spend())
            assert isinstance(hold, Hold)
            real = shared(other).link()
            assert real is not None
            late = Late(real, partial(shared(one).give_back, hold))
            shared(other).link = lambda: late  # type: ignore[assignment, return-value]  # a stand-in
            assert ((await ask(other))[0], late.asked) == (200, 2)


def limits(p: Proxy) -> Any:
    budget = p.app.gateway.generation.config.aliases["mana/test"].budget
    assert budget is not None
    return budget.limits


async def test_with_the_server_away_each_counts_by_itself(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it knew of the others. What was spent meanwhile is reported once, when it is back, whatever it is."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "5.5 USD"}, tokens_per_minute=1000)
        async with instances(config, tmp_path) as (one, other):
            for p in (one, other, one, other):
                assert (await ask(p))[0] == 200
                await settled(p)
            monkeypatch.setattr(link, "BUDGET", 0.1)
            redis.stop()
            clock = asyncio.get_running_loop().time
            stopped = clock()
            codes = [(await ask(other))[0] for _ in range(6)]
            assert codes == [200] * 5 + [429], "two dollars were spent before, half of them elsewhere"
            assert list(shared(other).settlements.unconfirmed(ALIAS))
            await until(lambda: clock() > stopped + 2 * link.longest())
            redis.go_on()
            await settled(one, other)
            assert told(redis)["du"] == len(cloud.posts) * 5 * 10**8 == 45 * 10**8
            await until(lambda: shared(one).is_on)
            assert (await ask(one))[0] == 429
            assert spent(one) == pytest.approx(4.5)
            await settled(one)
            tokens = sum(map(int, redis.client().hvals(name_of("tokens", "alice"))))
            assert tokens == 45 and set(told(redis)) == {"du", "mu", "dt", "mt"}, "what nobody waited for was not done"
            redis.kill()
            redis.start()
            await until(lambda: shared(one).is_on and shared(other).is_on)
            later = asyncio.get_running_loop().time() + BELIEVED + 1
            for p in (one, other):
                shared(p).clock = lambda: later
                assert (await ask(p))[0] == 429, "though the server has lost everything"
            assert told(redis)["du"] == 45 * 10**8


@define
class Lossy:
    """So many answers are still to be lost, though the server has done what it was told."""

    link: Link
    is_well: bool = True
    left: int = 0

    async def use(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        found = await self.link.use(command)
        if self.left:
            self.left -= 1
            raise ServerUnavailable
        return found


async def test_what_is_done_though_nobody_heard_of_it_counts_once(redis: RedisServer, tmp_path: Path) -> None:
    """A batch is sent again under its number; what was reserved or taken for a request that did not wait is undone."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "60 USD"}, tokens_per_minute=1000, requests_per_minute=100)
        async with instances(config, tmp_path) as (one, _):
            real = shared(one).link()
            assert real is not None
            lossy = Lossy(real)
            spend = shared(one)
            spend.link = spend.settlements.link = lambda: lossy  # type: ignore[assignment, return-value]  # a stand-in
            for answers_lost, requests in ((4, 1), (2, 2), (0, 3)):
                lossy.left = answers_lost
                assert (await ask(one))[0] == 200
                await settled(one)
                assert lossy.left == 0
                usd, tokens = requests * 5 * 10**8, requests * 5
                assert told(redis) == {"du": usd, "mu": usd, "dt": tokens, "mt": tokens}
                assert sum(map(int, redis.client().hvals(name_of("tokens", "alice")))) == tokens
                (limit,) = redis.client().scan_iter("*limit*")
                assert redis.client().zcard(limit) == requests
                assert redis.client().hkeys(spend.settlements.sender) == [b"number"]


async def test_a_burst_that_the_server_answers_too_late_spends_no_more_than_there_is(
    redis: RedisServer, tmp_path: Path
) -> None:
    """It is well, but so many ask at once that some wait too long: what is reserved here counts all the same."""

    async def late(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await answers(connection, seen)

    async with upstream(each(late)) as cloud:
        async with instances(config_of(cloud, redis, {"day": "12 USD"}), tmp_path) as (one, _):
            real = shared(one).link()
            assert real is not None
            lossy = Lossy(real)
            lossy.left = 1000
            shared(one).link = lambda: lossy  # type: ignore[assignment, return-value]  # a stand-in
            asking = [asyncio.ensure_future(ask(one)) for _ in range(30)]
            await until(lambda: sum(each.done() for each in asking) + len(cloud.posts) == 30)
            assert shared(one).is_on
            assert one.app.gateway.generation.ledger.held(ALIAS).usd <= 12
            passed = len(cloud.posts)
            assert 6 <= passed <= 12, "each reserves one or two dollars"
            cloud.go.set()
            codes = [code for code, _ in await asyncio.gather(*asking)]
            assert sorted(codes) == [200] * passed + [429] * (30 - passed)
            await settled(one)
            assert told(redis)["du"] == passed * 5 * 10**8


async def test_what_was_kept_before_counts_there_too(redis: RedisServer, tmp_path: Path) -> None:
    """Of a proxy that begins to share what it has in its file, in a day and a month."""
    async with upstream(each(answers)) as cloud:
        config = {**config_of(cloud, redis, {"day": "9 USD", "month": "12 USD"}), "spend_file": "spend.json"}
        async with instances({**config, "state": None}, tmp_path) as (one, _):
            assert [(await ask(one))[0] for _ in range(8)] == [200] * 8
        async with instances(config, tmp_path) as (one, other):
            assert (await ask(one))[0] == 200
            await settled(one)
            assert told(redis)["du"] == told(redis)["mu"] == 45 * 10**8
            while (await ask(other))[0] == 200:
                await settled(other)
            assert 7 <= spent(other) <= 9


@define
class Strange:
    """A client of a server that is none: it says `answer` to everything."""

    answer: Any

    async def evalsha(self, *_: Any) -> Any:
        return self.answer

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_what_no_script_of_ours_returns_decides_nothing(redis: RedisServer, tmp_path: Path) -> None:
    """Each counts by itself, and no request fails."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "60 USD"}, tokens_per_minute=1000, requests_per_minute=100)
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        async with instances(config, tmp_path) as (one, _):
            real = shared(one).link()
            assert real is not None
            for answer in (b"OK", None, [], [b"x"] * 9, [1], [9, 9, 9, 9, 9, 9], {1: 2}, 7):
                if real._client is not None:
                    await real._client.aclose()
                real._client = Strange(answer)
                assert (await ask(one, seed=str(answer)))[0] == 200, answer
                await until(lambda: real.is_well)


async def test_what_is_not_ours_under_our_names_is_removed(redis: RedisServer, tmp_path: Path) -> None:
    """Of every type, under every name: budgets and limits go on there, and are settled."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "60 USD"}, tokens_per_minute=1000, requests_per_minute=100)
        async with instances(config, tmp_path) as (one, _):
            assert (await ask(one))[0] == 200
            await settled(one)
            client = redis.client()
            kinds: list[Callable[[bytes], Any]] = [
                lambda name: client.set(name, "x"),
                lambda name: client.lpush(name, "x"),
                lambda name: client.sadd(name, "x"),
                lambda name: client.zadd(name, {"x": 1}),
                lambda name: client.hset(name, "x", "y"),
                lambda name: client.xadd(name, {"x": "y"}),
            ]
            for made in kinds:
                assert len(redis.names()) == 4
                for name in redis.names():
                    client.delete(name)
                    made(name)
                assert (await ask(one))[0] == 200
                await settled(one)
                assert shared(one).is_on
            assert told(redis)["du"] == 7 * 5 * 10**8
            assert "refuses our commands" not in one.log.getvalue()


async def test_a_server_that_is_full_fails_no_request(redis: RedisServer, tmp_path: Path) -> None:
    """Each counts by itself then, which the log says once; it gets all of it once there is room."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "6 USD"}, tokens_per_minute=1000, requests_per_minute=100)
        async with instances(config, tmp_path) as (one, other):
            redis.client().config_set("maxmemory", 1)
            codes = [(await ask(one))[0] for _ in range(12)]
            assert codes == sorted(codes) and 8 <= codes.count(200) <= 11 and not shared(one).is_on
            assert one.log.getvalue().count("refuses our commands (OOM)") == 1
            redis.client().config_set("maxmemory", 0)
            await settled(one)
            assert told(redis)["du"] == len(cloud.posts) * 5 * 10**8
            assert (await ask(other))[0] == 429 and shared(other).is_on
            assert shared(one).is_on, "it is asked again, or nothing that others reserve would count here any more"


async def test_a_reload_may_take_the_server_away(redis: RedisServer, tmp_path: Path) -> None:
    """And bring it back: each counts by itself then, and what was spent is known again."""
    async with upstream(each(answers)) as cloud:
        config = config_of(cloud, redis, {"day": "60 USD"})
        async with instances(config, tmp_path) as (one, _):
            for state, known in ((redis.url, 1), (None, 1), (redis.url, 3)):
                one.write({**config, "state": state})
                await one.app.reload()
                assert (await ask(one))[0] == 200
                await settled(one)
                assert told(redis)["du"] >= known * 5 * 10**8
            assert spent(one) == pytest.approx(1.5)
