"""How many slots a server has, learned from who overlapped with whom: against simulated servers, by the line itself."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulation.virtual_time import run
from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.provider_errors import QueueTimeout
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.line import Line, Turn
from manallm_proxy.routing.local_providers import LocalProviders
from manallm_proxy.routing.queues import Queue
from manallm_proxy.routing.slots import REST, REST_LONGEST, WAITS, Sign, Slots
from tests.examples import examples


@define(eq=False)
class Server:
    """Answers ``slots`` at a time, in the order in which they came, behind the line that learns. Seconds and tokens of
    each answer are random; with several at a time each is ``shared`` times slower for each of the others."""

    slots: int
    dice: random.Random
    streams: float = 1.0
    """Share of the requests."""
    first: tuple[float, float] = (0.2, 0.6)
    tokens: tuple[int, int] = (50, 150)
    shared: float = 0.1
    line: Line = field(factory=lambda: Line(None, learns=True))
    now: float = 0.0
    queued: deque[Turn] = field(factory=deque)
    busy: int = 0
    most: int = 0
    """Requests that waited in the server, at most at a time."""
    events: list[tuple[float, int, Callable[[], None]]] = field(factory=list)
    count: itertools.count[int] = field(factory=itertools.count)

    @property
    def learned(self) -> int:
        return self.line.of("m").slots.number

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.count), do))

    def ask(self) -> None:
        """A client that asks again whenever it has its answer."""
        turn = Turn(self.line.of("m"), 1.0, self.dice.random() < self.streams)
        turn.on_turn = lambda: self.sent(turn)
        self.line.enter(turn, self.now)

    def sent(self, turn: Turn) -> None:
        self.queued.append(turn)
        self.work()

    def work(self) -> None:
        while self.queued and self.busy < self.slots:
            turn, tokens = self.queued.popleft(), self.dice.randint(*self.tokens)
            self.busy += 1
            slower = 1 + self.shared * (self.busy - 1)
            first = self.dice.uniform(*self.first) * slower
            if turn.streams:
                # mypy knows no defaults of a lambda
                self.at(first, lambda turn=turn: self.line.began(turn, self.now))  # type: ignore[misc]
            # mypy knows no defaults of a lambda
            self.at(first + tokens * 0.02 * slower, lambda turn=turn, n=tokens: self.done(turn, n))  # type: ignore[misc]
        self.most = max(self.most, len(self.queued))

    def done(self, turn: Turn, tokens: int) -> None:
        self.busy -= 1
        self.work()
        self.line.leave(turn, self.now, answered=True, tokens=tokens)
        self.at(self.dice.expovariate(20), self.ask)

    def run(self, clients: int, seconds: float) -> None:
        for _ in range(clients):
            self.at(self.dice.random(), self.ask)
        end = self.now + seconds
        while self.events and self.events[0][0] < end:
            self.now, _, do = heapq.heappop(self.events)
            do()
        self.now = end


def few(usual: int) -> int:
    """Simulated hours, the same ones each time: more of them are no other run's."""
    return min(examples(usual), usual)


@settings(max_examples=few(15), deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(0.0, 0.2), st.integers(0, 4))
def test_streams_show_how_many_slots_there_are(slots: int, seed: int, shared: float, more: int) -> None:
    """All of them within half an hour, never one too many, and at most one request waits where we cannot see it."""
    server, seen = Server(slots, random.Random(seed), shared=shared), set[int]()
    for _ in range(5):
        server.run(slots + more + 1 if not server.now else 0, 360)
        seen.add(server.learned)
    # one may be doubted again for a while (2708: the last of six), since all that is known is how long answers take
    assert (max(seen), server.most <= 1) == (slots, True)


