"""One provider's health in several processes: what one finds out, the others apply."""

from __future__ import annotations

from collections import deque
from functools import partial

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from manallm_proxy.contract.events import Event, HealthChanged
from manallm_proxy.contract.provider_errors import (
    ConnectFailed,
    MissingModel,
    ModelFailed,
    ProviderError,
    RateLimited,
    ServerFailed,
)
from manallm_proxy.contract.targets import Target
from manallm_proxy.routing.circuit import Policy, SharedState, Skip
from manallm_proxy.routing.health import TARGETS_LIMIT, Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry

REFUSED, BROKEN, CRASHED = ConnectFailed("x"), ServerFailed("x"), ModelFailed("x")
MISSING = MissingModel("x", provider_status=404)


@define(eq=False)
class Workers:
    """The registry of each worker, all of one provider, and the updates on their way from each to the others."""

    number: int = 3
    policy: Policy = Policy(2, 60.0)
    now: float = 1000.0
    skew: list[float] = field(factory=lambda: [0.0, 0.0, 0.0])
    """How far each one's clock is behind: a loop's time stands while it is busy."""
    registries: list[HealthRegistry] = field(factory=list)
    lines: list[deque[tuple[str, str | None, SharedState]]] = field(factory=list)
    """Updates that each has yet to receive, in the order in which they were sent."""
    told: list[HealthChanged] = field(factory=list)
    sent: int = 0

    def __attrs_post_init__(self) -> None:
        for me in range(self.number):
            health = {"gpu": Health(self.policy)}
            self.lines.append(deque())
            self.registries.append(HealthRegistry(health, partial(self._time_of, me), self._note, self._teller(me)))

    def _time_of(self, me: int) -> float:
        return self.now - self.skew[me]

    def _note(self, event: Event) -> None:
        assert isinstance(event, HealthChanged)
        self.told.append(event)

    def _teller(self, me: int):  # type: ignore[no-untyped-def]  # a `health_registry.Broadcast`
        def tell(provider: str, model: str | None, update: SharedState) -> None:
            self.sent += 1
            for other in range(self.number):
                if other != me:
                    self.lines[other].append((provider, model, update))

        return tell

    def health(self, me: int) -> Health:
        return self.registries[me].providers["gpu"]

    def fail(self, me: int, error: ProviderError, model: str = "m") -> None:
        got = self.registries[me].admit(Target("gpu", model))
        assert isinstance(got, Permit), got
        self.registries[me].failed(Target("gpu", model), got, error)

    def serve(self, me: int, model: str = "m") -> None:
        got = self.registries[me].admit(Target("gpu", model))
        assert isinstance(got, Permit), got
        self.registries[me].began(Target("gpu", model), got)
        self.registries[me].served(Target("gpu", model), got)

    def refused(self, me: int, model: str = "m") -> str | None:
        got = self.registries[me].admit(Target("gpu", model))
        if isinstance(got, Skip):
            return got.reason
        got.released()
        return None

    def hear(self, me: int) -> None:
        while self.lines[me]:
            self.registries[me].merge_update(*self.lines[me].popleft())

    def all_hear(self) -> None:
        for me in range(self.number):
            self.hear(me)


@pytest.mark.parametrize("error", [REFUSED, BROKEN])
def test_one_finds_out_for_all(error: ProviderError) -> None:
    """The others skip the provider at once, for as long, and there is one log line."""
    workers = Workers()
    workers.fail(0, error)
    workers.all_hear()
    assert (workers.sent, workers.refused(1)) == (0, None)
    workers.fail(0, error)
    workers.all_hear()
    workers.now += 59.9
    assert [workers.refused(me) for me in range(3)] == ["unhealthy"] * 3
    workers.now += 0.1
    assert [workers.refused(me) for me in range(3)] == [None] * 3
    assert [(e.was, e.now) for e in workers.told] == [("healthy", "unhealthy")]


def test_one_finds_it_well_for_all() -> None:
    """A trial's success is everybody's: none but the first had to try."""
    workers = Workers()
    workers.fail(0, BROKEN)
    workers.fail(0, BROKEN)
    workers.all_hear()
    workers.now += 60.0
    workers.serve(1)
    workers.all_hear()
    assert [workers.health(me).status(workers.now) for me in range(3)] == ["healthy"] * 3
    assert [(e.was, e.now) for e in workers.told] == [("healthy", "unhealthy"), ("unhealthy", "healthy")]
    assert [each.shared for each in map(workers.health, range(3))] == [{}, {}, {}]


def test_a_failed_trial_is_everybodys() -> None:
    """So that each backoff costs one request, not one of each worker."""
    workers = Workers()
    workers.fail(0, REFUSED)
    workers.fail(0, REFUSED)
    workers.all_hear()
    workers.now += 60.0
    workers.fail(2, REFUSED)
    workers.all_hear()
    assert [workers.refused(me) for me in range(3)] == ["unhealthy"] * 3
    assert len(workers.told) == 1


def test_one_trial_is_under_way_while_another_finds_out() -> None:
    """Its place is its own, and is free again at its end."""
    workers = Workers()
    workers.fail(0, BROKEN)
    workers.fail(0, BROKEN)
    workers.all_hear()
    workers.now += 60.0
    trial = workers.registries[1].admit(Target("gpu", "m"))
    assert isinstance(trial, Permit)
    workers.fail(2, BROKEN)
    workers.all_hear()
    workers.now += 60.0
    assert workers.refused(1) == "unhealthy"
    trial.released()
    assert workers.refused(1) is None


def test_a_target_cools_for_all() -> None:
    """Its neighbours not; it ends by time, and is reported once."""
    workers = Workers()
    workers.fail(0, RateLimited("x", retry_after=20.0))
    workers.all_hear()
    assert [workers.refused(me) for me in range(3)] == ["cooling"] * 3
    assert workers.refused(1, "other") is None
    workers.now += 20.0
    assert [workers.refused(me) for me in range(3)] == [None] * 3
    for me in range(3):
        workers.serve(me)
        workers.all_hear()
    assert [(e.model, e.now) for e in workers.told] == [("m", "cooling"), ("m", "healthy")]
    assert [workers.health(me).targets for me in range(3)] == [{}, {}, {}]


def test_an_update_is_not_sent_on() -> None:
    """Nor is what is known already, so that updates do not circle."""
    workers = Workers()
    workers.fail(0, CRASHED)
    workers.fail(0, CRASHED)
    assert workers.sent == 1
    workers.all_hear()
    for me in range(3):
        workers.registries[me].note("gpu")
    assert workers.sent == 1
    assert [workers.refused(me) for me in range(3)] == ["unhealthy"] * 3


def test_two_targets_of_two_workers_open_their_provider() -> None:
    """Each saw one fall: together they speak against it, and the third spares itself both."""
    workers = Workers()
    for me, model in ((0, "a"), (1, "b")):
        workers.fail(me, BROKEN, model)
        workers.fail(me, BROKEN, model)
        workers.all_hear()
    assert [workers.refused(me, "c") for me in range(3)] == ["unhealthy"] * 3
    assert sorted((e.model or "", e.now) for e in workers.told) == [(each, "unhealthy") for each in ("", "a", "b")]


def test_they_may_cross_on_their_way() -> None:
    """Neither knew of the other's: each worker that receives both combines them, and all reach the same state."""
    workers = Workers()
    for me, model in ((0, "a"), (1, "b")):
        workers.fail(me, BROKEN, model)
        workers.fail(me, BROKEN, model)
    for _ in range(3):
        workers.all_hear()
    assert [workers.refused(me, "c") for me in range(3)] == ["unhealthy"] * 3
    assert len({workers.health(me).provider.open_until for me in range(3)}) == 1


@pytest.mark.parametrize("heard", [True, False])
def test_what_another_serves_between_them_clears_their_provider(heard: bool) -> None:
    """Whether or not it had heard of the first, for it was served later than that fell."""
    workers = Workers()
    workers.fail(0, BROKEN, "a")
    workers.fail(0, BROKEN, "a")
    if heard:
        workers.all_hear()
    workers.now += 1.0
    workers.serve(2, "c")
    workers.all_hear()
    workers.registries[2].note("gpu")
    workers.all_hear()
    workers.now += 1.0
    workers.fail(1, BROKEN, "b")
    workers.fail(1, BROKEN, "b")
    workers.all_hear()
    assert [workers.refused(me, "c") for me in range(3)] == [None] * 3
    assert [workers.refused(me, "a") for me in range(3)] == ["unhealthy"] * 3


def test_models_that_are_not_there_say_nothing_to_others_either() -> None:
    """Each is skipped for itself."""
    workers = Workers()
    for me, model in ((0, "a"), (1, "b"), (2, "d")):
        workers.fail(me, MISSING, model)
        workers.fail(me, MISSING, model)
        workers.all_hear()
    assert [workers.refused(me, "c") for me in range(3)] == [None] * 3


def test_the_later_finding_counts() -> None:
    """Two updates cross on their way: both workers reach the same state, even if one's clock is late."""
    workers = Workers()
    workers.fail(0, BROKEN)
    workers.fail(0, BROKEN)
    workers.all_hear()
    workers.now += 60.0
    trials = [workers.registries[me].admit(Target("gpu", "m")) for me in range(2)]
    first, second = trials
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    workers.registries[0].failed(Target("gpu", "m"), first, BROKEN)
    workers.skew[1] = 0.01
    workers.registries[1].served(Target("gpu", "m"), second)
    workers.all_hear()
    assert len({workers.health(me).provider.open_until for me in range(3)}) == 1


def test_an_unknown_provider_is_nobodys() -> None:
    """Another worker has reloaded already."""
    workers = Workers()
    workers.registries[0].merge_update("new", None, SharedState(1.0, 61.0))
    assert workers.health(0).shared == {}


def test_names_that_clients_make_up_are_forgotten_in_turn() -> None:
    """What is kept of others' findings is bounded too."""
    health = Health()
    for number in range(3 * TARGETS_LIMIT):
        assert health.merge_update(f"m{number}", SharedState(float(number), cooling_until=1e9))
    assert (len(health.targets), len(health.shared)) == (TARGETS_LIMIT, TARGETS_LIMIT)
    for number in range(3 * TARGETS_LIMIT):  # and of what is well again
        at = 1000.0 + number
        assert health.merge_update(f"n{number}", SharedState(at, cooling_until=1e9))
        assert health.merge_update(f"n{number}", SharedState(at + 0.5))
    assert len(health._cleared) == TARGETS_LIMIT


def test_alone_nothing_is_noted() -> None:
    """Where there are no others."""
    health = Health(Policy(1))
    registry = HealthRegistry({"gpu": health}, lambda: 0.0, lambda event: None)
    registry.probed("gpu", REFUSED)
    assert health.shared == {}


class AnyOrder(RuleBasedStateMachine):
    """Whatever each sees and whenever it hears: in the end all go by the same, and nobody is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = Workers()

    @rule(
        me=st.integers(0, 2),
        model=st.sampled_from(["a", "b"]),
        error=st.sampled_from([None, REFUSED, BROKEN, CRASHED, MISSING, RateLimited("x")]),
    )
    def request(self, me: int, model: str, error: ProviderError | None) -> None:
        if self.workers.refused(me, model) is not None:
            return
        if error is None:
            self.workers.serve(me, model)
        else:
            self.workers.fail(me, error, model)

    @rule(me=st.integers(0, 2), model=st.sampled_from(["a", "b"]), error=st.sampled_from([BROKEN, MISSING]))
    def fall(self, me: int, model: str, error: ProviderError) -> None:
        for _ in range(2):
            self.request(me, model, error)

    @rule(me=st.integers(0, 2), error=st.sampled_from([None, REFUSED]))
    def probe(self, me: int, error: ProviderError | None) -> None:
        self.workers.registries[me].probed("gpu", error)

    @rule(me=st.integers(0, 2))
    def hear(self, me: int) -> None:
        self.workers.hear(me)

    @rule(seconds=st.sampled_from([0.001, 1.0, 16.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.workers.now += seconds

    @rule(me=st.integers(0, 2), seconds=st.sampled_from([0.0, 0.01]))
    def lag(self, me: int, seconds: float) -> None:
        self.workers.skew[me] = seconds

    def teardown(self) -> None:
        workers = self.workers
        workers.skew = [0.0, 0.0, 0.0]
        workers.all_hear()
        for me in range(3):
            workers.registries[me].note("gpu")
            workers.all_hear()
        for model in (None, "a", "b"):
            views = [h.provider if model is None else h.targets.get(model) for h in map(workers.health, range(3))]
            assert len({view.open_until if view is not None else None for view in views}) == 1
            assert len({view is not None and view.is_cooling(workers.now) for view in views}) == 1
        workers.now += 1000.0
        assert [workers.refused(me, model) for me in range(3) for model in "ab"] == [None] * 6


AnyOrder.TestCase.settings = settings(stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase
