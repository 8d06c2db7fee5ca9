"""The walk along any chain, in virtual time: tiers that hedge, busy servers, clients that leave at any moment.

What holds for each of them: who could have served has been asked, nobody twice for nothing, the error names every
entry, and no permit, task or answer is left behind.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any, Final

import pytest
from attrs import define, field

from bench.simulation.virtual_time import run
from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.provider_errors import (
    Disconnected,
    FirstByteTimeout,
    ProviderError,
    QueueTimeout,
    RateLimited,
)
from manallm_proxy.contract.targets import Chain, Entry, Target, Tier
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.circuit import Declined, Skip
from manallm_proxy.routing.failover import Walk, in_background
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import HealthRegistry

FAILURES: Final[dict[str, tuple[float, ProviderError | Declined]]] = {
    "reset": (0.0, Disconnected("x")),
    "reset later": (0.4, Disconnected("x")),
    "limited": (0.0, RateLimited("x", retry_after=100.0)),
    "silent": (2.0, FirstByteTimeout("x")),
    "given up": (0.0, Declined(Skip("unhealthy"))),
}
"""After so many seconds."""
SERVES: Final = {"at once": 0.0, "later": 0.4, "known to be busy": 0.4, "busy": 1.5}
"""The seconds that an answer takes, in the queue too. The last two let only those wait who can go nowhere else."""
SKIPPED: Final = ("down", "cooling")
HEDGES: Final = (None, 0.1, 0.1)
MOMENTS: Final = (0.0, 0.05, 0.1, 0.4, 0.5, 0.9, 2.2)
"""When a client leaves."""


@define(eq=False)
class Trip:
    """One walk: chain, servers and client are drawn from `dice`."""

    dice: random.Random
    kinds: dict[str, str] = field(factory=dict)
    """By provider: how it is."""
    asked: Counter[str] = field(factory=Counter)
    closed: list[str] = field(factory=list)
    healths: dict[str, Health] = field(factory=dict)
    walk: Walk = field(init=False)

    def __attrs_post_init__(self) -> None:
        entries: list[Entry] = []
        for place in range(self.dice.randint(1, 4)):
            size = self.dice.randint(1, 3)
            tier = Tier(place, hedge=self.dice.choice(HEDGES)) if size > 1 else None
            entries += [self._entry(len(entries) + n, tier) for n in range(size)]
        clock = asyncio.get_running_loop().time
        registry = HealthRegistry(self.healths, clock, lambda event: None)
        self.walk = Walk(Chain("mana/t", tuple(entries)), registry, "1", self._gate, lambda entry: True)

    def _entry(self, number: int, tier: Tier | None) -> Entry:
        name, health = f"p{number}", Health()
        kind = self.kinds[name] = self.dice.choice([*FAILURES, *SERVES, *SKIPPED])
        self.healths[name] = health
        if kind == "down":
            health.provider.open_until = 1e9
        elif kind == "cooling":
            health._target("m").cool(1e9, "rate_limited")
        return Entry(Target(name, "m"), tier=tier, max_wait=0.3)

    def _gate(self, entry: Entry, is_last: Any) -> Skip | None:
        busy = self.kinds[entry.target.provider] == "known to be busy"
        return Skip("saturated", 3.0) if busy and not is_last(entry) else None

    async def ask(self, entry: Entry) -> str:
        name = entry.target.provider
        kind = self.kinds[name]
        self.asked[name] += 1
        if kind in FAILURES:
            seconds, error = FAILURES[kind]
            await asyncio.sleep(seconds)
            raise error
        for _ in range(round(SERVES[kind] / 0.1)):
            await asyncio.sleep(0.1)
            if kind == "busy" and not self.walk.is_last(entry):
                raise QueueTimeout("x")
        return name

    async def aclose(self, value: str) -> None:
        self.closed.append(value)

    async def take(self) -> Attempt[str] | BaseException:
        """To its end, or until its client leaves."""

        async def beat() -> None: ...

        walking = self.walk.run(self.ask, "mana/t", self.aclose)
        task = asyncio.ensure_future(in_background(walking, 0.15, beat) if self.dice.random() < 0.5 else walking)
        if self.dice.random() < 0.3:
            await asyncio.sleep(self.dice.choice(MOMENTS))
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]


async def trip(seed: int) -> None:
    made = Trip(random.Random(seed))
    end = await made.take()
    story = f"seed {seed}: {made.kinds}, asked {dict(made.asked)}, {made.walk.log}"
    if isinstance(end, Attempt):
        await end.aclose()
        assert end.value in made.closed, story
    elif isinstance(end, NoProvider):
        assert not SERVES.keys() & made.kinds.values(), story
        assert {line.model for line in made.walk.log} == {f"{name}/m" for name in made.kinds}, story
    else:
        assert isinstance(end, asyncio.CancelledError), story
    await asyncio.sleep(10)
    assert len(asyncio.all_tasks()) == 1, story
    assert not any(health.in_flight or health.answering for health in made.healths.values()), story
    for name, times in made.asked.items():
        assert times <= 1 + (made.kinds[name] == "busy"), story


@pytest.mark.parametrize("begin", range(0, 4000, 1000))
def test_any_chain_of_any_servers(begin: int) -> None:
    async def trips() -> None:
        for seed in range(begin, begin + 1000):
            await trip(seed)

    run(trips())
