"""One line and one load for all workers, as the supervisor keeps them, and as each worker has them."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulation.virtual_time import run
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.process.all_boxes import LINES_LIMIT, ONE_OUTAGE, AllBoxes
from manallm_proxy.process.box_link import BoxLink
from manallm_proxy.process.box_messages import Seen
from manallm_proxy.process.worker_link import LAG
from manallm_proxy.process.worker_messages import FROM_WORKER, TO_WORKER, to_line
from manallm_proxy.routing.boxes import Box
from manallm_proxy.routing.line import MODELS_LIMIT, RAMP_LIMIT, Turn
from manallm_proxy.routing.residency import POLL_BUSY
from manallm_proxy.routing.shared_line import LoadEnd, SharedLine
from tests.examples import examples

SERVER = "gpu http://127.0.0.1:1"


@define(eq=False)
class Worker:
    """One, whose messages wait in both directions until they are delivered."""

    link: BoxLink
    line: SharedLine
    to: deque[bytes] = field(factory=deque)
    turns: list[Turn] = field(factory=list)


@define(eq=False)
class Simulation:
    """Workers and their supervisor, as bytes pass between them."""

    slots: int | None = 1
    learns: bool = False
    now: float = 1.0
    boxes: AllBoxes = field(factory=AllBoxes)
    workers: dict[int, Worker] = field(factory=dict)
    said: deque[tuple[int, bytes]] = field(factory=deque)

    def start(self, number: int) -> Worker:
        link = BoxLink(lambda message: self.said.append((number, to_line(message))), lambda: self.now)
        made = self.workers[number] = Worker(link, link.lines.line(SERVER, self.slots, learns=self.learns))
        self.post(self.boxes.started(number, self.now))
        return made

    def post(self, messages: list[tuple[int, Any]]) -> None:
        for number, message in messages:
            if number in self.workers:
                self.workers[number].to.append(to_line(message))

    def hear(self) -> None:
        """The supervisor handles one message."""
        number, line = self.said.popleft()
        if number in self.workers:
            message: Any = FROM_WORKER.decode(line)
            self.post(self.boxes.received(number, message, self.workers, self.now))

    def read(self, worker: Worker) -> None:
        """A worker handles one message."""
        message: Any = TO_WORKER.decode(worker.to.popleft())
        worker.link.handle(message)

    def die(self, number: int) -> None:
        del self.workers[number]
        self.post(self.boxes.ended(number, self.workers, self.now))

    def settle(self) -> None:
        """Everything arrives."""
        while self.said or any(worker.to for worker in self.workers.values()):
            while self.said:
                self.hear()
            for worker in self.workers.values():
                while worker.to:
                    self.read(worker)

    def ask(self, number: int, model: str = "m", expected: float = 1.0, again: bool = False) -> Turn:
        worker = self.workers[number]
        turn = Turn(worker.line.of(model), expected, True, again=again)
        worker.turns.append(turn)
        worker.line.enter(turn, self.now)
        return turn

    def leave(self, number: int, turn: Turn, answered: bool = True) -> None:
        self.workers[number].line.leave(turn, self.now, answered=answered)

    def served(self) -> list[Turn]:
        turns = [turn for worker in self.workers.values() for turn in worker.turns]
        return [turn for turn in turns if turn.began_at is not None and not turn.ended]


def test_one_that_was_taken_back_is_the_next_of_all_workers() -> None:
    """See `test_line`."""
    simulation = Simulation(1)
    for number in (1, 2):
        simulation.start(number)
    turns = [simulation.ask(1), simulation.ask(2), simulation.ask(1, again=True)]
    simulation.settle()
    simulation.leave(1, turns[0])
    simulation.settle()
    assert [turn.began_at is not None for turn in turns] == [True, False, True]


STEP = st.tuples(
    st.sampled_from(["ask", "leave", "hear", "read", "settle", "die", "back"]), st.integers(0, 8), st.booleans()
)


@settings(max_examples=examples(150), deadline=None)
@given(st.integers(1, 3), st.lists(STEP, max_size=60))
def test_whatever_happens_nobody_is_forgotten(slots: int, steps: list[tuple[str, int, bool]]) -> None:
    """Whatever arrives when, whoever dies: never more than there are slots, and in the end all have had their turn."""
    simulation = Simulation(slots)
    for number in (1, 2, 3):
        simulation.start(number)
    for what, which, answered in steps:
        simulation.now += 1
        number = which % 3 + 1
        worker = simulation.workers[number]
        if what == "ask":
            simulation.ask(number)
        elif what == "leave" and worker.turns:
            simulation.leave(number, worker.turns[which % len(worker.turns)], answered)
        elif what == "hear" and simulation.said:
            simulation.hear()
        elif what == "read" and worker.to:
            simulation.read(worker)
        elif what == "settle":
            simulation.settle()
        elif what == "back":
            worker.line.server_recovered()
        elif what == "die":
            simulation.die(number)
            simulation.said = deque((each, line) for each, line in simulation.said if each != number)
            simulation.start(number)
        assert len(simulation.served()) <= slots
        assert worker.line.expected_wait(worker.line.of("m"), simulation.now, streams=answered) >= 0
    for _ in range(100):
        simulation.settle()
        served = simulation.served()
        for number, worker in simulation.workers.items():
            for turn in worker.turns:
                if turn in served:
                    simulation.leave(number, turn)
    turns = [turn for worker in simulation.workers.values() for turn in worker.turns]
    assert all(turn.ended for turn in turns)
    assert all(
        worker.line.expected_wait(worker.line.of("m"), simulation.now) == 0 for worker in simulation.workers.values()
    )
    assert all(each.is_idle for worker in simulation.workers.values() for each in worker.line.models.values())


def test_first_come_first_served_over_all_workers() -> None:
    """And each knows how long another one would wait."""
    simulation = Simulation(1)
    simulation.start(1), simulation.start(2)
    first, second, third = (
        simulation.ask(1, expected=8.0),
        simulation.ask(2, expected=4.0),
        simulation.ask(1, expected=2.0),
    )
    simulation.settle()
    assert [turn.began_at is not None for turn in (first, second, third)] == [True, False, False]
    simulation.now += 3
    assert [
        worker.line.expected_wait(worker.line.of("m"), simulation.now) for worker in simulation.workers.values()
    ] == [5 + 4 + 2] * 2
    assert [worker.line.limit(worker.line.of("m")) for worker in simulation.workers.values()] == [1, 1]
    late = simulation.start(3)
    simulation.settle()
    assert late.line.expected_wait(late.line.of("m"), simulation.now) == 11
    simulation.die(1)
    simulation.settle()
    assert second.began_at is not None
    assert late.line.expected_wait(late.line.of("m"), simulation.now) == 4


def test_a_new_number_of_slots_serves_who_waits() -> None:
    """Configured or reported, whichever worker says so first; and without one there is no limit."""
    for slots, served in ((3, 3), (None, 5)):
        for reported in (False, True):
            if reported and slots is None:
                continue
            simulation = Simulation(None if reported else 1)
            for number in (1, 2):
                simulation.start(number).line.report({"m": 1} if reported else {}, simulation.now)
            turns = [simulation.ask(n % 2 + 1) for n in range(5)]
            simulation.settle()
            assert len(simulation.served()) == 1
            line = simulation.workers[2].line
            line.report({"m": slots or 0}, simulation.now) if reported else line.configure(slots, simulation.now)
            simulation.settle()
            assert [turn.began_at is not None for turn in turns] == [n < served for n in range(5)]


def test_slots_are_learned_from_all() -> None:
    """A trial is one for all workers."""
    simulation = Simulation(None, learns=True)
    simulation.start(1), simulation.start(2)
    first = simulation.ask(1)
    simulation.settle()
    simulation.workers[1].line.began(first, simulation.now)
    simulation.now += 1
    simulation.settle()
    second, third = simulation.ask(2), simulation.ask(1)
    simulation.settle()
    assert (second.is_trial, second.began_at is not None, third.began_at) == (True, True, None)
    simulation.now += 1
    simulation.workers[2].line.began(second, simulation.now)
    simulation.settle()
    assert (third.is_trial, third.began_at is not None) == (True, True)
    assert {worker.line.limit(worker.line.of("m")) for worker in simulation.workers.values()} == {2}


def test_a_trial_hears_that_it_waits_no_longer() -> None:
    """When one that came before has ended, in whichever worker, or with it."""
    for dies in (False, True):
        simulation = Simulation(None, learns=True)
        simulation.start(1), simulation.start(2)
        first = simulation.ask(1)
        simulation.settle()
        simulation.workers[1].line.began(first, simulation.now)
        trial = simulation.ask(2)
        simulation.settle()
        assert (trial.is_trial, trial.waits) == (True, True)
        if dies:
            simulation.die(1)
        else:
            simulation.leave(1, first)
        simulation.settle()
        assert (trial.is_trial, trial.waits) == (True, False)


def test_a_line_without_a_limit_is_not_talked_about() -> None:
    """But when it has had one, as after an outage."""
    simulation = Simulation(None)
    simulation.start(1), simulation.start(2)
    turns = [simulation.ask(1) for _ in range(5)]
    while simulation.said:
        simulation.hear()
    assert (len(simulation.workers[1].to), len(simulation.workers[2].to)) == (5, 0)  # each has its turn
    simulation.settle()
    simulation.workers[1].line.server_recovered()
    for turn in turns[1:]:
        simulation.leave(1, turn, answered=False)
    simulation.ask(2)
    simulation.settle()
    assert simulation.workers[2].line.expected_wait(simulation.workers[2].line.of("m"), simulation.now) > 0
    simulation.leave(1, turns[0])
    for _ in range(RAMP_LIMIT + 1):
        turn = simulation.ask(1)
        simulation.settle()
        simulation.leave(1, turn)
    simulation.settle()
    assert simulation.workers[2].line.expected_wait(simulation.workers[2].line.of("m"), simulation.now) == 0


def test_a_server_comes_back_once() -> None:
    """Each worker finds it out for itself, with its next request; what the server has shown since then still counts."""
    simulation = Simulation(3)
    simulation.start(1), simulation.start(2)

    def served() -> int:
        simulation.settle()
        return len(simulation.served())

    simulation.workers[1].line.server_recovered()
    first = [simulation.ask(1) for _ in range(4)]
    assert served() == 1
    simulation.leave(1, first[0])
    assert served() == 2
    simulation.workers[2].line.server_recovered()
    simulation.ask(2)
    simulation.leave(1, first[1])
    assert served() == 3
    simulation.now += ONE_OUTAGE
    simulation.workers[2].line.server_recovered()
    simulation.leave(1, first[2])
    assert served() == 2


@define(eq=False)
class Loading:
    """A box with nothing loaded. ``loading``: by model, until the test sets the result."""

    clock: Any
    loading: dict[str, asyncio.Future[None]] = field(factory=dict)

    async def residents(self, seconds: float) -> tuple[Resident, ...]:
        return ()

    async def slots(self, loaded: Any, seconds: float) -> dict[str, int]:
        return {}

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        model = entry.target.model
        self.loading[model] = asyncio.get_running_loop().create_future()
        try:
            await self.loading[model]
        finally:
            del self.loading[model]

    async def close(self) -> None: ...


def test_names_that_clients_choose_are_forgotten() -> None:
    """By all: of models, and of servers that a reload has named."""
    simulation = Simulation(1)
    worker = simulation.start(1)
    for n in range(2 * MODELS_LIMIT):
        turn = simulation.ask(1, f"m{n}")
        simulation.settle()
        simulation.leave(1, turn)
    simulation.settle()
    assert len(worker.line._busy) <= MODELS_LIMIT
    for n in range(2 * LINES_LIMIT):
        line = worker.link.lines.line(f"gpu{n}", 1, learns=False)
        turn = Turn(line.of("m"), 1.0)
        line.enter(turn, 1.0)
        simulation.settle()
        line.leave(turn, 1.0, answered=True)
    simulation.settle()
    assert len(simulation.boxes._lines) <= LINES_LIMIT


async def test_one_load_for_all() -> None:
    """The next one loads if the first has died or gives up; the others hear how it ended."""
    simulation = Simulation(1)
    for number in (1, 2, 3):
        simulation.start(number)

    async def settle() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            simulation.settle()
        await asyncio.sleep(0)

    claims = [asyncio.ensure_future(worker.link.claim(SERVER, "m")) for worker in simulation.workers.values()]
    await settle()
    assert [claim.done() for claim in claims] == [True, False, False]
    simulation.die(1)
    await settle()
    assert [claim.done() for claim in claims] == [True, True, False]
    assert claims[1].result() is None
    simulation.workers[2].link.loaded(SERVER, "m", None)
    await settle()
    assert claims[2].result() is None
    again = asyncio.ensure_future(simulation.workers[2].link.claim(SERVER, "m:latest"))
    gone = asyncio.ensure_future(simulation.workers[2].link.claim(SERVER, "n"))
    await settle()
    assert (again.done(), gone.done()) == (False, True)
    simulation.workers[3].link.loaded(SERVER, "m", LoadEnd("failed", "no room"))
    await settle()
    assert again.result() == LoadEnd("failed", "no room")


async def test_one_load_at_a_time_where_the_next_would_end_it() -> None:
    """Of different models, too; whoever dies or gives up makes room. Elsewhere they are loaded side by side."""
    simulation, host = Simulation(1), Loading(lambda: 1.0)
    for number in (1, 2, 3):
        simulation.start(number)

    async def settle() -> list[str]:
        for _ in range(5):
            await asyncio.sleep(0)
            simulation.settle()
        return [*host.loading]

    def begin(number: int, model: str, **more: Any) -> Box:
        link = simulation.workers[number].link
        box = Box("gpu", host, lambda: 1.0, lambda event: None, loads=link, server=SERVER, **more)
        box.residency.observed((), 0.0)
        assert box.gate(Entry(Target("gpu", model), cold="next"), False) is not None
        return box

    boxes = [begin(number, model, alone=True) for number, model in ((1, "a"), (2, "b"), (3, "c"), (1, "b"))]
    assert await settle() == ["a"]
    host.loading["a"].set_result(None)
    assert await settle() == ["b"]
    await boxes[1].close()
    assert await settle() == ["b"]  # by the other worker that asked for it
    simulation.die(1)
    assert await settle() == ["b", "c"]  # nobody can tell what became of the first
    host.loading["c"].set_result(None)
    begin(2, "d", alone=True), begin(3, "e")
    assert await settle() == ["b", "d", "e"]
    await asyncio.gather(*(each.close() for each in boxes))
    for each in host.loading.values():
        each.cancel()
    await settle()
    assert not simulation.boxes._loads


@pytest.mark.parametrize("ends", [True, False], ids=["it ends", "its box is closed"])
async def test_two_of_one_worker_want_one_model(ends: bool) -> None:
    """A reload has changed a server's headers: its last requests have a box of their own. While another model was
    loaded, both waited; the second one was never told what became of its model, and could not load it any more."""
    simulation = Simulation(1)
    link = simulation.start(1).link

    def claim(model: str) -> asyncio.Future[LoadEnd | None]:
        return asyncio.ensure_future(link.claim(SERVER, model, alone=True))

    async def settle() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            simulation.settle()
        await asyncio.sleep(0)

    other, first, second = claim("a"), claim("b"), claim("b")
    await settle()
    assert [each.done() for each in (other, first, second)] == [True, False, False]
    end = LoadEnd("well")
    link.loaded(SERVER, "a", end)
    await settle()
    assert [each.done() for each in (first, second)] == [True, False]
    link.loaded(SERVER, "b", end if ends else None)
    await settle()
    assert second.done()
    assert second.result() == (end if ends else None)
    link.loaded(SERVER, "b", end)
    await settle()
    assert not simulation.boxes._loads


async def test_a_load_that_nobody_waits_for_is_given_back() -> None:
    """A worker that ends claims nothing any more, and stands in no one's way."""
    simulation = Simulation(1)
    simulation.start(1), simulation.start(2)
    left = asyncio.ensure_future(simulation.workers[1].link.claim(SERVER, "m"))
    other = asyncio.ensure_future(simulation.workers[2].link.claim(SERVER, "m"))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    simulation.settle()
    assert await other is None


