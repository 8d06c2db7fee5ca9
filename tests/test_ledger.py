"""Budgets as arithmetic: days and months of UTC, what is reserved, what others have spent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.budgets import Amount, Limit
from manallm_proxy.contract.targets import Target
from manallm_proxy.process import spend_file
from manallm_proxy.process.spend_keeper import SpendKeeper
from manallm_proxy.routing.ledger import Ledger, Row, Spend
from manallm_proxy.routing.lengths import AnswerLengths

DAY = Limit("day", Amount(5, "USD"))
MONTH = Limit("month", Amount(50, "USD"))
TOKENS = Limit("day", Amount(100, "tokens"))


@define
class Clock:
    now: datetime

    def __call__(self) -> float:
        return self.now.timestamp()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_day_ends_at_midnight_and_a_month_with_it() -> None:
    """Of UTC; what was spent before does not count any more."""
    clock = Clock(at("2026-11-28 23:00"))
    ledger = Ledger(clock)
    ledger.charge("a", Spend(4.0, 10))
    assert ledger.over("a", [DAY], Spend(2.0, 1)) == DAY
    assert ledger.over("a", [DAY], Spend(1.0, 1)) is None, "to the last cent"
    assert ledger.over("b", [DAY], Spend(2.0, 1)) is None
    assert ledger.resets_in(DAY) == 3600
    clock.now = at("2026-11-29 01:00")
    assert ledger.over("a", [DAY], Spend(5.0, 1)) is None
    assert ledger.spent("a", MONTH).usd == 4.0
    ledger.charge("a", Spend(46.0, 1))
    assert ledger.over("a", [MONTH], Spend(0.0, 1)) == MONTH, "used up, whatever is wanted"
    assert ledger.resets_in(MONTH) == 2 * 86400 - 3600
    clock.now = at("2026-12-01 00:00")
    assert ledger.over("a", [DAY, MONTH], Spend(5.0, 1)) is None
    assert ledger.resets_in(MONTH) == 31 * 86400
    ledger.charge("a", Spend(1.0, 1))
    assert [(row[0], row[2]) for row in ledger.rows()] == [("a", 1.0)], "the month before is forgotten"


def test_what_is_reserved_counts() -> None:
    """So that a second request does not spend the same money; tokens likewise."""
    ledger = Ledger(Clock(at("2026-11-28 12:00")))
    ledger.reserve("a", Spend(3.0, 60))
    assert ledger.over("a", [DAY], Spend(2.5, 1)) == DAY
    assert ledger.over("a", [TOKENS], Spend(0.0, 41)) == TOKENS
    assert ledger.over("a", [TOKENS], Spend(0.0, 40)) is None
    ledger.release("a", Spend(3.0, 60))
    assert ledger.over("a", [DAY, TOKENS], Spend(5.0, 100)) is None
    assert ledger.rows() == []


def test_what_nobody_hears_of_is_forgotten_too() -> None:
    """Of a single process, with the month."""
    clock = Clock(at("2026-11-28 12:00"))
    ledger = Ledger(clock)
    for text in ("2026-11-28", "2026-11-29", "2026-12-01"):
        clock.now = at(text)
        ledger.charge("a", Spend(1.0, 1))
    assert len(ledger.take_unshared()) == 1


def test_what_others_have_spent_counts_and_is_not_told_again() -> None:
    """Each row once; what comes from an earlier month is none."""
    clock = Clock(at("2026-12-01 12:00"))
    ours, theirs = Ledger(clock), Ledger(clock)
    told: list[int] = []
    ours.changed = lambda: told.append(1)
    for cost in (1.0, 2.0):
        ours.charge("a", Spend(cost, 10))
    rows = ours.take_unshared()
    assert [(row[0], row[2], row[3]) for row in rows] == [("a", 3.0, 20)]
    theirs.merge(rows)
    theirs.merge([("a", ours.day - 1, 40.0, 1)])
    assert (theirs.spent("a", MONTH), theirs.take_unshared(), ours.take_unshared()) == (Spend(3.0, 20), [], [])
    assert len(told) == 2
    assert theirs.rows() == rows


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 10)), max_size=40))
def test_sums_are_those_of_a_list(steps: list[tuple[int, float]]) -> None:
    """Whatever the calendar does in between."""
    clock = Clock(at("2026-01-15 06:00"))
    ledger, spent = Ledger(clock), list[tuple[datetime, float]]()
    for days, usd in steps:
        clock.now = datetime.fromtimestamp(clock.now.timestamp() + 86400 * days, UTC)
        ledger.charge("a", Spend(usd, 1))
        spent.append((clock.now, usd))
        today = [usd for when, usd in spent if when.date() == clock.now.date()]
        month = [usd for when, usd in spent if (when.year, when.month) == (clock.now.year, clock.now.month)]
        assert ledger.spent("a", DAY).usd == pytest.approx(sum(today))
        assert ledger.spent("a", MONTH).usd == pytest.approx(sum(month))
        assert len(ledger.rows()) <= 31


async def test_the_file_is_written_of_rows_that_a_thread_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand accounts have thirty thousand at a month's end, which the loop made every half second."""
    ledger = Ledger(Clock(at("2026-11-28 12:00")))
    made: list[threading.Thread] = []
    later = Ledger.rows_later

    def noted(of: Ledger) -> Callable[[], list[Row]]:
        rows = later(of)

        def make() -> list[Row]:
            made.append(threading.current_thread())
            return rows()

        return make

    monkeypatch.setattr(Ledger, "rows_later", noted)
    keeper = SpendKeeper(ledger, lambda event: None, tmp_path / "spend.json")
    ledger.charge("a", Spend(1.0, 10))
    await keeper.close()
    assert spend_file.read(tmp_path / "spend.json")[0] == ledger.rows()
    assert threading.main_thread() not in made[:1]


def test_rows_for_later_are_of_now() -> None:
    """Accounts and days that come meanwhile are for the next ones."""
    clock = Clock(at("2026-11-28 12:00"))
    ledger = Ledger(clock)
    ledger.charge("a", Spend(1.0, 10))
    rows = ledger.rows_later()
    ledger.charge("b", Spend(1.0, 10))
    clock.now = at("2026-11-29 12:00")
    ledger.charge("a", Spend(1.0, 10))
    assert [row[0] for row in rows()] == ["a"]
    assert len(ledger.rows()) == 3


def test_what_was_spent_before_is_sorted_once() -> None:
    """Each of a thousand accounts asks for its part, of thirty thousand rows."""
    looked = [0]

    class Rows(list[Row]):
        def __iter__(self) -> Iterator[Row]:
            looked[0] += 1
            return super().__iter__()

    ledger = Ledger(Clock(at("2026-11-28 12:00")))
    day = ledger.day
    for number in (1, 2):
        ledger.recovered = Rows((f"a{n}", day - n % 3, 1.0 * number, n) for n in range(300))
        for n in range(300):
            in_day, in_month = ledger.before(f"a{n}", day)
            assert (in_day.tokens, in_month.tokens) == (0 if n % 3 else n, n)
            assert in_month.usd == number
        assert looked[0] == number


def test_the_lengths_of_so_many_targets_are_remembered() -> None:
    """Clients choose their names; the one that has answered longest ago is forgotten."""
    lengths, targets = AnswerLengths(), [Target("p", f"m{number}") for number in range(1001)]
    for target in (*targets[:1000], targets[0], targets[1000]):
        lengths.learn(target, 7)
    assert [lengths.expected(target) for target in (*targets[:3], targets[1000])] == [7, 0, 7, 7]
