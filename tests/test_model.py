"""The walk and health as a machine: any order of requests, outcomes, probes and time, many requests at once.

What must hold after every step: no permit is lost or counted twice, a trial has one holder, the attempt log tells
every target once and in order, and nobody is asked after an answer. At the end: nothing is stuck for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.events import Event, HealthChanged
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    ContentBlocked,
    ContextTooLong,
    Disconnected,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    ModelFailed,
    PaymentRequired,
    ProviderError,
    RateLimited,
    ReadTimeout,
    RequestRejected,
    RetryableStatus,
    ServerBusy,
    ServerFailed,
    StreamInterrupted,
    Unsupported,
)
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.circuit import COOLING_QUOTA, Circuit, Policy
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.health import Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry

TARGETS = [Target(provider, model) for provider in ("a", "b", "c") for model in ("m", "n")]
ENDS_WALK = [KeyRejected, Unsupported, ContentBlocked]
SAID = [ContextTooLong, MissingModel, PaymentRequired, RequestRejected]
MOVES_ON = [
    *(ConnectFailed, ConnectTimeout, FirstByteTimeout, ReadTimeout, Disconnected, BadResponse),
    *(ServerFailed, ModelFailed, ServerBusy, RateLimited, RetryableStatus),
]
WIDER = ["auth", "payment", "missing_model", "capability", "context_length", "409"]
failures = (
    st.builds(lambda kind, wait: kind("x", retry_after=wait), st.sampled_from(MOVES_ON), st.none() | st.floats(0, 1e9))
    | st.builds(lambda kind: kind("x"), st.sampled_from(ENDS_WALK))
    | st.builds(lambda kind, status: kind("x", provider_status=status), st.sampled_from(SAID), st.integers(400, 428))
)
others = st.sampled_from([asyncio.CancelledError, InvalidRequest, RuntimeError]).map(lambda kind: kind("x"))
chains = st.lists(
    st.builds(
        lambda target, wider: Entry(target, fallback_on=frozenset(wider)),
        st.sampled_from(TARGETS),
        st.lists(st.sampled_from(WIDER), max_size=3),
    ),
    min_size=1,
    max_size=4,
)


class _Pause:
    """What an attempt waits for; the machine goes on with a value or an exception."""

    def __await__(self) -> Generator[None, str, str]:
        return (yield)


@define(eq=False)
class Running:
    """One request on its way."""

    walk: Walk
    steps: Coroutine[Any, Any, Attempt[str]]
    asked: list[Entry] = field(factory=list)

    async def attempt(self, entry: Entry) -> str:
        self.asked.append(entry)
        return await _Pause()


@define(eq=False)
class Answering:
    """One request whose answer is being relayed."""

    served: Attempt[str]
    began: bool = False


class Machine(RuleBasedStateMachine):
    """One proxy's state."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.told: list[Event] = []
        self.running: list[Running] = []
        self.answering: list[Answering] = []
        self.count = 0

    @initialize(threshold=st.integers(1, 3), most=st.none() | st.integers(1, 2))
    def configure(self, threshold: int, most: int | None) -> None:
        policy = Policy(threshold, 60.0)
        self.healths = {"a": Health(policy), "b": Health(policy, max_concurrent=most), "c": Health(policy)}
        self.registry = HealthRegistry(self.healths, lambda: self.now, self.told.append)

    @rule(entries=chains)
    def ask(self, entries: list[Entry]) -> None:
        """A request arrives; it runs to its first attempt, or to its end."""
        self.count += 1
        walk = Walk(Chain("mana/x", tuple(entries)), self.registry, str(self.count))
        one = Running(walk, None)  # type: ignore[arg-type]  # it needs itself
        one.steps = walk.run(one.attempt, "mana/x")
        self.running.append(one)
        self.go_on(one, None)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), error=failures)
    def an_attempt_fails(self, data: st.DataObject, error: ProviderError) -> None:
        one = data.draw(st.sampled_from(self.running), "which")
        self.go_on(one, error)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), error=others)
    def a_request_ends_otherwise(self, data: st.DataObject, error: BaseException) -> None:
        """The client leaves, or there is a bug."""
        one = data.draw(st.sampled_from(self.running), "which")
        self.go_on(one, error)
        assert one not in self.running

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def an_attempt_answers(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running), "which")
        self.go_on(one, "answer")
        assert one not in self.running

    def go_on(self, one: Running, outcome: BaseException | str | None) -> None:
        """One step of a walk, and what must hold of its log after it."""
        ended: BaseException | None = None
        try:
            if isinstance(outcome, BaseException):
                one.steps.throw(outcome)
            else:
                one.steps.send(outcome)
        except BaseException as error:  # how it ended is looked at below
            ended = error
        failed = len(one.asked) - 1
        if ended is not None:
            self.running.remove(one)
        if isinstance(ended, StopIteration):
            assert ended.value.entry is one.asked[-1]
            self.answering.append(Answering(ended.value))
        elif isinstance(ended, NoProvider):
            assert outcome is None or isinstance(outcome, ProviderError)
            assert ended.attempts is one.walk.log
            assert len(one.walk.log) == len(one.walk.chain)
            failed = len(one.asked)
        else:
            assert ended is None or ended is outcome
        log = one.walk.log
        assert one.walk.tried == len(one.asked)
        assert [line.model for line in log] == [str(entry.target) for entry in one.walk.chain][: len(log)]
        assert len([line for line in log if line.duration is not None]) == failed
        assert len(log) <= len(one.walk.chain)

    @precondition(lambda self: self.answering)
    @rule(data=st.data())
    def an_answer_begins(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.answering), "which")
        self.registry.began(one.served.entry.target, one.served._permit)
        one.began = True

    @precondition(lambda self: self.answering)
    @rule(data=st.data(), how=st.sampled_from(["served", "broken", "left"]))
    def an_answer_ends(self, data: st.DataObject, how: str) -> None:
        """Whatever is called on it after that has no effect."""
        one = data.draw(st.sampled_from(self.answering), "which")
        self.answering.remove(one)
        target, permit = one.served.entry.target, one.served._permit
        if how == "served":
            self.registry.served(target, permit)
        elif how == "broken":
            self.registry.failed(target, permit, StreamInterrupted("x"))
        permit.released()
        self.registry.note(target.provider)  # what time alone has changed is reported now
        before = repr(self.healths)
        permit.served(self.now)
        permit.failed(Disconnected("x"), self.now)
        assert repr(self.healths) == before

    @rule(provider=st.sampled_from(["a", "b", "c"]), alive=st.booleans())
    def a_probe_ends(self, provider: str, alive: bool) -> None:
        self.registry.probed(provider, None if alive else ConnectFailed("x"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 15.0, 59.9, 60.0, 300.0, 1e6]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_scrape(self) -> None:
        """Reading changes nothing."""
        before = repr(self.healths)
        for health in self.healths.values():
            health.status(self.now)
            health.is_usable(self.now)
        self.registry.again_in(TARGETS)
        assert repr(self.healths) == before

    def permits(self) -> list[Permit]:
        """All that are open: of answers, and of attempts, whose permit only the coroutine's frame knows."""
        held = [one.served._permit for one in self.answering]
        frames: list[Any] = [one.steps.cr_frame for one in self.running]  # type: ignore[attr-defined]  # async def's
        return held + [frame.f_locals["verdict"] for frame in frames]

    @invariant()
    def permits_are_counted(self) -> None:
        if not self.count:
            return
        open_now = self.permits()
        for health in self.healths.values():
            mine = [permit for permit in open_now if permit._health is health]
            assert health.in_flight == len(mine)
            if health.max_concurrent is not None:
                assert len(mine) <= health.max_concurrent
            circuits: list[Circuit] = [health.provider, *health.targets.values()]
            for circuit in circuits:
                holders = sum(any(circuit is tried for tried in permit._trial_of) for permit in mine)
                assert holders == circuit.on_trial, "a trial is held by one request, or by none"

    @invariant()
    def changes_are_told_in_a_row(self) -> None:
        last: dict[tuple[str, str | None], str] = {}
        for event in self.told:
            if isinstance(event, HealthChanged):
                key = (event.provider, event.model)
                assert event.was == last.get(key, "healthy") != event.now
                last[key] = event.now

    def teardown(self) -> None:
        """All requests end, time passes: every target may be tried, and one good answer each heals it wholly."""
        if not self.count:
            return
        for one in list(self.running):
            self.go_on(one, asyncio.CancelledError())
        for answering in self.answering:
            answering.served._permit.released()
        self.answering.clear()
        self.permits_are_counted()
        self.now += max(60.0, COOLING_QUOTA) + 1
        for target in TARGETS:
            permit = self.registry.admit(target)
            assert isinstance(permit, Permit), f"{target} is locked out: {permit}"
            self.registry.served(target, permit)
        for health in self.healths.values():
            assert (health.status(self.now), health.in_flight) == ("healthy", 0)


TestWalksAndHealth = Machine.TestCase
TestWalksAndHealth.settings = settings(stateful_step_count=60)
