"""Which requests a local server serves, which wait, for how long; and what is learned of its pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.routing.line import MODELS_LIMIT, RAMP_LIMIT, Line, Turn
from manallm_proxy.routing.pace import LONGEST_TOKEN, MARGIN, PICTURE_MARGIN, PICTURE_USUAL, Pace, Pictures


def entered(line: Line, *expected: float, now: float = 0.0, model: str = "m") -> list[Turn]:
    turns = [Turn(line.of(model), seconds) for seconds in expected]
    for turn in turns:
        line.enter(turn, now)
    return turns


def test_first_come_first_served() -> None:
    """Not more than there are slots; one that ends makes room for the one that came first."""
    line = Line(2)
    a, b, c, d = entered(line, 1, 1, 1, 1)
    assert [turn.began_at for turn in (a, b, c, d)] == [0, 0, None, None]
    woken: list[str] = []
    c.on_turn, d.on_turn = lambda: woken.append("c"), lambda: woken.append("d")
    line.leave(b, 5.0, answered=True)
    line.leave(b, 5.0, answered=True)
    assert (c.began_at, d.began_at, woken) == (5.0, None, ["c"])


def test_a_request_that_leaves_while_it_waits_frees_its_place() -> None:
    """And is never served."""
    line = Line(1)
    a, b, c = entered(line, 1, 1, 1)
    line.leave(b, 1.0, answered=False)
    line.leave(a, 2.0, answered=True)
    assert (b.began_at, c.began_at) == (None, 2.0)


def test_one_that_was_taken_back_is_the_next() -> None:
    """It had its turn, but was only sent to learn whether there is one more slot."""
    line = Line(1)
    a, b = entered(line, 1, 1)
    back = Turn(line.of("m"), 1, again=True)
    line.enter(back, 1.0)
    line.leave(a, 2.0, answered=True)
    assert (back.began_at, b.began_at, line.of("m").backlog) == (2.0, None, 1)


def test_names_of_one_model_have_one_line() -> None:
    """As Ollama takes them."""
    line = Line(1)
    entered(line, 1, model="qwen:latest")
    (other,) = entered(line, 1, model="Qwen")
    (another,) = entered(line, 1, model="smol")
    assert (other.began_at, another.began_at) == (None, 0.0)


@pytest.mark.parametrize(
    ("slots", "expected", "now", "wait"),
    [
        (1, (), 0, 0),
        (2, (8,), 0, 0),
        (1, (8,), 3, 5),
        (1, (8, 4), 3, 9),
        (2, (8, 6, 4), 3, 3 + 4 / 2),
        (1, (8,), 20, 0.8),  # overdue: a tenth of what was expected
        (1, (0,), 5, 0),  # nothing is known: nobody is sent away for it
    ],
)
def test_the_expected_wait(slots: int, expected: tuple[float, ...], now: float, wait: float) -> None:
    """Until the first has made room, and those who wait have had their turn."""
    line = Line(slots)
    entered(line, *expected)
    assert line.expected_wait(line.of("m"), now) == pytest.approx(wait)


def test_a_server_that_came_back_is_not_flooded() -> None:
    """One at a time, then two, three, ... whichever models they are for; a failure is no step."""
    line = Line(None)
    line.server_recovered()
    turns = [*entered(line, *[1] * 20), *entered(line, *[1] * 20, model="other")]
    assert sum(turn.began_at is not None for turn in turns) == 1
    served = []
    for step in range(1, 6):
        (turn, *_) = [turn for turn in turns if turn.began_at is not None and not turn.ended]
        line.leave(turn, float(step), answered=step != 2)
        served.append(sum(turn.began_at is not None and not turn.ended for turn in turns))
    assert served == [2, 2, 3, 4, 5]
    for turn in turns:
        line.leave(turn, 9.0, answered=True)
    assert line.ramp is None or line.ramp <= RAMP_LIMIT
    line.slots = 2
    line.server_recovered()
    for turn in entered(line, 1, 1, 1):
        line.leave(turn, 10.0, answered=True)
    assert line.ramp is None  # with all its slots in use an outage is over


@given(
    st.integers(1, 4) | st.none(),
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "back"]), st.integers(0, 5), st.booleans()), max_size=60),
)
def test_whatever_happens_nobody_is_forgotten(slots: int | None, steps: list[tuple[str, int, bool]]) -> None:
    """Never more than there are slots, nobody overtakes, nobody waits while there is room."""
    line, turns = Line(slots), list[Turn]()
    for now, (what, which, answered) in enumerate(steps):
        if what == "enter":
            turns += entered(line, float(which), now=float(now), model="ab"[which % 2])
        elif what == "back":
            line.server_recovered()
        elif turns:
            line.leave(turns[which % len(turns)], float(now), answered=answered)
        for name in "ab":
            mine = [turn for turn in turns if turn.line.name == name and not turn.ended]
            serving = [turn for turn in mine if turn.began_at is not None]
            assert slots is None or len(serving) <= slots
            assert mine == serving + [turn for turn in mine if turn.began_at is None]
            assert line.expected_wait(line.of(name), float(now)) >= 0
    for turn in turns:
        line.leave(turn, 99.0, answered=True)
    assert all(each.is_idle for each in line.models.values())


def test_models_that_clients_name_are_forgotten() -> None:
    """But not one for which somebody waits."""
    line = Line(1)
    busy = entered(line, 1, 1, model="busy")
    for n in range(3 * MODELS_LIMIT):
        line.of(f"m{n}")
    assert len(line.models) <= MODELS_LIMIT
    line.leave(busy[0], 1.0, answered=True)
    assert busy[1].began_at == 1.0


def test_a_pace_is_learned_from_answers() -> None:
    """A long prompt takes longer; whole answers tell their seconds alone."""
    pace = Pace()
    assert (pace.seconds(4000), pace.tokens(4000)) == (0.0, None)
    pace.learn(4000, 1000, 50, None, 6.0)
    assert pace.seconds(4000) == 6.0
    for _ in range(3):
        pace.learn(4000, 1000, 50, 1.0, 6.0)
    assert pace.tokens(8000) == 2000
    assert pace.seconds(4000) == pytest.approx(6.0)
    assert pace.seconds(8000) == pytest.approx(7.0)


def test_what_surely_does_not_fit() -> None:
    """By more than the most bytes per token of late; if nothing is known, by what no tokenizer reaches."""
    pace = Pace()
    assert pace.least_tokens(32_000) == 32_000 / LONGEST_TOKEN
    for size in (4000, 5000, 3000):
        pace.learn(size, 1000, 1, None, 1.0)
    assert pace.least_tokens(15_000) == 15_000 / (5 * MARGIN)
    pace.learn(100, 1, 1, None, 1.0)  # short: its template counts for more than its words
    pace.learn(5000, 9, 1, None, 1.0, Pictures(1, 4))
    assert pace.least_tokens(15_000) == 15_000 / (5 * MARGIN)


def test_what_pictures_take() -> None:
    """At least one token each until more is known; then a part of the least of late, by number or by bytes, or by
    number alone if all are alike; and usually as many as on average."""
    pace, one, ten = Pace(), Pictures(1, 50_000), Pictures(10, 500_000)
    assert [pace.least_tokens(3200, each) for each in (None, one, ten)] == [100, 101, 110]
    for _ in range(3):
        pace.learn(4000, 1000, 50, 1.0, 6.0)
    assert pace.seconds(4000, ten) == pytest.approx(6 + 10 * PICTURE_USUAL / 1000)
    for tokens in (1300, 900, 1100):
        pace.learn(400, 100 + tokens, 50, (100 + tokens) / 1000, 6.0, one)
    least = (900 - (MARGIN - 1) * 100) / PICTURE_MARGIN
    words = 400 / (4 * MARGIN)
    assert pace.least_tokens(400, one) == int(words + least)
    assert pace.least_tokens(400, ten) == int(words + 10 * least)
    assert pace.least_tokens(400, Pictures(10, 50_000)) == int(words + least)  # small ones
    assert pace.least_tokens(400, Pictures(1, 500_000)) == int(words + least)  # a large one
    assert pace.least_tokens(400, Pictures(10, 100)) == int(words + 10)
    assert 900 < (pace.seconds(4000, one) - pace.seconds(4000)) * 1000 < 1300
    for size in (4_000, 800_000) * 10:
        pace.learn(400, 100 + 900, 50, 1.0, 6.0, Pictures(1, size))
    assert pace.least_tokens(400, Pictures(10, 100)) == int(words + 10 * least * PICTURE_MARGIN / MARGIN)
