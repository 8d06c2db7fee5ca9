"""The file that decides, with a number as clock."""

from __future__ import annotations

import copy

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manallm_proxy.contract.events import Event, HealthChanged
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    Disconnected,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    ModelFailed,
    ProbeTimeout,
    ProviderError,
    RateLimited,
    ResourcesExhausted,
    ServerBusy,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.contract.targets import Target
from manallm_proxy.routing.circuit import Hint, Policy, SharedState, Skip
from manallm_proxy.routing.health import TARGETS_LIMIT, Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry

REFUSED, BROKEN, CRASHED = ConnectFailed("x"), ServerFailed("x"), ModelFailed("x")
LATE, MISSING = ConnectTimeout("x"), MissingModel("x", provider_status=404)


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
    fail(health, REFUSED, 1.0)
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
    trial.began(60.0)
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


def test_each_witness_has_a_record_of_its_own() -> None:
    """One failure to connect and one bad answer are not two of either; a good probe takes its own back."""
    health = Health()
    fail(health, REFUSED)
    fail(health, BROKEN)
    assert (health.status(0.0), health.provider.failures, health.targets["m"].failures) == ("degraded", 1, 1)
    health.probed(None, 1.0)
    assert (health.provider.failures, health.targets["m"].failures) == (0, 1)


def test_failed_probes_open_and_keep_open() -> None:
    """So that no request is spent on trying an open provider."""
    health = Health()
    health.probed(REFUSED, 0.0)
    health.probed(REFUSED, 30.0)
    health.probed(REFUSED, 60.0)
    assert refused(health, 91.0) == "unhealthy"
    health.probed(None, 92.0)
    assert refused(health, 92.0) is None


@pytest.mark.parametrize(
    "error", [CRASHED, BROKEN, FirstByteTimeout("x"), BadResponse("x"), MissingModel("x", provider_status=404)]
)
def test_what_speaks_of_one_model_marks_that_target(error: ProviderError) -> None:
    """Its neighbours on the same provider are asked as before."""
    health = Health()
    fail(health, error)
    fail(health, error)
    assert (refused(health), refused(health, model="other")) == ("unhealthy", None)
    assert health.provider.failures == 0
    assert health.status(0.0) == ("healthy" if isinstance(error, MissingModel) else "degraded")
    permit(health, 60.0).served(60.0)
    assert health.targets == {}


@pytest.mark.parametrize("error", [REFUSED, ConnectTimeout("x")])
def test_what_speaks_of_the_provider_marks_all_its_targets(error: ProviderError) -> None:
    """What could not be connected to for one cannot be for the others."""
    health = Health()
    fail(health, error)
    fail(health, error)
    assert refused(health, model="other") == "unhealthy"


def down(health: Health, model: str, now: float = 0.0, error: ProviderError = BROKEN) -> None:
    for _ in range(health.policy.failure_threshold):
        fail(health, error, now, model)


def test_two_targets_open_their_provider() -> None:
    """With nothing served between them: whatever it is, the others need not find it out one by one."""
    health = Health()
    down(health, "a", 0.0)
    assert (health.provider.status(0.0), refused(health, 1.0, "c")) == ("healthy", None)
    down(health, "b", 5.0)
    assert [refused(health, 64.9, model) for model in "abc"] == ["unhealthy"] * 3
    assert health.status(5.0) == "unhealthy"
    assert refused(health, 65.0, "c") is None


def test_one_broken_model_of_an_aggregator_closes_no_other() -> None:
    """However often it fails, however long, with or without others that are served."""
    health = Health()
    for now in range(0, 6000, 60):
        for _ in range(5):
            if isinstance(got := health.admit("broken", float(now)), Permit):
                got.failed(BROKEN, float(now))
        assert refused(health, float(now), "fine") is None
        permit(health, float(now), "fine").served(float(now))
    assert (health.provider.status(6000.0), health.targets["broken"].is_open) == ("healthy", True)


