"""One day under one policy, by the product's own gates and walk; and under a scheduler that knows everything."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter

from attrs import define, field, frozen

from bench.simulation.day import Asked
from bench.simulation.servers import CLOUD_FIRST, KEEP_ALIVE, LOAD, SimulatedBox, SimulatedCloud, now
from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.events import Event, FellBack
from manallm_proxy.contract.provider import Call, Endpoint, Provider, RequestSummary
from manallm_proxy.contract.targets import Chain, Entry, Target, Timeouts
from manallm_proxy.routing import relay
from manallm_proxy.routing.boxes import Box, Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import HealthRegistry
from manallm_proxy.routing.line import Line
from manallm_proxy.routing.local_providers import LocalProviders
from manallm_proxy.routing.queues import Queue

BYTES_PER_TOKEN = 4
FOR_EVER = Timeouts(first_byte=1e9, idle=1e9)


@frozen
class Policy:
    """``queues``: our queue, with this ``max_wait``; else as many as come, or ``limit`` at a time.

    ``learns``: nobody says how many slots the box has."""

    queues: bool = True
    learns: bool = False
    slots: int = 1
    """Of the box."""
    max_wait: float = 1.0
    limit: int | None = None
    spills: bool = True
    """Whether a cloud comes after the box."""


@define
class Outcome:
    """What came of a day."""

    first_bytes: list[float] = field(factory=list)
    """Seconds from arrival, of each request."""
    local: list[float] = field(factory=list)
    """When those arrived that the box served."""
    spilled: Counter[str] = field(factory=Counter)
    learned: int = 0
    """Slots, at last."""
    most: int = 0
    """Requests that waited in the box's own queue, at most at a time."""
    begun: int = 0
    finished: int = 0
    aborted: int = 0

    @property
    def share(self) -> float:
        """Served by the box."""
        return len(self.local) / max(len(self.first_bytes), 1)


class _Nobody:
    """A client that takes everything."""

    async def send(self, batch: StreamBatch) -> None: ...

    def try_write(self, batch: StreamBatch | bytes) -> bool:
        return True

    async def finish(self) -> None: ...

    async def fail(self, error: ProxyError) -> None: ...


async def under(policy: Policy, day: list[Asked]) -> Outcome:
    """`day` under `policy`, by the gates and the walk that the proxy has."""
    outcome = Outcome()

    def observe(event: Event) -> None:
        if isinstance(event, FellBack):
            outcome.spilled[event.reason] += 1

    box, cloud = SimulatedBox("box", at_once=policy.slots), SimulatedCloud("cloud")
    providers: dict[str, Provider] = {"box": box, "cloud": cloud}
    healths = {"box": Health(max_concurrent=policy.limit), "cloud": Health()}
    registry = HealthRegistry(healths, now, observe)
    local = Entry(Target("box", "m"), FOR_EVER, max_wait=policy.max_wait)
    chain = Chain("mana/day", (local, Entry(Target("cloud", "m"), FOR_EVER))[: 2 if policy.spills else 1])
    catalog = Catalog()
    boxes = Boxes({"box": Box("box", box, now, observe)})
    queue = Queue(
        now, healths["box"], Line(policy.slots if policy.queues and not policy.learns else None, learns=policy.learns)
    )
    local_providers = LocalProviders(catalog, boxes, {"box": queue})
    await boxes.refresh(1.0)
    boxes.start()

    async def one(number: int, asked: Asked) -> None:
        await asyncio.sleep(asked.at - now())
        id_ = str(number)
        box.asked[id_] = cloud.asked[id_] = asked
        summary = RequestSummary("mana/day", True, False, frozenset(), {})
        call = Call(Endpoint.CHAT, summary, bytes(asked.prompt * BYTES_PER_TOKEN), id_)
        visit = local_providers.gates(call)

        async def ask(entry: Entry) -> relay.Opened:
            return await relay.open_stream(providers[entry.target.provider], catalog, call, entry)

        walk = Walk(chain, registry, id_, visit.gate, visit.may_serve)
        async with await walk.run(visit.in_turn(ask, walk.is_last), "mana/day", relay.Opened.aclose) as attempt:
            outcome.first_bytes.append(now() - asked.at)
            if attempt.entry is local:
                outcome.local.append(asked.at)
            await relay.Relay(attempt).run(_Nobody())
        del box.asked[id_], cloud.asked[id_]

    await asyncio.gather(*(one(number, asked) for number, asked in enumerate(day)))
    outcome.learned, outcome.most = queue.line.of("m").slots.number, box.most
    outcome.begun, outcome.finished, outcome.aborted = box.begun, box.finished, box.aborted
    for each in boxes.boxes.values():
        await each.close()
    return outcome


def omniscient(day: list[Asked], max_wait: float, slots: int = 1) -> Outcome:
    """First come first served by who knows how long everything takes: it waits whoever will not wait too long."""
    outcome = Outcome()
    free, used = [0.0] * slots, -KEEP_ALIVE
    for asked in day:
        start = max(free[0], asked.at)
        cold = start - used > KEEP_ALIVE
        wait = start - asked.at
        if wait > max_wait:
            outcome.spilled["saturated"] += 1
            outcome.first_bytes.append(CLOUD_FIRST)
            continue
        outcome.begun += cold
        outcome.finished += cold
        begins = start + (LOAD if cold else 0.0)
        outcome.local.append(asked.at)
        outcome.first_bytes.append(begins + asked.first - asked.at)
        heapq.heapreplace(free, begins + asked.seconds)
        used = max(used, begins + asked.seconds)
    return outcome
