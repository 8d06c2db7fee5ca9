"""Budgets shared by several workers and instances, through a server (Redis) that counts for all.

1. Before a call its cost is reserved there, for all of its accounts or for none; it is settled without waiting.
2. The server's totals are remembered: if it loses its data, what was spent is sent to it again.
3. If it does not answer in time, this process's ledger decides, with the last known totals of the others; what is spent
   meanwhile is sent to the server when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from attrs import field

from manallm_proxy.contract.budgets import Limit
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.routing.ledger import Ledger, Spend, month_of
from manallm_proxy.state.link import Link, Refused, ServerUnavailable
from manallm_proxy.state.scripts import HOLD, LATE, MINUTE, ServerClock, name_of
from manallm_proxy.state.settlements import NOTHING, Settlements, Totals

NANO: Final = 1e9
BELIEVED: Final = 2.0
"""Seconds during which an exhausted budget is not asked for again."""
MOST: Final = 10**15
"""Max cost of one call in billionths of USD: a million USD."""

Limited = tuple[str, tuple[Limit, ...]]
"""An account, and those of its limits that apply to a call."""


@frozen
class Hold:
    """The reservation for one call. ``minute``: the server's minute it is filed under; None: in this process only."""

    accounts: tuple[str, ...]
    spend: Spend
    minute: int | None = None
    id: str = ""
    """Its id at the server."""


@frozen
class _ServerTotals:
    """The server's totals of one account: spent in ``day``, and in its month."""

    day: int
    totals: Totals
    at: float