def test_a_success_between_two_targets_clears_their_provider() -> None:
    """It serves; what fell before says nothing of it any more, until it falls again."""
    health = Health()
    down(health, "a", 0.0)
    permit(health, 1.0, "c").served(1.0)
    down(health, "b", 2.0)
    assert (refused(health, 2.0, "a"), refused(health, 2.0, "b"), refused(health, 2.0, "c")) == (
        "unhealthy",
        "unhealthy",
        None,
    )
    fail(health, BROKEN, 61.0, "a")
    assert refused(health, 61.0, "c") == "unhealthy"


def test_models_that_are_not_there_say_nothing_of_their_neighbours() -> None:
    """The provider answers each as it should."""
    health = Health()
    for model in "abcdef":
        down(health, model, error=MISSING)
    assert (refused(health, model="a"), refused(health, model="g")) == ("unhealthy", None)
    down(health, "x")
    assert refused(health, model="g") is None


def test_a_provider_that_its_targets_opened_is_opened_again_by_any_of_them() -> None:
    """A third model fails the trial: for the whole backoff again. Served, it closes for all."""
    health = opened()
    fail(health, BROKEN, 60.0, "third")
    assert refused(health, 119.9, "fourth") == "unhealthy"
    permit(health, 120.0, "fourth").served(121.0)
    assert (refused(health, 121.0, "fourth"), refused(health, 121.0, "m"), refused(health, 121.0, "third")) == (
        None,
        None,
        None,
    )
    assert health.provider.failures == 0


def test_a_broken_model_does_not_keep_a_provider_closed_that_came_back() -> None:
    """It could not be reached; now a trial gets a 500, which shows nothing of its reach: the next may try."""
    health = Health()
    for _ in range(2):
        fail(health, REFUSED)
    fail(health, BROKEN, 60.0, "broken")
    trial = permit(health, 60.0, "fine")
    assert refused(health, 60.0, "other") == "unhealthy"
    trial.served(61.0)
    assert refused(health, 61.0, "other") is None


def test_a_probe_that_is_late_shows_nothing_while_an_answer_of_ours_arrives() -> None:
    """A server with one thread is at work on it; where nothing arrives, or nobody is there, a probe counts."""
    health = Health()
    stream = permit(health, 0.0)
    stream.began(1.0)
    for now in (10.0, 40.0, 70.0):
        health.probed(LATE, now, now - 3.0)
    assert health.status(70.0) == "healthy"
    health.probed(REFUSED, 70.0, 70.0)
    assert health.provider.reach_failures == 1
    health.probed(None, 71.0, 71.0)
    stream.served(98.0)
    health.probed(LATE, 100.0, 97.0)
    assert health.status(100.0) == "healthy"
    health.probed(LATE, 130.0, 127.0)
    health.probed(LATE, 160.0, 157.0)
    assert health.status(160.0) == "unhealthy"


def test_a_probe_that_is_late_shows_nothing_if_an_answer_has_begun_since() -> None:
    """Though it broke: the server was there, and at work."""
    health = Health()
    stream = permit(health, 0.0)
    stream.began(1.0)
    stream.failed(Disconnected("x"), 2.0)
    health.probed(LATE, 3.5, 0.5)
    assert health.provider.reach_failures == 0
    health.probed(LATE, 4.5, 1.5)
    assert health.provider.reach_failures == 1


def silence(health: Health, *times: float, error: ProviderError | None = None) -> None:
    for now in times:
        health.probed(error or ProbeTimeout("x"), now, now - 3.0)


def test_who_lists_no_models_in_time_may_answer_all_the_same() -> None:
    """One request finds out after the backoff; from then on such probes say nothing, until one is answered."""
    health = Health()
    silence(health, 0.0, 30.0, 60.0)
    assert refused(health, 60.0) == "unhealthy"
    silence(health, 80.0)  # no news: the circuit stays half-open from 90 on
    trial = permit(health, 91.0)
    assert refused(health, 91.0) == "unhealthy"
    trial.served(92.0)
    silence(health, 120.0, 150.0, 180.0, 210.0)
    assert health.status(210.0) == "healthy"
    health.probed(None, 240.0, 239.0)
    silence(health, 270.0, 300.0)
    assert health.status(300.0) == "unhealthy"


def test_who_fails_to_list_models_may_answer_all_the_same() -> None:
    """5xx for the list alone; where a request gets that too, it is down."""
    health = Health()
    silence(health, 0.0, 30.0, error=BROKEN)
    permit(health, 91.0).served(92.0)
    silence(health, 120.0, 150.0, 180.0, error=BROKEN)
    assert health.status(180.0) == "healthy"