@settings(max_examples=few(10), deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_whole_answers_show_it_too(slots: int, seed: int, streams: float) -> None:
    """Though only their ends can be seen."""
    server = Server(slots, random.Random(seed), streams=streams, shared=0.05)
    server.run(slots + 3, 3600)
    assert server.learned == slots


@settings(max_examples=few(10), deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_long_prompts_with_short_answers_prove_nothing_wrong(slots: int, seed: int) -> None:
    """Where an answer is hardly longer than its first word, fewer slots may be seen than there are, never more."""
    server = Server(slots, random.Random(seed), first=(0.2, 4.0), tokens=(1, 3), shared=0.3)
    server.run(slots + 3, 1800)
    assert 1 <= server.learned <= slots


def test_a_server_that_has_fewer_than_before() -> None:
    """Is not flooded for long; and whoever has more again is found out."""
    server = Server(4, random.Random(1))
    server.run(8, 300)
    assert server.learned == 4
    server.slots = 2
    server.run(0, 300)
    assert (server.learned, len(server.queued) <= 1) == (2, True)
    server.slots = 3
    server.run(0, 2 * REST_LONGEST)
    assert server.learned == 3


def test_trials_become_rare() -> None:
    """A day before a server with one slot: each of them might have gone elsewhere."""
    server, trials = Server(1, random.Random(2), tokens=(500, 500)), set[Turn]()
    for _ in range(86_400 // 10):
        server.run(0 if server.now else 5, 10)
        trials |= {turn for turn in [server.line.of("m").trial] if turn is not None}
    assert server.learned == 1
    assert 5 <= len(trials) <= 86_400 / REST_LONGEST + 10


def test_nothing_is_tried_before_the_usual_time_is_known() -> None:
    """And after a trial that failed only when it has rested, or after an outage."""
    slots = Slots()
    assert not slots.may_try(True, 0.0)
    slots.shown(Sign(0, 0, 1.0), 1.0)
    assert (slots.may_try(True, 1.0), slots.may_try(False, 1.0)) == (True, False)
    slots.shown(Sign(0, 0, 6.0, tokens=60), 1.0)
    assert slots.may_try(False, 1.0)
    slots.shown(Sign(1, 0, 1.1), 2.0)  # it may have waited or not: the earlier one had hardly anything left
    assert slots.may_try(True, 2.0)
    slots.shown(Sign(1, 0, 9.0), 10.0)
    assert [slots.may_try(True, 10.0 + seconds) for seconds in (0, REST - 1, REST)] == [False, False, True]
    slots.failed(50.0)
    assert not slots.may_try(True, 50.0 + REST)
    slots.server_recovered()
    assert slots.may_try(True, 51.0)


def test_an_overlap_ends_a_row_of_waits() -> None:
    """So a request that was slow for other reasons lowers nothing."""
    slots = Slots(3)
    slots.shown(Sign(0, 0, 1.0), 0.0)
    for _ in range(3):
        for _ in range(WAITS - 1):
            slots.shown(Sign(2, 0, 9.0), 0.0)
        slots.shown(Sign(2, 2, 1.0), 0.0)
    assert slots.number == 3
    for still in (0, 1, 0, 0, 0):
        slots.shown(Sign(2, still, 9.0), 0.0)
    assert slots.number == 2


def test_what_is_said_is_not_learned() -> None:
    """And where nobody asks for it there is no limit."""
    for line, served in ((Line(2, learns=True), 2), (Line(None), 5)):
        turns = [Turn(line.of("m"), 1.0, True) for _ in range(5)]
        for turn in turns:
            line.enter(turn, 0.0)
        for turn in turns[:served]:
            line.began(turn, 1.0)
        assert sum(turn.began_at is not None for turn in turns) == served
        assert line.of("m").slots.number == 1


def test_what_ollama_hands_on_has_no_slots() -> None:
    """A model of its cloud runs elsewhere."""
    line = Line(None, learns=True)
    turns = [Turn(line.of("m:120b-cloud"), 1.0, True) for _ in range(5)]
    for turn in turns:
        line.enter(turn, 0.0)
    assert [(turn.began_at, turn.is_trial) for turn in turns] == [(0.0, False)] * 5
    assert line.limit(line.of("m:120b-cloud")) is None


def test_a_trial_that_ends_without_a_sign_has_failed() -> None:
    """Its client left, or it was taken back since it had waited long enough."""
    line = Line(None, learns=True)
    first, second, third = (Turn(line.of("m"), 9.0, True) for _ in range(3))
    line.enter(first, 0.0)
    line.began(first, 1.0)
    line.enter(second, 2.0)
    assert (second.is_trial, second.trial_timeout) == (True, 1.5)
    line.leave(second, 5.0, answered=False)
    line.enter(third, 6.0)
    assert (third.began_at, line.expected_wait(line.of("m"), 6.0, streams=True) > 0) == (None, True)
    line.leave(first, 9.0, answered=True)
    assert third.began_at == 9.0


def test_a_whole_answer_is_a_trial_only_if_it_would_have_its_turn_in_time() -> None:
    """As far as can be told: nothing shows how long it waits with the server, but that an earlier one has ended."""
    line = Line(None, learns=True)
    model = line.of("m")
    first, late, soon = (Turn(model, 9.0, until=until) for until in (None, 5.0, 10.0))
    alone = Turn(model, 9.0)
    line.enter(alone, 0.0)
    line.leave(alone, 9.0, answered=True, tokens=90)  # so its time is known
    line.enter(first, 0.0)
    line.enter(late, 1.0)
    assert (late.began_at, first.is_trial) == (None, False)
    line.leave(late, 2.0, answered=False)
    line.enter(soon, 2.0)
    assert (soon.began_at, soon.is_trial, soon.waits) == (2.0, True, True)
    line.leave(first, 8.0, answered=True)
    assert not soon.waits


def test_a_trial_is_taken_back_while_it_may_wait() -> None:
    """With the server, when it should move on; once an earlier one has ended it has its slot, and stays."""
    call = Call(Endpoint.CHAT, RequestSummary("m", False, False, frozenset(), {}), b"{}" * 500, "id-1")
    entry = Entry(Target("gpu", "m"), max_wait=1.0)

    async def case(earlier: float) -> str:
        clock = asyncio.get_running_loop().time
        line = Line(None, learns=True)
        local = LocalProviders(queues={"gpu": Queue(clock, Health(), line)})

        async def asked(seconds: float) -> Answer:
            async def ask(entry: Entry) -> Answer:
                await asyncio.sleep(seconds)
                return Answer(None, Usage(100, 10))

            gates = local.gates(call)
            assert gates.gate(entry, lambda entry: False) is None
            return await gates.in_turn(ask, lambda entry: False)(entry)

        await asked(2.0)
        first = asyncio.ensure_future(asked(earlier))
        await asyncio.sleep(1.5)
        began, trial = clock(), asyncio.ensure_future(asked(9.0))
        await asyncio.sleep(0)
        assert line.of("m").trial is not None
        try:
            await trial
        except QueueTimeout:
            assert clock() - began == 1.0
            return "taken back"
        finally:
            await first
        return "stayed"

    assert [run(case(seconds)) for seconds in (2.0, 2.4, 2.6, 9.0)] == ["stayed", "stayed", "taken back", "taken back"]


def test_a_trial_teaches_no_pace() -> None:
    """It may have waited with the server, which is no part of what an answer takes."""
    now = 0.0
    queue, entry = Queue(lambda: now, Health(), Line(None, learns=True)), Entry(Target("gpu", "m"))

    first = queue.enter(entry, False, 1000, streams=True)
    now = 1.0
    queue.began(first)
    second = queue.enter(entry, False, 1000, streams=True)
    now = 11.0
    queue.end(first, Usage(100, 100))
    queue.began(second)
    now = 20.0
    queue.end(second, Usage(100, 100))
    assert (first.is_trial, second.is_trial) == (False, True)
    assert queue.line.of("m").pace.prompt_token == 0.01