@define(eq=False)
class SharedSpend:
    """Shared budgets. ``link`` None: the current configuration shares nothing."""

    ledger: Ledger
    link: Callable[[], Link | None]
    clock: Callable[[], float]
    settlements: Settlements = field(init=False)
    server_clock: ServerClock = field(factory=ServerClock)
    _known: dict[str, _ServerTotals] = field(factory=dict)
    _refused: bool = False
    """Whether the server rejected our last command: it is full, or a replica. It is asked again once it has accepted
    what was spent meanwhile."""
    _spent_alone: bool = False
    """Whether anything was spent while nothing was shared."""

    def __attrs_post_init__(self) -> None:
        self.settlements = Settlements(self.link, self.clock, self._floor, self._learn)
        self.ledger.server_counts = lambda: self.is_on

    @property
    def is_on(self) -> bool:
        """Whether the server counts for all now."""
        link = self.link()
        return link is not None and link.is_well and not self._refused

    # 1

    def over(self, account: str, limits: Sequence[Limit], wanted: Spend) -> Limit | None:
        """The first of `limits` that leaves too little by the server's totals, without reservations; None if none does.

        The totals may be incomplete; then `hold` decides.
        """
        known = self._known.get(account)
        if known is None or known.day != self.ledger.day or self.clock() - known.at > BELIEVED:
            return None
        for limit in limits:
            at = 2 if limit.period == "month" else 0
            spent = Spend(known.totals[at] / NANO, known.totals[at + 1])
            left = limit.amount.number - spent.in_(limit)
            if left <= 0 or wanted.in_(limit) > left + 1 / NANO:
                return limit
        return None

    async def hold(self, accounts: Sequence[Limited], sure: Spend, likely: Spend) -> Hold | tuple[str, Limit]:
        """The reservation, or the account and limit that leave too little. Raises ServerUnavailable.

        `sure` must fit; of `likely` as much is reserved in addition as fits.
        """
        link = self._found()
        if link is None:
            raise ServerUnavailable
        day = self.ledger.day
        month = month_of(day)
        argument = msgspec.json.encode(
            {
                "day": day,
                "month": month,
                "sure": {"u": _nano(sure.usd), "t": sure.tokens},
                "likely": {"u": _nano(likely.usd), "t": likely.tokens},
                "accounts": [
                    {"floor": self._floor(name, day, month), "limits": [_limit(each) for each in limits]}
                    for name, limits in accounts
                ],
            }
        ).decode()
        names, id_ = [name_of("account", name) for name, _ in accounts], self.settlements.new_id()
        until, was_well = self.server_clock.until(self.clock()), link.is_well
        try:
            blocked, time, usd, tokens, *totals = await link.use(
                lambda client: HOLD.run(client, [*names, self.settlements.sender], argument, until, id_)
            )
        except Refused as refusal:
            self._refused = True
            link.report_refusal(str(refusal))
            raise ServerUnavailable from None
        except BaseException:
            if was_well:
                self.settlements.undo(names, id_)
            raise
        self._refused = False
        self.server_clock.learn(time, self.clock())
        if blocked == LATE or len(totals) != 6 * len(accounts) or blocked > len(accounts):
            raise ServerUnavailable
        for at, (name, _) in enumerate(accounts):
            du, dt, mu, mt, hu, ht = totals[6 * at : 6 * at + 6]
            self._learn(name, day, month, (du, dt, mu, mt))
            ours, given_back = self.ledger.held(name), self.settlements.released(name)
            others = hu - _nano(ours.usd) - given_back[0], ht - ours.tokens - given_back[1]
            self.ledger.learn_held(name, Spend(max(0, others[0]) / NANO, max(0, others[1])))
        if blocked:
            name, limits = accounts[blocked - 1]
            return name, self.ledger.over(name, limits, sure) or limits[0]
        return Hold(tuple(name for name, _ in accounts), Spend(usd / NANO, tokens), time // MINUTE, id_)

    def give_back(self, hold: Hold) -> None:
        """Releases the reservation: the call is over."""
        if hold.minute is not None and self.link() is not None:
            for account in hold.accounts:
                self.settlements.next.release(account, hold.minute, _nano(hold.spend.usd), hold.spend.tokens)
            self.settlements.next.done.append(hold.id)
            self.settlements.send()

    def charge(self, account: str, cost: Spend) -> None:
        """Records `cost` as spent."""
        if self._found() is None:
            self._spent_alone = True
        else:
            day = self.ledger.day
            self.settlements.next.add_cost(account, day, month_of(day), _nano(cost.usd), cost.tokens)
            self.settlements.send()

    # 2

    def _found(self) -> Link | None:
        """The current link. For a server new since a reload, what was spent without one counts as spent before."""
        link = self.link()
        if link is not None and self._spent_alone:
            self._spent_alone = False
            self._known.clear()
            self.ledger.recovered = self.ledger.rows()
        return link

    def _floor(self, account: str, day: int, month: int) -> Totals:
        known = self._known.get(account)
        if known is None:
            in_day, in_month = self.ledger.before(account, day)
            return _nano(in_day.usd), in_day.tokens, _nano(in_month.usd), in_month.tokens
        of_day = known.totals[:2] if known.day == day else NOTHING[:2]
        of_month = known.totals[2:] if month_of(known.day) == month else NOTHING[2:]
        return (*of_day, *of_month)

    def _learn(self, account: str, day: int, month: int, totals: Totals) -> None:
        """Takes over the server's totals. Answers may arrive out of order, so totals never decrease."""
        self._refused = False
        known = self._known.get(account)
        if known is not None:
            if known.day > day:
                return
            floor = self._floor(account, day, month)
            a, b, c, d = map(max, totals, floor)
            totals = (a, b, c, d)
        self._known[account] = _ServerTotals(day, totals, self.clock())
        # 3
        today, earlier = [totals[0], totals[1]], [totals[2] - totals[0], totals[3] - totals[1]]
        for when, (usd, tokens) in self.settlements.unconfirmed(account):
            if month_of(when) == month:
                row = today if when == day else earlier
                row[0] += usd
                row[1] += tokens
        spends = (Spend(max(0, usd) / NANO, max(0, tokens)) for usd, tokens in (today, earlier))
        self.ledger.learn(account, day, *spends)


def _nano(usd: float) -> int:
    return min(round(usd * NANO), MOST)


def _limit(limit: Limit) -> tuple[str, str, int]:
    if limit.amount.unit == "USD":
        return limit.period, "u", round(limit.amount.number * NANO)
    return limit.period, "t", int(limit.amount.number)