@pytest.mark.parametrize("error", [FirstByteTimeout("x"), REFUSED, ServerFailed("x", provider_status=502)])
def test_who_answers_neither_is_stuck(error: ProviderError) -> None:
    """That one request is enough: no other is wasted, for as long as probes get no answer."""
    health = Health()
    silence(health, 0.0, 30.0)
    permit(health, 91.0).failed(error, 100.0)
    assert refused(health, 100.0) == "unhealthy"
    silence(health, *(float(now) for now in range(120, 600, 30)))
    assert refused(health, 629.0) == "unhealthy"
    health.probed(None, 630.0, 629.0)
    assert health.provider.open_until is None


def test_who_refuses_is_there() -> None:
    """A status is an answer, whatever it says."""
    health = Health()
    silence(health, 0.0, 30.0)
    fail(health, RateLimited("x", provider_status=429), 91.0)
    silence(health, 120.0, 150.0, 180.0)
    assert health.provider.failures == 2
    assert health.provider.refusal(180.0) is None


def test_a_connection_that_is_not_made_is_no_silence() -> None:
    """As before: every probe keeps it closed."""
    health = Health()
    silence(health, 0.0)
    for now in (30.0, 60.0, 90.0, 120.0):
        health.probed(LATE, now, now - 3.0)
    assert refused(health, 179.0) == "unhealthy"


@pytest.mark.parametrize("how", ["served", "failed", "released"])
def test_an_answer_is_counted_until_it_ends(how: str) -> None:
    """However; one that has not begun protects nobody."""
    health = Health()
    waiting, stream = permit(health), permit(health)
    stream.began(0.0)
    stream.began(0.0)
    assert health.answering == 1
    match how:
        case "served":
            stream.served(0.0)
        case "failed":
            stream.failed(BROKEN, 0.0)
        case _:
            stream.released()
    assert (health.answering, health.in_flight) == (0, 1)
    health.probed(LATE, 10.0, 7.0)
    assert health.provider.reach_failures == 1
    waiting.released()


def test_a_refusal_is_an_answer_too() -> None:
    """A status came while the probe waited: the server is there."""
    health = Health()
    fail(health, MissingModel("x", provider_status=404), 2.0)
    health.probed(LATE, 3.0, 0.0)
    assert health.provider.failures == 0


def test_a_trial_that_has_begun_to_answer_is_news() -> None:
    """For the log and for other workers: a long stream's end may be an hour away."""
    told: list[Event] = []
    sent: list[tuple[str, str | None, SharedState]] = []
    health, now = Health(), 0.0
    registry = HealthRegistry({"gpu": health}, lambda: now, told.append, lambda *each: sent.append(each))
    for _ in range(2):
        registry.probed("gpu", REFUSED)
    now = 61.0
    permit = registry.admit(Target("gpu", "m"))
    assert isinstance(permit, Permit)
    del told[:], sent[:]
    registry.began(Target("gpu", "m"), permit)
    assert [(each.was, each.now) for each in told if isinstance(each, HealthChanged)] == [("unhealthy", "healthy")]
    assert [(name, model, state.open_until) for name, model, state in sent] == [("gpu", None, None)]


def test_no_rest_is_shortened_by_another_workers() -> None:
    """The same account was told two times by its provider: the later one counts, whoever heard it."""
    health = Health()
    fail(health, RateLimited("x", retry_after=100.0), 0.0)
    for now, seconds in ((1.0, 5.0), (2.0, 200.0)):
        other = Health()
        fail(other, RateLimited("x", retry_after=seconds), now)
        update = other.pending_update("m", now)
        assert update is not None and health.merge_update("m", update)
        assert refused(health, 50.0) == "cooling"
    assert (refused(health, 150.0), refused(health, 202.0)) == ("cooling", None)


def test_a_probe_that_could_not_be_sent_shows_nothing() -> None:
    """This process has no descriptors left: nobody was asked, so nobody is down, and nobody has answered either."""
    health = Health()
    for now in (0.0, 1.0, 2.0):
        health.probed(ResourcesExhausted("x"), now)
    assert (health.status(2.0), health.provider.last_check) == ("healthy", None)
    for now in (3.0, 4.0):
        health.probed(REFUSED, now)
    health.probed(ResourcesExhausted("x"), 5.0)
    assert health.status(5.0) == "unhealthy"