async def test_a_load_that_was_granted_in_the_turn_of_the_end_is_given_back() -> None:
    """The word has come, and who waited for it is cancelled before it can read it."""
    simulation = Simulation(1)
    simulation.start(1), simulation.start(2)
    left, other = (asyncio.ensure_future(worker.link.claim(SERVER, "m")) for worker in simulation.workers.values())
    await asyncio.sleep(0)
    simulation.settle()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    simulation.settle()
    async with asyncio.timeout(1):
        assert await other is None


async def test_without_a_supervisor_each_goes_by_itself() -> None:
    """Those that wait have their turn, by this worker's own line, and loads are its own."""
    simulation = Simulation(1)
    worker = simulation.start(1)
    simulation.start(2)
    mine, other, waiting = simulation.ask(1, expected=0.0), simulation.ask(2), simulation.ask(1)
    simulation.settle()
    claim = asyncio.ensure_future(worker.link.claim(SERVER, "m"))
    await asyncio.sleep(0)
    worker.link.lost()
    assert (await claim, await worker.link.claim(SERVER, "m")) == (None, None)
    one_more = simulation.ask(1)
    served = [each.began_at is not None for each in (mine, waiting, one_more, other)]
    assert served == [True, False, False, False]
    simulation.leave(1, mine)
    assert waiting.began_at is not None
    assert worker.line.expected_wait(worker.line.of("m"), simulation.now) > 0


