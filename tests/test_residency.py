"""What is loaded, by the last observation and by what we did since: no I/O, and the time is an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.routing.boxes import Box
from manallm_proxy.routing.residency import (
    FAULTS_LIMIT,
    LOAD_TIMEOUT_MAX,
    LOAD_TIMEOUT_MIN,
    PAST_LIMIT,
    POLL_BUSY,
    POLL_IDLE,
    POLL_REFUSED,
    REST_LONGEST,
    Outcome,
    Residency,
)

M = Entry(Target("gpu", "m"))
WIDE = Entry(Target("gpu", "m"), options={"num_ctx": 8192})


def seen(*residents: Resident, at: float = 100.0) -> Residency:
    made = Residency()
    made.observed(residents, at)
    return made


def load(residency: Residency, entry: Entry, begun: float, ended: float, outcome: Outcome = "well") -> int:
    residency.load_begun(entry, begun)
    return residency.load_ended(entry, ended, outcome)


def test_nothing_is_known_at_first() -> None:
    """And nothing any more where the server cannot be asked."""
    assert Residency().is_loaded(M, 0.0) is None
    residency = seen(Resident("m"))
    residency.not_observed(101.0, unreadable=False)
    assert residency.is_loaded(M, 102.0) is None


@pytest.mark.parametrize("name", ["m", "M", "m:latest", "library/m", "registry.ollama.ai/library/m:latest"])
def test_loaded_is_what_is_listed(name: str) -> None:
    assert seen(Resident(name)).is_loaded(M, 101.0) is True
    assert seen(Resident("m:7b")).is_loaded(M, 101.0) is False
    assert seen().is_loaded(M, 101.0) is False


@pytest.mark.parametrize(("window", "loaded"), [(8192, True), (4096, False), (0, True)])
def test_with_the_window_that_will_be_asked_for(window: int, loaded: bool) -> None:
    """An old server does not tell the window; an entry without one takes any."""
    residency = seen(Resident("m", context_length=window))
    assert residency.is_loaded(WIDE, 101.0) is loaded
    assert residency.is_loaded(M, 101.0) is True


def test_a_window_that_the_server_cuts_down() -> None:
    """What our own load led to is what we ask for: else every request would begin a load."""
    residency = seen()
    load(residency, WIDE, 101.0, 110.0)
    assert residency.is_loaded(WIDE, 111.0) is True
    residency.observed([Resident("m", context_length=2048)], 112.0)
    assert residency.is_loaded(WIDE, 113.0) is True
    residency.observed([Resident("m", context_length=4096)], 115.0)
    assert residency.is_loaded(WIDE, 116.0) is False


def test_a_load_that_ended_after_the_question() -> None:
    """The answer is older than what we know."""
    residency = seen()
    load(residency, M, 101.0, 110.0)
    residency.observed([], 109.0)
    assert residency.is_loaded(M, 111.0) is True
    residency.observed([], 112.0)
    assert residency.is_loaded(M, 113.0) is False


def test_what_has_expired_is_cold() -> None:
    """Unless it was used since, or was listed although it had expired: then it is at work."""
    residency = seen(Resident("m", expires_in=10.0))
    assert [residency.is_loaded(M, now) for now in (105.0, 110.0)] == [True, False]
    assert seen(Resident("m", expires_in=-5.0)).is_loaded(M, 130.0) is True
    load(residency, M, 110.0, 110.1)
    residency.observed([Resident("m", expires_in=10.0)], 111.0)
    residency.used(M, 112.0)
    assert residency.is_loaded(M, 125.0) is True


def test_while_it_loads_it_is_cold() -> None:
    """Whatever a list says that still has it with another window."""
    residency = seen(Resident("m"))
    residency.load_begun(M, 101.0)
    assert residency.is_loaded(M, 102.0) is False


def test_a_list_without_what_we_loaded_is_not_believed() -> None:
    """The model is there under another tag of the same weights, or the server only imitates an Ollama."""
    residency = seen()
    for at in (101.0, 201.0):
        assert residency.is_loaded(M, at) is False
        load(residency, M, at, at + 0.1)
        residency.observed([], at + 1)
    assert residency.is_loaded(M, 300.0) is None
    residency.observed([Resident("m")], 301.0)
    assert residency.is_loaded(M, 302.0) is True


def test_loads_that_fail_rest_longer_each_time() -> None:
    """So do those that have to be begun again as soon as they ended; quick ones are no loads at all."""
    residency = seen()
    rests = []
    for n in range(12):
        begun = 1000.0 * n
        assert load(residency, M, begun, begun + 2, "failed") == n + 1
        rests.append(residency.rest("M:latest", begun + 2))
    assert rests[:3] == [5.0, 10.0, 20.0]
    assert rests[-1] == REST_LONGEST
    residency = seen()
    assert [load(residency, M, at, at + 5) for at in (0.0, 10.0, 20.0, 1000.0)] == [0, 1, 2, 0]
    assert [load(residency, M, at, at + 0.1) for at in (2000.0, 2001.0, 2002.0)] == [0, 0, 0]


def test_the_load_timeout_is_learned_from_loads() -> None:
    """Generous at first; what the entry says holds; a load that ended at once was none."""
    residency = seen()
    assert residency.load_timeout(M) == LOAD_TIMEOUT_MAX
    load(residency, M, 100.0, 100.1)
    assert residency.load_timeout(M) == LOAD_TIMEOUT_MAX
    load(residency, M, 200.0, 220.0)
    assert residency.load_timeout(M) == 60.0
    load(residency, M, 300.0, 302.0)
    assert residency.load_timeout(M) == 30.0
    assert residency.load_timeout(Entry(M.target, load_timeout=7.0)) == 7.0
    load(residency, M, 400.0, 402.0)
    load(residency, M, 500.0, 502.0)
    assert residency.load_timeout(M) == LOAD_TIMEOUT_MIN
    load(residency, M, 600.0, 900.0)
    assert residency.load_timeout(M) == LOAD_TIMEOUT_MAX


def test_which_models_rest() -> None:
    """A refusal keeps only what is to stay loaded from being tried again; the oldest of too many names is forgotten."""
    residency = seen()
    load(residency, M, 101.0, 101.1, "refused")
    assert (residency.rest("m", 102.0, ("failed", "flap")), residency.rest("m", 102.0) > 0) == (0.0, True)
    for n in range(PAST_LIMIT):
        load(residency, Entry(Target("gpu", f"m{n}")), 103.0, 103.1, "refused")
    assert (residency.rest("m", 104.0), residency.rest("m1", 104.0) > 0) == (0.0, True)


def test_where_nothing_follows_a_flapping_model_is_loaded_all_the_same() -> None:
    """Late is better than never; one that cannot be loaded at all is skipped there, too."""
    nobody: Any = None
    outcomes: list[tuple[Outcome, str | None]] = [("well", None), ("failed", "loading")]
    for outcome, last in outcomes:
        box = Box("gpu", nobody, lambda: 27.0, lambda event: None)
        load(box.residency, M, 10.0, 15.0)
        load(box.residency, M, 20.0, 25.0, outcome)  # again so soon: a flap, if it is loaded at all
        box.residency.observed((), 26.0)
        skips = [box.refusal(M, last=is_last) for is_last in (False, True)]
        assert [skip and skip.reason for skip in skips] == ["loading", last]


def test_what_ollama_hands_on_is_loaded_by_nobody_here() -> None:
    assert seen().is_loaded(Entry(Target("gpu", "big:120b-cloud")), 101.0) is None


def test_how_often_it_is_asked() -> None:
    """Every few seconds while there is traffic or a load, seldom while idle, hardly ever where it cannot tell."""
    residency = seen(Resident("m"))
    assert residency.observe_in(100.0) == POLL_IDLE
    residency.used(M, 101.0)
    assert residency.observe_in(101.0) == POLL_BUSY - 1
    assert residency.observe_in(500.0) == 0.0
    residency.load_begun(M, 400.0)
    residency.observed([], 1000.0)
    assert residency.observe_in(1000.0) == POLL_BUSY
    given_up = [residency.not_observed(1000.0, unreadable=True) for _ in range(FAULTS_LIMIT + 1)]
    assert given_up == [False] * (FAULTS_LIMIT - 1) + [True, False]
    assert residency.observe_in(1000.0) == POLL_REFUSED


@pytest.mark.parametrize(
    ("size", "vram", "other", "slow"),
    [(10, 10, 0, False), (10, 9, 0, False), (10, 4, 0, True), (10, 0, 5, True), (10, 0, 0, False), (0, 0, 5, False)],
)
def test_half_on_the_cpu(size: int, vram: int, other: int, slow: bool) -> None:
    """Only if some model was seen on a GPU once: a box without one could not do better."""
    residency = seen(Resident("o", size=other, size_vram=other))
    residency.observed([Resident("m", size=size, size_vram=vram)], 101.0)
    assert (residency.on_cpu("m") is not None) is slow


steps = st.one_of(
    st.tuples(st.just("observed"), st.lists(st.sampled_from(["m", "n", "m:latest"]), max_size=3)),
    st.tuples(st.just("failed"), st.booleans()),
    st.tuples(st.just("load"), st.sampled_from(["well", "failed", "refused"])),
    st.tuples(st.just("used"), st.none()),
)


@given(st.lists(st.tuples(steps, st.floats(0, 100)), max_size=30))
def test_any_order_of_things(plan: list[tuple[tuple[str, Any], float]]) -> None:
    """It always has an answer, asks again some time, and never rests for ever."""
    residency, now = Residency(), 0.0
    for (what, value), wait in plan:
        now += wait
        if what == "observed":
            residency.observed([Resident(name, context_length=4096) for name in value], now)
        elif what == "failed":
            residency.not_observed(now, unreadable=value)
        elif what == "used":
            residency.used(M, now)
        else:
            load(residency, M, now, now + wait, value)
            now += wait
        assert residency.is_loaded(M, now) in (True, False, None)
        assert 0.0 <= residency.observe_in(now) <= POLL_REFUSED
        assert 0.0 <= residency.rest("m", now) <= REST_LONGEST