def test_a_probe_that_finds_it_busy_has_reached_it() -> None:
    """Loading a model is no sickness, and no connection was refused."""
    health = Health()
    for now in (0.0, 1.0):
        health.probed(REFUSED, now)
    health.probed(ServerBusy("x"), 2.0)
    assert health.status(2.0) == "healthy"


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


@pytest.mark.parametrize("error", [KeyRejected("x"), Unsupported("x")])
def test_what_blames_nobody_changes_nothing(error: ProviderError) -> None:
    """Our key, a feature that is not there."""
    health = Health()
    for _ in range(5):
        fail(health, error)
    assert health.status(0.0) == "healthy"


def test_names_that_clients_make_up_are_forgotten_in_turn() -> None:
    """What is kept is bounded, here and in the registry."""
    told: list[Event] = []
    registry = HealthRegistry({"gpu": Health()}, lambda: 0.0, told.append)
    for number in range(3 * TARGETS_LIMIT):
        got = registry.admit(Target("gpu", f"m{number}"))
        assert isinstance(got, Permit)
        registry.failed(Target("gpu", f"m{number}"), got, RateLimited("x"))
    assert len(registry.providers["gpu"].targets) == TARGETS_LIMIT
    assert len(registry.providers["gpu"].reported) <= TARGETS_LIMIT


def test_good_news_of_others_makes_no_room() -> None:
    """That another target is well is no reason to forget one that is not."""
    health = Health(Policy(failure_threshold=1))
    for number in range(TARGETS_LIMIT):
        fail(health, MISSING, model=f"m{number}")
    before = dict(health.targets)
    assert len(before) == TARGETS_LIMIT
    health.merge_update("well", SharedState(1.0))
    health.take_hint("fine", Hint(), 1.0)
    assert health.targets == before


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
    registry = HealthRegistry({"gpu": Health()}, lambda: clock[0], told.append)
    target = Target("gpu", "m")
    permits = [registry.admit(target) for _ in range(100)]
    for number, each in enumerate(permits):
        clock[0] = number / 10
        assert isinstance(each, Permit)
        registry.failed(target, each, REFUSED)
    assert [e.now for e in told if isinstance(e, HealthChanged)] == ["unhealthy"]
    assert registry.providers["gpu"].provider.open_until == 60.1
    assert registry.again_in([target]) == pytest.approx(60.1 - 9.9)


def test_changes_are_reported_once_each() -> None:
    """Down, up; a target that cools; never the same twice, a reload between them or not. Recovery has no reason."""
    told: list[Event] = []
    clock = [0.0]
    healths = {"gpu": Health(Policy(failure_threshold=1))}
    registry = HealthRegistry(healths, lambda: clock[0], told.append)
    for error in (REFUSED, REFUSED):
        registry.probed("gpu", error)
    later = HealthRegistry(healths, lambda: clock[0], told.append)
    later.probed("gpu", REFUSED)
    later.probed("gpu", None)
    got = later.admit(Target("gpu", "m"))
    assert isinstance(got, Permit)
    later.failed(Target("gpu", "m"), got, RateLimited("x"))
    clock[0] = 15.0
    later.note("gpu")
    assert [(e.model, e.was, e.now, e.reason) for e in told if isinstance(e, HealthChanged)] == [
        (None, "healthy", "unhealthy", "connect_error"),
        (None, "unhealthy", "healthy", None),
        ("m", "healthy", "cooling", "rate_limited"),
        ("m", "cooling", "healthy", None),
    ]


def opened(policy: Policy = Policy()) -> Health:  # noqa: B008  # frozen
    """By its targets, so that no good probe closes it."""
    health = Health(policy)
    for model in ("m", "n"):
        for _ in range(policy.failure_threshold):
            fail(health, BROKEN, 0.0, model)
    return health