@define(eq=False)
class Host:
    """A box that has ``m`` loaded. ``looks``: when it was asked."""

    clock: Any
    looks: list[float] = field(factory=list)

    async def residents(self, seconds: float) -> tuple[Resident, ...]:
        self.looks.append(self.clock())
        return (Resident("m", 8, 8, 4096, 300.0),)

    async def slots(self, loaded: Any, seconds: float) -> dict[str, int]:
        return {}

    async def load(self, entry: Entry, *, pinned: bool) -> None:
        raise AssertionError("it is loaded")

    async def close(self) -> None: ...


async def test_what_a_reload_has_removed_is_forgotten() -> None:
    """A server's line and its box, but neither what came in their place nor what stays when a reload is refused."""
    simulation, entry = Simulation(1), Entry(Target("gpu", "m"))
    worker = simulation.start(1)
    first = weakref.ref(worker.line)
    boxes = [Box("gpu", Host(lambda: 1.0), lambda: 1.0, print, loads=worker.link, server=SERVER) for _ in range(2)]
    for each in (*boxes, *boxes):  # a reload starts again what it keeps
        each.start()
    await boxes[0].close()
    worker.link.handle(Seen(SERVER, 1.0, (Resident("m", 8, 8, 4096, 300.0),)))
    assert [each.residency.is_loaded(entry, 1.0) for each in boxes] == [None, True]
    await boxes[1].close()
    assert not worker.link._listeners

    refused = worker.link.lines.line(SERVER, 1, learns=False)
    del refused
    mine = simulation.ask(1)
    simulation.settle()
    assert worker.line.expected_wait(worker.line.of("m"), simulation.now) > 0
    simulation.leave(1, mine)
    simulation.settle()
    worker.line = worker.link.lines.line("cpu http://127.0.0.1:2", 1, learns=False)
    assert (first(), len(worker.link.lines._lines)) == (None, 1)


def test_one_looks_for_all() -> None:
    """With traffic in each of three workers the box is asked as often as by one; when that one ends, by another."""

    async def minutes() -> tuple[int, int]:
        clock = asyncio.get_running_loop().time
        simulation, host, entry = Simulation(1), Host(clock), Entry(Target("gpu", "m"))
        boxes = []
        for number in (1, 2, 3):
            link = simulation.start(number).link
            link.lag = LAG * (number - 1)
            boxes.append(Box("gpu", host, clock, lambda event: None, loads=link, server=SERVER))
            boxes[-1].start()

        async def traffic(seconds: int, number: int) -> int:
            before = len(host.looks)
            for _ in range(10 * seconds):
                assert [each.gate(entry, False) for each in boxes[number:]] == [None] * (3 - number)
                simulation.settle()
                await asyncio.sleep(0.1)
            return len(host.looks) - before

        await traffic(10, 0)  # nobody knows anything at first
        looks = await traffic(60, 0)
        await boxes[0].close()
        simulation.die(1)
        later = await traffic(60, 1)
        await asyncio.gather(*(each.close() for each in boxes))
        return looks, later

    assert [abs(each - 60 / POLL_BUSY) <= 3 for each in run(minutes())] == [True, True]
