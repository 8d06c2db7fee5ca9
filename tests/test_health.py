"""The file that decides, with a number as clock."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manallm_proxy.board import Board
from manallm_proxy.chain import Target
from manallm_proxy.errors import (
    ConnectFailed,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    ModelFailed,
    NotImplementedByProvider,
    ProviderError,
    RateLimited,
    ServerBusy,
    ServerFailed,
    SlowModel,
)
from manallm_proxy.events import Event, HealthChanged
from manallm_proxy.health import TARGETS_LIMIT, Health, Permit, Policy, Skip

REFUSED, BROKEN, CRASHED = ConnectFailed("x"), ServerFailed("x"), ModelFailed("x")


def permit(health: Health, now: float = 0.0, model: str = "m") -> Permit:
    got = health.admit(model, now)
    assert isinstance(got, Permit), got
    return got


def fail(health: Health, error: ProviderError, now: float = 0.0, model: str = "m") -> None:
    permit(health, now, model).failed(error, now)


def refused(health: Health, now: float = 0.0, model: str = "m") -> str | None:
    got = health.admit(model, now)
    if isinstance(got, Skip):
        return got.reason
    got.released()
    return None


def test_two_failures_in_a_row_open_the_circuit() -> None:
    """One is degraded, two are unhealthy, for the backoff."""
    health = Health()
    fail(health, REFUSED, 0.0)
    assert (health.status(0.0), refused(health)) == ("degraded", None)
    fail(health, BROKEN, 1.0)
    assert (health.status(1.0), refused(health, 60.9)) == ("unhealthy", "unhealthy")
    assert refused(health, 61.0) is None


def test_a_served_request_in_between_begins_anew() -> None:
    """In a row means in a row."""
    health = Health()
    fail(health, BROKEN)
    permit(health).served(0.0)
    fail(health, BROKEN)
    assert health.status(0.0) == "degraded"


def test_half_open_lets_one_request_try() -> None:
    """While it tries nobody else may; its success closes."""
    health = Health()
    fail(health, BROKEN)
    fail(health, BROKEN)
    trial = permit(health, 60.0)
    assert refused(health, 60.0) == "unhealthy"
    trial.served(61.0)
    assert (health.status(61.0), refused(health, 61.0)) == ("healthy", None)


def test_a_failed_trial_opens_for_the_whole_backoff() -> None:
    """Not for what was left of the old one."""
    health = Health()
    fail(health, BROKEN)
    fail(health, BROKEN)
    fail(health, BROKEN, 70.0)
    assert refused(health, 129.9) == "unhealthy"
    assert refused(health, 130.0) is None


def test_the_trials_place_comes_back_on_every_exit() -> None:
    """A client that left while it tried must not lock the provider out for ever."""
    health = Health()
    fail(health, BROKEN)
    fail(health, BROKEN)
    permit(health, 60.0).released()
    assert refused(health, 60.0) is None
    fail(health, KeyRejected("x"), 60.0)
    assert refused(health, 60.0) is None
    assert health.in_flight == 0


def test_a_trial_that_has_begun_to_answer_lets_others_pass() -> None:
    """A long stream is no reason to keep all others away; should it break, the circuit opens at once."""
    health = Health()
    fail(health, BROKEN)
    fail(health, BROKEN)
    trial = permit(health, 60.0)
    trial.began()
    assert refused(health, 60.0) is None
    trial.failed(BROKEN, 90.0)
    assert refused(health, 149.0) == "unhealthy"


def test_a_good_probe_clears_what_a_probe_can_see() -> None:
    """Connections, yes; errors that only requests showed, no."""
    reach, service = Health(), Health()
    for _ in range(2):
        fail(reach, REFUSED)
        fail(service, BROKEN)
    for health in (reach, service):
        health.probed(None, 1.0)
    assert (refused(reach, 1.0), refused(service, 1.0)) == (None, "unhealthy")


def test_a_mixed_record_is_cleared_in_part() -> None:
    """One failure of each witness opens; a good probe takes its own back."""
    health = Health()
    fail(health, REFUSED)
    fail(health, BROKEN)
    assert health.status(0.0) == "unhealthy"
    health.probed(None, 1.0)
    assert (health.status(1.0), health.provider.failures) == ("degraded", 1)


def test_failed_probes_open_and_keep_open() -> None:
    """So that no request is spent on finding out."""
    health = Health()
    health.probed(REFUSED, 0.0)
    health.probed(REFUSED, 30.0)
    health.probed(REFUSED, 60.0)
    assert refused(health, 91.0) == "unhealthy"
    health.probed(None, 92.0)
    assert refused(health, 92.0) is None


@pytest.mark.parametrize("error", [CRASHED, SlowModel("x"), MissingModel("x", provider_status=404)])
def test_what_speaks_of_one_model_marks_that_target(error: ProviderError) -> None:
    """Its neighbours on the same provider are asked as before."""
    health = Health()
    fail(health, error)
    fail(health, error)
    assert (refused(health), refused(health, model="other")) == ("unhealthy", None)
    assert health.provider.failures == 0
    assert health.status(0.0) == "degraded"
    permit(health, 60.0).served(60.0)
    assert health.targets == {}


@pytest.mark.parametrize("error", [REFUSED, BROKEN, FirstByteTimeout("x")])
def test_what_speaks_of_the_provider_marks_all_its_targets(error: ProviderError) -> None:
    """One model's failures spare the others the wait."""
    health = Health()
    fail(health, error)
    fail(health, error)
    assert refused(health, model="other") == "unhealthy"


@pytest.mark.parametrize(
    ("retry_after", "detail", "seconds"),
    [(None, None, 15), (7.0, None, 7), (1e9, None, 300), (-1.0, None, 0), (None, "quota", 600), (5.0, "quota", 600)],
)
def test_cooling_ends_by_time(retry_after: float | None, detail: str | None, seconds: float) -> None:
    """As long as was asked for, within reason; it is no failure, and a neighbour is not cooled."""
    health = Health()
    fail(health, RateLimited("x", retry_after=retry_after, detail=detail), 100.0)
    assert health.provider.failures == 0
    assert refused(health, 100.0, "other") is None
    if seconds:
        assert refused(health, 100.0 + seconds - 0.1) == "cooling"
        assert health.status(100.0) == "cooling"
    assert refused(health, 100.0 + seconds) is None


def test_busy_cools_too() -> None:
    """A full queue is no sickness."""
    health = Health()
    for _ in range(5):
        if isinstance(got := health.admit("m", 0.0), Permit):
            got.failed(ServerBusy("x"), 0.0)
    assert (refused(health), health.provider.failures) == ("cooling", 0)


@pytest.mark.parametrize("error", [KeyRejected("x"), NotImplementedByProvider("x")])
def test_what_blames_nobody_changes_nothing(error: ProviderError) -> None:
    """Our key, a feature that is not there."""
    health = Health()
    for _ in range(5):
        fail(health, error)
    assert health.status(0.0) == "healthy"


def test_names_that_clients_make_up_are_forgotten_in_turn() -> None:
    """What is kept is bounded, here and on the board."""
    told: list[Event] = []
    board = Board({"gpu": Health()}, lambda: 0.0, told.append)
    for number in range(3 * TARGETS_LIMIT):
        got = board.admit(Target("gpu", f"m{number}"))
        assert isinstance(got, Permit)
        board.failed(Target("gpu", f"m{number}"), got, RateLimited("x"))
    assert len(board.providers["gpu"].targets) == TARGETS_LIMIT
    assert len(board._told) <= TARGETS_LIMIT


def test_unconfigured_and_saturated() -> None:
    """Never called without a key; no more at once than it may."""
    assert refused(Health(configured=False)) == "unconfigured"
    health = Health(max_concurrent=1)
    first = permit(health)
    assert refused(health) == "saturated"
    first.served(0.0)
    assert refused(health) is None


def test_late_failures_tell_nothing_new() -> None:
    """A hundred requests at the moment of failure: opened once, and not for longer by each."""
    told: list[Event] = []
    clock = [0.0]
    board = Board({"gpu": Health()}, lambda: clock[0], told.append)
    target = Target("gpu", "m")
    permits = [board.admit(target) for _ in range(100)]
    for number, each in enumerate(permits):
        clock[0] = number / 10
        assert isinstance(each, Permit)
        board.failed(target, each, REFUSED)
    assert [e.now for e in told if isinstance(e, HealthChanged)] == ["unhealthy"]
    assert board.providers["gpu"].provider.open_until == 60.1
    assert board.again_in([target]) == pytest.approx(60.1 - 9.9)


def test_changes_are_told_once_each() -> None:
    """Down, up; a target that cools; never the same twice, a reload between them or not."""
    told: list[Event] = []
    clock = [0.0]
    healths = {"gpu": Health(Policy(failure_threshold=1))}
    board = Board(healths, lambda: clock[0], told.append)
    for error in (REFUSED, REFUSED):
        board.probed("gpu", error)
    later = Board(healths, lambda: clock[0], told.append)
    later.carry(board)
    later.probed("gpu", REFUSED)
    later.probed("gpu", None)
    got = later.admit(Target("gpu", "m"))
    assert isinstance(got, Permit)
    later.failed(Target("gpu", "m"), got, RateLimited("x"))
    clock[0] = 15.0
    later.note("gpu")
    assert [(e.model, e.was, e.now) for e in told if isinstance(e, HealthChanged)] == [
        (None, "healthy", "unhealthy"),
        (None, "unhealthy", "healthy"),
        ("m", "healthy", "cooling"),
        ("m", "cooling", "healthy"),
    ]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no place is lost, one trial at a time, never stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(max_concurrent=3)
        self.now = 0.0
        self.open: list[Permit] = []

    @rule(model=st.sampled_from(["a", "b"]))
    def ask(self, model: str) -> None:
        got = self.health.admit(model, self.now)
        if isinstance(got, Permit):
            self.open.append(got)

    @precondition(lambda self: self.open)
    @rule(
        at=st.integers(0, 2),
        how=st.sampled_from(["served", "released", "began", "twice"]),
    )
    def end(self, at: int, how: str) -> None:
        got = self.open[at % len(self.open)]
        match how:
            case "served":
                got.served(self.now)
            case "released":
                got.released()
            case "began":
                got.began()
                return
            case _:
                got.released()
                got.served(self.now)
        self.open.remove(got)

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 2), error=st.sampled_from([REFUSED, BROKEN, CRASHED, RateLimited("x"), KeyRejected("x")]))
    def break_(self, at: int, error: ProviderError) -> None:
        got = self.open.pop(at % len(self.open))
        got.failed(error, self.now)
        got.released()

    @rule(error=st.sampled_from([None, REFUSED]))
    def probe(self, error: ProviderError | None) -> None:
        self.health.probed(error, self.now)

    @rule(seconds=st.sampled_from([0.1, 14.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def places_are_counted(self) -> None:
        assert self.health.in_flight == len(self.open) <= 3

    @invariant()
    def one_trial_at_a_time(self) -> None:
        for circuit in (self.health.provider, *self.health.targets.values()):
            trials = sum(circuit in each._trial_of for each in self.open)
            assert trials <= 1
            assert circuit.on_trial == (trials == 1) or not circuit.is_open

    def teardown(self) -> None:
        """With nobody in flight and time enough, the next request may always try."""
        for each in self.open:
            each.released()
        for model in ("a", "b"):
            got = self.health.admit(model, self.now + 1000.0)
            assert isinstance(got, Permit)
            got.released()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