def test_a_new_threshold_does_not_let_a_failed_trial_pass_for_good() -> None:
    """A reload may ask for more failures than there were: an open circuit's failed trial opens it all the same."""
    health = opened()
    health.policy = Policy(failure_threshold=5)
    fail(health, BROKEN, 60.0)
    assert refused(health, 119.9) == "unhealthy"
    assert refused(health, 120.0) is None
    health.probed(REFUSED, 120.0)
    assert refused(health, 179.9) == "unhealthy"


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_the_threshold_is_as_configured(threshold: int) -> None:
    """One fewer is degraded; after a trial that has begun to answer a single failure is enough."""
    policy = Policy(threshold, 10.0)
    health = Health(policy)
    for _ in range(threshold - 1):
        fail(health, BROKEN)
    assert refused(health) is None
    fail(health, BROKEN)
    assert refused(health, 9.9) == "unhealthy"
    trial = permit(health, 10.0)
    trial.began(10.0)
    fail(health, BROKEN, 11.0)
    assert refused(health, 20.9) == "unhealthy"


def test_a_permit_ends_once() -> None:
    """Whatever is called after that changes nothing."""
    health = Health()
    got = permit(health)
    got.served(0.0)
    got.failed(BROKEN, 0.0)
    got.released()
    got.began(0.0)
    assert (health.in_flight, health.answering, health.provider.failures) == (0, 0, 0)


def test_a_target_has_a_trial_of_its_own() -> None:
    """While one model is tried its neighbours are asked as before; the next trial comes when this one failed."""
    health = Health()
    fail(health, CRASHED)
    fail(health, CRASHED)
    trial = permit(health, 60.0)
    assert (refused(health, 60.0), refused(health, 60.0, "other")) == ("unhealthy", None)
    trial.failed(CRASHED, 61.0)
    assert refused(health, 120.9) == "unhealthy"
    assert refused(health, 121.0) is None


def test_one_trial_for_provider_and_target_at_once() -> None:
    """Both are half-open: one request tries both, and its answer closes both."""
    health = Health()
    late = [permit(health) for _ in range(2)]
    fail(health, CRASHED)
    fail(health, CRASHED)
    for each in late:
        each.failed(REFUSED, 0.0)
    trial = permit(health, 60.0)
    assert (refused(health, 60.0), refused(health, 60.0, "other")) == ("unhealthy", "unhealthy")
    trial.served(60.0)
    assert (refused(health, 60.0), health.targets) == (None, {})


def test_a_full_provider_gives_no_trial_away() -> None:
    """Saturated is asked last, so that no trial's place is taken for nothing."""
    health = Health(max_concurrent=1)
    late = permit(health)
    for _ in range(2):
        health.probed(REFUSED, 0.0)
    assert refused(health, 60.0) == "saturated"
    late.released()
    assert refused(health, 60.0) is None


def test_a_failed_probe_during_a_trial_leaves_its_place_taken() -> None:
    """And the trial's answer still counts more than the probe."""
    health = opened()
    trial = permit(health, 60.0)
    health.probed(REFUSED, 61.0)
    assert refused(health, 200.0) == "unhealthy"
    trial.served(201.0)
    assert (refused(health, 201.0), health.provider.failures) == (None, 0)


def test_a_late_answer_counts() -> None:
    """A request that began before the circuit opened was served: the provider serves."""
    health = Health()
    late = permit(health)
    fail(health, BROKEN)
    fail(health, BROKEN)
    late.served(1.0)
    assert health.status(1.0) == "healthy"


def test_a_good_probe_lets_nobody_pass_whom_requests_accuse() -> None:
    """However often it is good, and with one failed connection in between."""
    health = opened()
    for now in (1.0, 2.0, 3.0):
        health.probed(None, now)
    health.probed(REFUSED, 4.0)
    health.probed(None, 5.0)
    assert refused(health, 63.9) == "unhealthy"
    permit(health, 64.0).served(64.0)
    assert refused(health, 64.0) is None


def test_cooling_is_not_shortened() -> None:
    """By a second answer that names less; nor ended by a request that was served meanwhile."""
    health = Health()
    late = [permit(health) for _ in range(3)]
    late[0].failed(RateLimited("x", retry_after=100.0), 0.0)
    late[1].failed(RateLimited("x", retry_after=1.0), 0.0)
    late[2].served(1.0)
    assert refused(health, 99.0) == "cooling"
    assert refused(health, 100.0) is None


