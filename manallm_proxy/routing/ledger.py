"""What each account (a client key, an alias) has spent, day by day, and what its requests in flight may spend.

1. An account is over a limit if the sum of what it has spent in the period, what is reserved, and what the next request
   may cost exceeds the limit; or if the limit is used up, whatever the request costs.
2. Days and months are those of UTC's calendar. What was spent in earlier months is forgotten.
3. Reservations are this process's own. Spending is shared: workers send it to each other, see `take_unshared`.
4. If a server (Redis) counts for all instances, this holds its last known totals, plus our spending that it has not
   confirmed yet. It also reports reservations of others, which are valid for `HELD_FOR` seconds.

Nothing here waits or touches a file. The clock is seconds since the epoch, since a budget outlives the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final

from attrs import field

from manallm_proxy.contract.budgets import Limit
from manallm_proxy.contract.records import define
from manallm_proxy.routing.lengths import AnswerLengths

DAY: Final = 86_400
_EPOCH: Final = date(1970, 1, 1).toordinal()
HELD_FOR: Final = 60.0
_TINY: Final = 1e-9
"""Rounding error of sums, in USD."""

Row = tuple[str, int, float, int]
"""Account, day since the epoch, USD, tokens."""


@define
class Spend:
    """USD and tokens."""

    usd: float = 0.0
    tokens: int = 0

    def add(self, usd: float, tokens: int) -> None:
        self.usd += usd
        self.tokens += tokens

    def in_(self, limit: Limit) -> float:
        """The amount in the unit of `limit`."""
        return self.usd if limit.amount.unit == "USD" else self.tokens


@lru_cache(maxsize=128)
def month_of(day: int) -> int:
    """A number for the month of `day`; consecutive months have consecutive numbers."""
    found = date.fromordinal(_EPOCH + day)
    return found.year * 12 + found.month


def first_day_of(day: int) -> int:
    """The first day of `day`'s month, as days since the epoch."""
    return day + 1 - date.fromordinal(_EPOCH + day).day


@define(eq=False)
class Ledger:
    """Spending and reservations of all accounts. ``changed`` is called after a charge in this process."""

    clock: Callable[[], float] = time.time
    changed: Callable[[], None] | None = None
    _days: dict[str, dict[int, Spend]] = field(factory=dict)
    _reserved: dict[str, Spend] = field(factory=dict)
    _unshared: dict[tuple[str, int], Spend] = field(factory=dict)
    _elsewhere: dict[str, tuple[Spend, float]] = field(factory=dict)
    """What others have reserved, and when that was reported."""
    _month: int = 0
    recovered: list[Row] = field(factory=list)
    """Rows that this proxy's own file had at the start."""
    _sorted: tuple[list[Row] | None, dict[str, list[Row]]] = (None, {})
    """Which of these are sorted here, by account."""
    lengths: AnswerLengths = field(factory=AnswerLengths)
    server_counts: Callable[[], bool] = lambda: False
    """Whether a server counts for all now, so that the other workers' spending comes from there."""

    @property
    def day(self) -> int:
        return int(self.clock() // DAY)

    # 1

    def over(self, account: str, limits: Iterable[Limit], wanted: Spend) -> Limit | None:
        """The first of `limits` that leaves too little for `wanted`; None if all leave enough."""
        for limit in limits:
            left = self._left(account, limit)
            if left <= _TINY or wanted.in_(limit) > left + _TINY:
                return limit
        return None

    def fitting(self, account: str, limits: Iterable[Limit], sure: Spend, likely: Spend) -> Spend:
        """`sure` plus as much of `likely` as all `limits` leave."""
        usd, tokens = sure.usd + likely.usd, sure.tokens + likely.tokens
        for limit in limits:
            left = self._left(account, limit)
            if limit.amount.unit == "USD":
                usd = max(sure.usd, min(usd, left))
            else:
                tokens = max(sure.tokens, min(tokens, int(left)))
        return Spend(usd, tokens)

    def _left(self, account: str, limit: Limit) -> float:
        held = self.held(account).in_(limit)
        if (heard := self._elsewhere.get(account)) is not None and self.clock() - heard[1] < HELD_FOR:
            held += heard[0].in_(limit)
        return limit.amount.number - self.spent(account, limit).in_(limit) - held

    def held(self, account: str) -> Spend:
        """What this process has reserved for `account`."""
        return self._reserved.get(account, _NOTHING)

    def spent(self, account: str, limit: Limit) -> Spend:
        """What `account` has spent in the current day or month."""
        days, today = self._days.get(account), self.day
        if days is None:
            return _NOTHING
        if limit.period == "day":
            return days.get(today, _NOTHING)
        total, month = Spend(), month_of(today)
        for day, spend in days.items():
            if month_of(day) == month:
                total.add(spend.usd, spend.tokens)
        return total

    def reserve(self, account: str, wanted: Spend) -> None:
        """Reserves `wanted` until `release`."""
        self._reserved.setdefault(account, Spend()).add(wanted.usd, wanted.tokens)

    def release(self, account: str, wanted: Spend) -> None:
        """Releases a reservation."""
        held = self._reserved[account]
        held.add(-wanted.usd, -wanted.tokens)
        if not held.tokens:
            del self._reserved[account]  # or a rounding error would stay reserved

    def charge(self, account: str, cost: Spend) -> None:
        """Records `cost` as spent today."""
        day = self.day
        self._add(account, day, cost.usd, cost.tokens)
        self._unshared.setdefault((account, day), Spend()).add(cost.usd, cost.tokens)
        if self.changed is not None:
            self.changed()

    # 2

    def resets_in(self, limit: Limit) -> float:
        """Seconds until the limit's period ends."""
        now = self.clock()
        if limit.period == "day":
            return DAY - now % DAY
        today = datetime.fromtimestamp(now, UTC)
        year, month = divmod(today.year * 12 + today.month, 12)
        return datetime(year, month + 1, 1, tzinfo=UTC).timestamp() - now

    def _add(self, account: str, day: int, usd: float, tokens: int) -> None:
        this_month = month_of(self.day)
        if this_month != self._month:
            self._month = this_month
            for days in self._days.values():
                for old in [each for each in days if month_of(each) < this_month]:
                    del days[old]
            for key in [each for each in self._unshared if month_of(each[1]) < this_month]:
                del self._unshared[key]
        if month_of(day) >= this_month:
            self._days.setdefault(account, {}).setdefault(day, Spend()).add(usd, tokens)

    # 3

    def merge(self, rows: Iterable[Row]) -> None:
        """Adds what was spent elsewhere, or before this process began."""
        for account, day, usd, tokens in rows:
            self._add(account, day, usd, tokens)

    def recover(self, rows: list[Row]) -> None:
        """Adds what was spent before this proxy began."""
        self.recovered = rows
        self.merge(rows)

    def before(self, account: str, day: int) -> tuple[Spend, Spend]:
        """The part of ``recovered`` that was spent in `day`, and in the whole of its month."""
        in_day, in_month = Spend(), Spend()
        if self._sorted[0] is not self.recovered:  # once, not for each of a thousand accounts
            by_account: dict[str, list[Row]] = {}
            for row in self.recovered:
                by_account.setdefault(row[0], []).append(row)
            self._sorted = self.recovered, by_account
        for _, when, usd, tokens in self._sorted[1].get(account, ()):
            if month_of(when) == month_of(day):
                in_month.add(usd, tokens)
                if when == day:
                    in_day.add(usd, tokens)
        return in_day, in_month

    # 4

    def learn(self, account: str, day: int, spent: Spend, earlier: Spend) -> None:
        """Sets what was spent in `day`, and `earlier` in its month: the server's totals plus our unconfirmed part."""
        if day != self.day:
            return
        self._add(account, day, 0.0, 0)
        days, month = self._days[account], month_of(day)
        for each in [each for each in days if month_of(each) == month]:
            del days[each]
        days[day] = spent
        if (first := first_day_of(day)) != day and earlier.tokens:
            days[first] = earlier

    def learn_held(self, account: str, held: Spend) -> None:
        """Sets what others have reserved."""
        self._elsewhere[account] = held, self.clock()

    def rows(self) -> list[Row]:
        """All spending, one row per account and day."""
        return self.rows_later()()

    def rows_later(self) -> Callable[[], list[Row]]:
        """Makes `rows`, also in another thread: thirty thousand for a thousand accounts at a month's end.

        What is charged meanwhile may be in them, of the last charge its dollars alone: the next rows have it all.
        """
        held = [(account, list(days.items())) for account, days in self._days.items()]
        return lambda: [(account, day, spend.usd, spend.tokens) for account, days in held for day, spend in days]

    def take_unshared(self) -> list[Row]:
        """Rows spent in this process since the last call."""
        rows = [(account, day, spend.usd, spend.tokens) for (account, day), spend in self._unshared.items()]
        self._unshared.clear()
        return rows


_NOTHING: Final = Spend()
