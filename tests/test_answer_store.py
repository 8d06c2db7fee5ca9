"""What is kept in memory, within its bytes and its time; and how streams are held for several."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.targets import Target
from manallm_proxy.state.answer_store import OVERHEAD, CachedAnswer, MemoryAnswers
from manallm_proxy.state.flights import HELD, Flight, Flights, Form
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream
from tests.waiting import until

TARGET = Target("up", "m")


def kept(size: int) -> CachedAnswer:
    return CachedAnswer(bytes(size), TARGET, usage=Usage(3, 2))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def test_the_least_recently_used_go_first() -> None:
    """Within the bytes, overhead included; what alone is too large is not kept; a reload may lower the limit."""
    now = [100.0]
    store = MemoryAnswers(lambda: now[0], 3 * (1000 + OVERHEAD))
    for number in range(3):
        store.keep(key(number), kept(1000), 60.0)
    assert await store.find(key(0)) is not None
    store.keep(key(3), kept(1000), 60.0)
    assert [await store.find(key(n)) is not None for n in range(4)] == [True, False, True, True]
    store.keep(key(4), kept(4 * 1000 + 3 * OVERHEAD), 60.0)
    assert (len(store), await store.find(key(4))) == (3, None)
    store.keep(key(3), kept(10), 60.0)
    assert store.size == 2 * (1000 + OVERHEAD) + 10 + OVERHEAD
    store.limit = 1100 + OVERHEAD
    store.trim()
    assert (len(store), store.size) == (1, 10 + OVERHEAD)
    store.drop(key(3))
    assert (len(store), store.size) == (0, 0)


async def test_an_answers_time_ends() -> None:
    """It counts from when it was kept, however often it is used."""
    now = [100.0]
    store = MemoryAnswers(lambda: now[0], 10_000)
    store.keep(key(0), kept(10), 60.0)
    now[0] = 159.9
    found = await store.find(key(0))
    assert found is not None and found.age == pytest.approx(59.9)
    now[0] = 160.0
    assert await store.find(key(0)) is None
    assert store.size == 0


async def test_ten_thousand_embeddings_fit_into_their_bytes() -> None:
    """What is counted is no less than what Python uses."""
    limit = 10_000 * (3000 + OVERHEAD)
    store = MemoryAnswers(asyncio.get_running_loop().time, limit)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(10_100):
        store.keep(key(number), kept(3000), 3600.0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(store) == 10_000
    assert 0.8 * limit < used <= limit


async def test_age_is_the_configurations_and_the_requests_to_limit(tmp_path: Path) -> None:
    """``max-age`` takes none that is older, and neither does a ttl that a reload has shortened."""
    async with upstream(each(answers)) as server:
        config: dict[str, Any] = settings({"up": openai(server.url)})
        config["aliases"]["mana/test"]["cache"] = {"ttl": 100}
        async with proxy(config, tmp_path) as gate:

            async def asked(control: str = "") -> str:
                body = {"model": "mana/test", "messages": []}
                headers = {"Cache-Control": control} if control else {}
                return (await gate.post("/v1/chat/completions", body, headers=headers))[2]["x-mana-llm-cache"]

            store = gate.app.gateway.generation.answers.store
            assert isinstance(store, MemoryAnswers)
            store.clock = lambda: 1000.0
            assert await asked() == "miss"
            store.clock = lambda: 1050.0
            assert [await asked("max-age=51"), await asked()] == ["hit", "hit"]
            assert await asked("max-age=49") == "miss"
            assert await asked("max-age=49") == "hit", "the new answer has taken its place"
            config["aliases"]["mana/test"]["cache"] = {"ttl": 20}
            gate.write(config)
            await gate.app.reload()
            assert await asked() == "hit"
            store.clock = lambda: 1071.0
            assert await asked() == "miss"


PART, PARTS = bytes(HELD // 4), 12
"""Three times what is held, in so many parts."""


async def produce_more_than_is_held(flight: Flight) -> None:
    for _ in range(PARTS):
        flight.put(PART)
        await flight.room()
    flight.complete(None, b"end")


async def test_more_than_is_held_waits_for_the_slowest() -> None:
    """Nobody can join then; who is there gets all of it, and it is not kept."""
    flight = Flight(Form(stream=True))
    with flight.join() as seat:
        flight.start(produce_more_than_is_held, lambda: None)
        assert flight.is_open
        await until(lambda: flight.part_count == 5)
        await asyncio.sleep(0)
        assert flight.part_count == 5, "the provider waits"
        size = 0
        async for data in seat.parts():
            size += len(data)
        assert (size, flight.last, flight.held()) == (PARTS * len(PART), b"end", None)
        assert not flight.is_open


async def test_who_reads_nothing_and_leaves_holds_nobody_up() -> None:
    """Until it leaves the provider waits for it, however much the others have read."""
    flight = Flight(Form(stream=True))
    with flight.join() as quick:
        with flight.join() as slow:
            flight.start(produce_more_than_is_held, lambda: None)
            reading = quick.parts()
            while quick.read < 5:
                await anext(reading)
            few = slow.parts()
            assert len(await anext(few)) == 5 * len(PART)
            while quick.read < 10:
                await anext(reading)
            for _ in range(3):  # turns, in which the provider sees that there is no room
                await asyncio.sleep(0)
            assert (flight.part_count, slow.read, flight.has_room) == (10, 5, False), "no more than that is held"
        async for _ in reading:
            pass
        assert (quick.read, flight.has_room, flight.is_open) == (PARTS, True, False)


async def test_a_flight_is_joined_while_all_of_it_is_there() -> None:
    """It ends with the last who has joined it, and makes room for no other than itself."""
    flights, flight, other = Flights(), Flight(Form(stream=True)), Flight(Form(stream=True))
    ended = asyncio.Event()

    async def produce(flight: Flight) -> None:
        flight.put(b"")
        flight.put(b"a")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    flights.add(b"key", flight)
    assert flights.find(b"key") is flights.find(b"nosuch") is None
    with flight.join():
        flight.start(produce, lambda: None)
        with flight.join() as late:
            assert flights.find(b"key") is flight
            assert await anext(late.parts()) == b"a" and flight.part_count == 1
        assert not ended.is_set()
        flight.overflown = True
        assert flights.find(b"key") is None
        flight.overflown = False
    await ended.wait()
    await until(lambda: flight.is_over)
    with flight.join():
        assert flights.find(b"key") is None
    flights.add(b"key", other)
    flights.remove(b"key", flight)
    assert len(flights) == 1
    flights.remove(b"key", other)
    assert len(flights) == 0


def test_what_a_flight_took_is_one_clients() -> None:
    flight = Flight(Form(stream=False))
    flight.usage = Usage(1, 2)
    assert [flight.claim(), flight.claim()] == [Usage(1, 2), None]