def test_status_in_one_word() -> None:
    """The provider's own comes first; targets tell together what it does not."""
    assert Health(configured=False).status(0.0) == "unconfigured"
    assert Health().status(0.0) == "healthy"
    assert opened().status(61.0) == "unhealthy"
    health = Health()
    fail(health, RateLimited("x"), model="a")
    assert health.status(0.0) == "cooling"
    fail(health, CRASHED, model="b")
    assert health.status(0.0) == "degraded"
    assert health.status(15.0) == "degraded"
    assert [health.targets[m].status(0.0) for m in "ab"] == ["cooling", "degraded"]


def test_what_an_operator_reads() -> None:
    """The last error in a word of the closed list, and when it was last looked at."""
    health = Health()
    fail(health, REFUSED, 3.0)
    assert (health.provider.last_error, health.provider.last_check) == ("connect_error", 3.0)
    health.probed(None, 4.0)
    assert health.provider.last_check == 4.0
    assert health.is_usable(4.0)
    assert not opened().is_usable(4.0)
    assert not Health(configured=False).is_usable(4.0)


def test_when_to_come_back() -> None:
    """The first of them; never where none is configured; at once where only a trial or a full house is in the way."""
    clock = [0.0]
    healths = {
        "no": Health(configured=False),
        "down": opened(),
        "cool": Health(),
        "full": Health(max_concurrent=0),
        "up": Health(),
    }
    fail(healths["cool"], RateLimited("x", retry_after=7.0))
    registry = HealthRegistry(healths, lambda: clock[0], lambda event: None)

    def wait(*names: str) -> float | None:
        return registry.again_in(Target(name, "m") for name in names)

    assert [wait("no"), wait("down"), wait("cool"), wait("full"), wait("up")] == [None, 60.0, 7.0, 0.0, 0.0]
    assert (wait("no", "down", "cool"), wait()) == (7.0, None)
    clock[0] = 60.0
    registry.admit(Target("down", "m"))
    assert wait("down") == 0.0


def test_what_was_told_stays_with_the_health_it_was_told_of() -> None:
    """Boards of several generations tell each change once between them; a provider that comes back begins anew."""
    told: list[Event] = []
    kept = Health(Policy(1))
    old = HealthRegistry({"gone": Health(Policy(1)), "kept": kept}, lambda: 0.0, told.append)
    new = HealthRegistry({"kept": kept}, lambda: 0.0, told.append)
    old.probed("gone", REFUSED)
    old.probed("kept", REFUSED)
    new.probed("kept", REFUSED)
    new.probed("kept", None)
    old.probed("kept", None)
    back = HealthRegistry({"gone": Health(Policy(1))}, lambda: 0.0, told.append)
    back.probed("gone", REFUSED)
    assert [(e.provider, e.was, e.now) for e in told if isinstance(e, HealthChanged)] == [
        ("gone", "healthy", "unhealthy"),
        ("kept", "healthy", "unhealthy"),
        ("kept", "unhealthy", "healthy"),
        ("gone", "healthy", "unhealthy"),
    ]


def test_nothing_is_reported_of_what_is_healthy() -> None:
    """Nor kept; and one failure is no change."""
    told: list[Event] = []
    health = Health()
    registry = HealthRegistry({"gpu": health}, lambda: 0.0, told.append)
    for error in (None, REFUSED, None):
        registry.probed("gpu", error)
    assert (told, health.reported) == ([], {})


ACCUSING = (BROKEN, CRASHED)
"""What speaks against the provider where two of its targets fall for it."""
ERRORS = (*ACCUSING, REFUSED, MISSING, RateLimited("x"), KeyRejected("x"))


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no place is lost, one trial at a time, never stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(max_concurrent=3)
        self.now = 0.0
        self.open: list[Permit] = []
        self.fallen: set[str] = set()
        """Models that opened for what speaks against the provider, since anything was served."""

    @rule(model=st.sampled_from(["a", "b", "c"]))
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
                self.fallen.clear()
            case "released":
                got.released()
            case "began":
                got.began(self.now)
                return
            case _:
                got.released()
                got.served(self.now)
        self.open.remove(got)

    @precondition(lambda self: self.open)
    @rule(
        at=st.integers(0, 2), error=st.sampled_from([*ACCUSING, REFUSED, MISSING, RateLimited("x"), KeyRejected("x")])
    )
    def break_(self, at: int, error: ProviderError) -> None:
        self.breaks(self.open.pop(at % len(self.open)), error)

    @rule(model=st.sampled_from(["a", "b", "c"]), error=st.sampled_from(ERRORS))
    def fall(self, model: str, error: ProviderError) -> None:
        """Enough of one error to open a circuit."""
        for _ in range(self.health.policy.failure_threshold):
            if isinstance(got := self.health.admit(model, self.now), Permit):
                self.breaks(got, error)

    @rule(model=st.sampled_from(["a", "b", "c"]))
    def serve(self, model: str) -> None:
        if isinstance(got := self.health.admit(model, self.now), Permit):
            got.served(self.now)
            self.fallen.clear()

    def breaks(self, got: Permit, error: ProviderError) -> None:
        health, provider, model = self.health, self.health.provider, got._model
        until, by_targets = provider.open_until, provider.witnessed
        was_trial = any(circuit is provider for circuit in got._trial_of)
        before = health.targets[model].open_until if model in health.targets else None
        got.failed(error, self.now)
        got.released()
        if error in ACCUSING:
            circuit = health.targets[model]
            if circuit.is_open and (before is None or was_trial or circuit.open_until != before):
                self.fallen.add(model)
            fallen = [name for name in self.fallen if name in health.targets and health.targets[name].is_open]
            news = circuit.open_until != before or was_trial
            opens = news and (len(fallen) > 1 or (was_trial and by_targets)) and (until is None or was_trial)
        elif error is REFUSED:
            opens = was_trial if until is not None else provider.failures >= health.policy.failure_threshold
        else:
            opens = False
        assert provider.open_until == (self.now + health.policy.backoff if opens else until)

    @rule(error=st.sampled_from([None, REFUSED, LATE, ServerBusy("x")]), since=st.sampled_from([0.0, 3.0]))
    def probe(self, error: ProviderError | None, since: float) -> None:
        until, heard = self.health.provider.open_until, self.health.heard_at
        self.health.probed(error, self.now, self.now - since)
        if error is LATE and (self.health.answering or (heard is not None and heard >= self.now - since)):
            assert self.health.provider.open_until == until
        elif error in (REFUSED, LATE) and until is not None:
            assert self.health.provider.open_until == self.now + self.health.policy.backoff

    @rule(threshold=st.integers(1, 4), backoff=st.sampled_from([5.0, 60.0]))
    def reload(self, threshold: int, backoff: float) -> None:
        self.health.policy = Policy(threshold, backoff)

    @rule(seconds=st.sampled_from([0.1, 14.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def places_are_counted(self) -> None:
        assert self.health.in_flight == len(self.open) <= 3

    @invariant()
    def answers_are_counted(self) -> None:
        assert self.health.answering == sum(each._began for each in self.open)

    @invariant()
    def one_trial_at_a_time(self) -> None:
        for circuit in (self.health.provider, *self.health.targets.values()):
            trials = sum(any(circuit is c for c in each._trial_of) for each in self.open)
            assert trials <= 1
            assert circuit.on_trial == (trials == 1)

    @invariant()
    def nobody_passes_an_open_circuit(self) -> None:
        """Before its time not even a trial."""
        until = self.health.provider.open_until
        if until is not None and self.now < until:
            assert isinstance(self.health.admit("d", self.now), Skip)

    @invariant()
    def never_stuck(self) -> None:
        """With nobody in flight and time enough the next request may always try."""
        if not self.open:
            later = copy.deepcopy(self.health)
            for model in ("a", "b"):
                got = later.admit(model, self.now + 1000.0)
                assert isinstance(got, Permit)
                got.released()

    def teardown(self) -> None:
        """With nobody in flight and time enough, the next request may always try."""
        for each in self.open:
            each.released()
        for model in ("a", "b"):
            got = self.health.admit(model, self.now + 1000.0)
            assert isinstance(got, Permit)
            got.released()


AnyOrder.TestCase.settings = settings(stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase
