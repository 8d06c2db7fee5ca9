"""Two targets asked for one answer: by the walk over fakes, and by the whole proxy over sockets."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.events import AttemptFailed, Event, FellBack
from manallm_proxy.contract.provider_errors import Disconnected, ProviderError, RequestRejected
from manallm_proxy.contract.targets import Chain, Entry, Target, Tier
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.circuit import BUDGET, Declined, Skip
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.health import Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry
from tests.figures import value
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

AT_ONCE, LATER = 0.01, 60.0
"""Seconds of a hedge that surely comes, and of one that does not."""


@define(eq=False)
class Race:
    """A tier of a and b, then c. Each answers when the test says how."""

    hedge: float = AT_ONCE
    told: list[Event] = field(factory=list)
    asked: dict[str, asyncio.Future[str]] = field(factory=dict)
    left: list[str] = field(factory=list)
    closed: list[str] = field(factory=list)
    healths: dict[str, Health] = field(factory=lambda: {name: Health() for name in "abc"})
    walk: Walk = field(init=False)

    def __attrs_post_init__(self) -> None:
        tier = Tier(0, hedge=self.hedge)
        entries = [Entry(Target(name, "m"), tier=tier if name != "c" else None) for name in "abc"]
        clock = asyncio.get_running_loop().time
        self.walk = Walk(Chain("mana/t", tuple(entries)), HealthRegistry(self.healths, clock, self.told.append), "1")

    async def attempt(self, entry: Entry) -> str:
        name = entry.target.provider
        self.asked[name] = asyncio.get_running_loop().create_future()
        try:
            return await self.asked[name]
        except asyncio.CancelledError:
            self.left.append(name)
            raise

    async def aclose(self, value: str) -> None:
        self.closed.append(value)

    def run(self) -> asyncio.Task[Attempt[str]]:
        return asyncio.ensure_future(self.walk.run(self.attempt, "mana/t", self.aclose))

    async def until_asked(self, *names: str) -> None:
        await until(lambda: set(self.asked) == set(names))

    def fails(self, name: str, error: ProxyError | None = None) -> None:
        self.asked[name].set_exception(error or Disconnected("gone"))

    def has_left(self, number: int) -> bool:
        return len(self.left) == number

    @property
    def log(self) -> list[tuple[str, str]]:
        return [(line.model, line.reason) for line in self.walk.log]

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    async def is_over(self, served: Attempt[str] | None = None) -> None:
        """Nothing is in hand any more, and nobody is blamed but by `AttemptFailed`."""
        if served is not None:
            served.served()
            await served.aclose()
        assert {name: health.in_flight for name, health in self.healths.items()} == dict.fromkeys("abc", 0)


async def test_the_second_wins() -> None:
    """The first one is left, and blames nobody; log and events say what became of it."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.asked["b"].set_result("from b")
    served = await running
    assert (served.value, served.entry.target.provider, race.walk.tried) == ("from b", "b", 2)
    await until(lambda: race.left == ["a"])
    assert race.log == [("a/m", "hedged")]
    assert [(e.from_target, e.to_target, e.reason) for e in race.of(FellBack)] == [("a/m", "b/m", "hedged")]
    assert race.walk.trying == Target("b", "m") and race.of(AttemptFailed) == []
    assert all(not health.provider.failures and not health.targets for health in race.healths.values())
    await race.is_over(served)


async def test_the_first_wins_after_all() -> None:
    """Then the second one is left."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.asked["a"].set_result("from a")
    served = await running
    assert (served.value, race.walk.trying, race.log) == ("from a", Target("a", "m"), [("b/m", "hedged")])
    assert race.of(FellBack) == []
    await until(lambda: race.left == ["b"])
    await race.is_over(served)


async def test_who_is_quick_needs_no_hedge() -> None:
    """Nobody else is asked."""
    race = Race(LATER)
    running = race.run()
    await race.until_asked("a")
    race.asked["a"].set_result("from a")
    served = await running
    assert (served.value, race.walk.tried, set(race.asked), race.log) == ("from a", 1, {"a"}, [])
    await race.is_over(served)


async def test_both_at_once() -> None:
    """The first one counts; what the other one brought is closed."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.asked["a"].set_result("from a")
    race.asked["b"].set_result("from b")
    served = await running
    assert served.value == "from a"
    await until(lambda: race.closed == ["from b"])
    await race.is_over(served)


async def test_one_that_fails_is_blamed_and_the_other_goes_on() -> None:
    """A failure is one, hedged or not; the rest of the chain is not needed."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.fails("a")
    await until(lambda: len(race.of(AttemptFailed)) == 1)
    assert not running.done()
    race.asked["b"].set_result("from b")
    served = await running
    assert (race.log, served.value) == ([("a/m", "disconnected")], "from b")
    assert [(e.from_target, e.to_target, e.reason) for e in race.of(FellBack)] == [("a/m", "b/m", "disconnected")]
    assert race.healths["a"].targets["m"].failures == 1
    await race.is_over(served)


async def test_one_that_may_not_be_sent_was_not_tried() -> None:
    """Its budget was spent elsewhere meanwhile: the other one goes on, and nobody is blamed."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.asked["b"].set_exception(Declined(Skip(BUDGET)))
    await until(lambda: race.log == [("b/m", BUDGET)])
    assert not running.done()
    race.asked["a"].set_result("from a")
    served = await running
    assert (served.value, race.walk.tried, race.of(AttemptFailed)) == ("from a", 1, [])
    await race.is_over(served)


async def test_one_that_fails_before_that_is_followed_at_once() -> None:
    """As in any chain; and both are asked once only, whoever they are followed by."""
    race = Race(LATER)
    running = race.run()
    await race.until_asked("a")
    race.fails("a")
    await race.until_asked("a", "b")
    race.fails("b")
    await race.until_asked("a", "b", "c")
    race.fails("c")
    with pytest.raises(NoProvider):
        await running
    assert race.log == [(f"{name}/m", "disconnected") for name in "abc"]
    await race.is_over()


async def test_where_both_fail_the_walk_goes_on() -> None:
    """Past the tier."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.fails("b")
    race.fails("a")
    await race.until_asked("a", "b", "c")
    race.asked["c"].set_result("from c")
    served = await running
    assert (served.value, race.walk.tried, len(race.log)) == ("from c", 3, 2)
    await race.is_over(served)


async def test_the_callers_mistake_ends_both() -> None:
    """Whoever finds it; nobody is blamed."""
    for finder in ("a", "b"):
        race = Race()
        running = race.run()
        await race.until_asked("a", "b")
        race.fails(finder, RequestRejected("no", provider_status=422))
        with pytest.raises(ProviderError):
            await running
        await until(partial(race.has_left, 1))
        assert all(not health.targets for health in race.healths.values())
        await race.is_over()


async def test_a_bug_ends_both() -> None:
    """It is not hidden behind the other's answer."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    race.fails("b", InvalidRequest("ours"))
    with pytest.raises(InvalidRequest):
        await running
    await until(lambda: race.left == ["a"])
    await race.is_over()


async def test_a_client_that_leaves_leaves_both() -> None:
    """Within the same turn of the loop."""
    race = Race()
    running = race.run()
    await race.until_asked("a", "b")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: sorted(race.left) == ["a", "b"])
    await race.is_over()


async def test_without_a_second_the_first_is_waited_for() -> None:
    """One that is not well is not asked; its reason is in the log only if it is passed."""
    race = Race()
    race.healths["b"] = Health(configured=False)
    race.walk.registry.providers = race.healths
    running = race.run()
    await race.until_asked("a")
    await asyncio.sleep(0.03)  # three times the hedge
    assert set(race.asked) == {"a"}
    race.asked["a"].set_result("from a")
    served = await running
    assert (served.value, race.log) == ("from a", [])
    await race.is_over(served)


async def test_no_one_is_asked_twice() -> None:
    """A member that had no room at first is asked after two others, and may have a second one beside it, too."""
    race = Race()
    tier = Tier(0, hedge=AT_ONCE)
    race.healths |= {name: Health(max_concurrent=1) for name in "bd"}
    race.walk.chain = Chain("mana/t", tuple([Entry(Target(name, "m"), tier=tier) for name in "abcd"]))
    other = race.healths["b"].admit("m", 0.0)
    assert isinstance(other, Permit)
    running = race.run()
    await race.until_asked("a", "c")
    other.released()
    race.fails("a")
    race.fails("c")
    await race.until_asked("a", "c", "b", "d")
    race.fails("b")
    race.fails("d")
    with pytest.raises(NoProvider):
        await running
    assert (sorted(race.log), race.walk.tried) == ([(f"{name}/m", "disconnected") for name in "abcd"], 4)


# Over sockets


async def silent(connection: Connection, seen: Seen) -> None:
    """Not a word, nor a head for a whole answer, until the proxy has gone."""
    if seen.json.get("stream"):
        await connection.head()
    await connection.gone()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_target_is_overtaken(stream: bool, tmp_path: Path) -> None:
    """The client gets the second one's answer, the first one's connection is closed, its health is as it was."""
    async with upstream(each(silent)) as slow, upstream(each(answers)) as quick:
        tier = {"any": ["slow/m", "quick/m"], "strategy": "least_busy", "hedge": 0.05}
        async with proxy(settings({"slow": openai(slow.url), "quick": openai(quick.url)}, [tier]), tmp_path) as p:
            code, _, headers = await (p.stream() if stream else p.chat())
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (200, "quick/m", "2")
            await until(lambda: any(c.closed.is_set() for c in slow.connections if c.answering))
            _, report = await p.get("/v1/health")
            assert {row["status"] for row in report["providers"].values()} == {"healthy"}
            assert {row["in_flight"] for row in report["providers"].values()} == {0}
            _, rows = await p.get("/v1/requests")
            _, row = await p.get(f"/v1/requests/{rows['requests'][0]['id']}")
            assert [(a["model"], a.get("reason")) for a in row["attempts"]] == [("slow/m", "hedged"), ("quick/m", None)]
            async with p.client.get(f"{p.url}/metrics") as response:
                told = await response.text()
            labels = {"from_model": "slow/m", "to_model": "quick/m", "reason": "hedged"}
            assert value(told, "mana_llm_fallback_total", **labels) == 1


async def test_twice_the_same_target_pays_once(tmp_path: Path) -> None:
    """Nothing stays reserved of what lost, though both have one name."""
    async with upstream(each(silent)) as slow:
        entry = {"target": "slow/m", "price": {"input": 1, "output": 1}, "timeouts": {"first_byte": 0.2}}
        config = settings({"slow": openai(slow.url)}, [{"any": [entry, entry], "hedge": 0.05}])
        config["aliases"]["mana/test"]["budget"] = {"day": "5 USD"}
        async with proxy(config, tmp_path) as p:
            assert (await p.stream())[0] == 503
            assert p.app.gateway.generation.ledger._reserved == {}


async def test_a_tier_shares_its_load(tmp_path: Path) -> None:
    """By weight; one that is down leaves its share to the other, by the rules of health."""
    async with upstream(each(answers)) as a, upstream(each(answers)) as b:
        tier = {"any": ["a/m", "b/m"], "strategy": "weighted", "weights": [3, 1]}
        async with proxy(settings({"a": openai(a.url), "b": openai(b.url)}, [tier]), tmp_path) as p:
            served = [(await p.chat())[2]["x-mana-llm-resolved"] for _ in range(8)]
            assert (served.count("a/m"), served.count("b/m")) == (6, 2)
            await a.stop()
            assert [(await p.chat())[2]["x-mana-llm-resolved"] for _ in range(5)] == ["b/m"] * 5
            _, explained = await p.get("/v1/explain?model=mana/test")
            assert (explained["serves"], explained["chain"][0]["reason"]) == ("b/m", "unhealthy")


async def test_a_conversation_stays_on_its_target(tmp_path: Path) -> None:
    """However it goes on, streamed or not; other conversations go elsewhere."""
    async with upstream(each(answers)) as a, upstream(each(answers)) as b:
        tier = {"any": ["a/m", "b/m"], "strategy": "sticky"}
        async with proxy(settings({"a": openai(a.url), "b": openai(b.url)}, [tier]), tmp_path) as p:
            homes = set()
            for number in range(12):
                messages: list[dict[str, str]] = [{"role": "system", "content": "You are"}]
                found = set()
                for turn in range(3):
                    messages.append({"role": "user", "content": f"{number} {turn}"})
                    found.add((await p.chat(messages=messages))[2]["x-mana-llm-resolved"])
                    found.add((await p.stream(messages=messages))[2]["x-mana-llm-resolved"])
                    messages.append({"role": "assistant", "content": "Hello"})
                assert len(found) == 1
                homes |= found
            assert homes == {"a/m", "b/m"}
