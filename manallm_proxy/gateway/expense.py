"""What one request may cost, reserved before it begins, and what it did cost, charged once that is known.

The reservation is made before each call, so that concurrent requests cannot pass where only one may; it is settled with
the provider's usage. The answer's length is the maximum that the request sets, else the average of its target. An
estimate never refuses a request: of it, only as much is reserved as there is left.

1. A budget with ``on_budget: local`` skips targets for which too little is left; free ones always pass.
2. One with ``on_budget: refuse`` refuses the request at its beginning if too little is left for every target.
3. A failed attempt costs what its provider reported, if anything. A cancelled one costs its prompt.
4. An answer without reported usage costs its prompt and the part that arrived, both estimated from bytes.
5. If a server counts for all who share a budget, it is asked before each call, see `shared_spend`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.budgets import Budget, Limit, written_out
from manallm_proxy.contract.errors import BudgetExceeded
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define, frozen
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.ratelimit import TokenReservation
from manallm_proxy.gateway.shared_spend import Hold
from manallm_proxy.openai.token_counts import answered_tokens, asked_number, expected_tokens
from manallm_proxy.routing.circuit import BUDGET, Declined, Skip
from manallm_proxy.routing.ledger import Spend
from manallm_proxy.routing.local_providers import A, Ask
from manallm_proxy.state.link import ServerUnavailable

SETTLING: Final = 0.01
"""Seconds within which a released reservation is usually known to all."""
MOST_CHOICES: Final = 1000
"""Max ``n`` of one request that an estimate considers."""


@frozen
class Account:
    """A client key or an alias that has a budget. ``name``: its name in the ledger and in messages."""

    name: str
    budget: Budget


@define(eq=False)
class Expense:
    """The expense of one request. ``prompt``, ``answer``: expected tokens, ``answer`` per choice."""

    generation: Generation
    accounts: tuple[Account, ...]
    caller: Caller | None = None
    prompt: int = 0
    answer: int = 0
    choices: int = 1
    streams: bool = False
    _taken: TokenReservation | None = None
    _held: dict[Target, Hold] = field(factory=dict)
    """Reservations of the attempts in flight."""
    _asked: dict[Target, int] = field(factory=dict)
    """Attempts in flight that have been sent: a chain may name a target twice, with other settings."""
    _lost: int = 0
    """Tokens of failed attempts."""
    _settled: bool = False

    async def reserve(self, chain: Chain) -> None:
        """Reserves the request's tokens. Raises KeyLimited or BudgetExceeded if it may not begin."""
        for account in self.accounts:
            # 2
            if account.budget.on_budget == "refuse":
                overs = [self._over(account, entry) for entry in chain]
                if None not in overs and (limit := overs[0]) is not None:
                    raise BudgetExceeded(
                        f"{self._used(account.name, limit)}; there is more of it in "
                        f"{self.generation.ledger.resets_in(limit) / 3600:.1f} hours",
                        retry_after=self.generation.ledger.resets_in(limit),
                    )
        if self.caller is not None:
            sure, likely = self.prompt + self.answer, self._likely(chain.entries[0])
            now = self.generation.registry.clock()
            self._taken = await self.generation.limits.take(self.caller, sure, likely, now)

    # 1

    def refusal(self, entry: Entry) -> Skip | None:
        """Why `entry` is not to be asked; None where it may be."""
        for account in self.accounts:
            if (limit := self._over(account, entry)) is not None:
                return self._skip(account.name, limit)
        return None

    def known_refusal(self, entry: Entry) -> Skip | None:
        """As `refusal`, by what this process knows, its own reservations included, and not by a server's totals."""
        for account in self.accounts:
            if limits := self._limits(account, entry):
                limit = self.generation.ledger.over(account.name, limits, self._sure(entry))
                if limit is not None:
                    return self._skip(account.name, limit)
        return None

    def admit(self, entry: Entry) -> None:
        """Reserves what an attempt that `refusal` lets pass may cost, until it has ended; if a server counts for all,
        that is done before the call (5)."""
        if not self.generation.limits.spend.is_on:
            self._reserve_here(entry)

    def _over(self, account: Account, entry: Entry) -> Limit | None:
        limits, shared = self._limits(account, entry), self.generation.limits.spend
        if not limits:
            return None
        over = shared.over if shared.is_on else self.generation.ledger.over
        return over(account.name, limits, self._sure(entry))

    def _limits(self, account: Account, entry: Entry) -> tuple[Limit, ...]:
        """The limits of `account` that apply to an attempt at `entry`."""
        limits = account.budget.limits
        if not self.generation.is_free(entry):
            return limits
        if account.budget.on_budget == "local":
            return ()
        return tuple(limit for limit in limits if limit.amount.unit == "tokens")

    def _skip(self, account: str, limit: Limit) -> Skip:
        return Skip(BUDGET, self.generation.ledger.resets_in(limit), self._used(account, limit))

    def _used(self, account: str, limit: Limit) -> str:
        number = self.generation.ledger.spent(account, limit).in_(limit)
        return f"{account} has spent {written_out(number, 6)} of {limit}, which leaves too little"

    def _cost(self, entry: Entry, usage: Usage) -> Spend:
        price = self.generation.price_of(entry)
        return Spend(price.cost(usage) if price is not None else 0.0, max(usage.prompt + usage.completion, 1))

    def _sure(self, entry: Entry) -> Spend:
        return self._cost(entry, Usage(self.prompt, self.answer))

    def _likely(self, entry: Entry) -> int:
        """Expected tokens of the answer if the request sets no maximum, else 0."""
        return self.choices * self.generation.ledger.lengths.expected(entry.target) if not self.answer else 0

    def _wanted(self, entry: Entry) -> tuple[Spend, Spend]:
        """(sure, likely): what the attempt costs at most by the request's own numbers, and the estimate beyond that."""
        sure, likely = self._sure(entry), self._likely(entry)
        all_ = self._cost(entry, Usage(self.prompt, self.answer + likely))
        return sure, Spend(max(0.0, all_.usd - sure.usd), all_.tokens - sure.tokens)

    def _reserve_here(self, entry: Entry) -> None:
        ledger, (sure, likely) = self.generation.ledger, self._wanted(entry)
        for account in self.accounts if likely.tokens else ():
            fitting = ledger.fitting(account.name, self._limits(account, entry), sure, likely)
            likely = Spend(fitting.usd - sure.usd, fitting.tokens - sure.tokens)
        spend = Spend(sure.usd + likely.usd, sure.tokens + likely.tokens)
        self._note(entry, Hold(tuple(account.name for account in self.accounts), spend))

    def _note(self, entry: Entry, hold: Hold) -> None:
        if self._settled:  # the paying client has left; the answer goes on for others, and nobody would release it
            self.generation.limits.spend.give_back(hold)
            return
        self._release(entry.target)
        self._held[entry.target] = hold
        for account in hold.accounts:
            self.generation.ledger.reserve(account, hold.spend)

    def _release(self, target: Target) -> None:
        hold = self._held.pop(target, None)
        if hold is not None:
            for account in hold.accounts:
                self.generation.ledger.release(account, hold.spend)
            self.generation.limits.spend.give_back(hold)

    # 5

    async def _hold(self, entry: Entry) -> None:
        """Reserves at the server. Raises Declined if too little is left."""
        accounts = [(each.name, limits) for each in self.accounts if (limits := self._limits(each, entry))]
        if accounts:
            spend, wanted = self.generation.limits.spend, self._wanted(entry)
            try:
                found = await spend.hold(accounts, *wanted)
                if not isinstance(found, Hold) and spend.over(found[0], dict(accounts)[found[0]], wanted[0]) is None:
                    await asyncio.sleep(SETTLING)  # it may be reserved by a call that is over by now
                    found = await spend.hold(accounts, *wanted)
            except ServerUnavailable:  # here, where many ask at once, also for a server that is well
                if (skip := self.known_refusal(entry)) is not None:
                    raise Declined(skip) from None
            else:
                if not isinstance(found, Hold):
                    raise Declined(self._skip(*found))
                self._note(entry, found)
                return
        self._reserve_here(entry)

    # 3

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """Wraps `ask`: reserves before it, and charges an attempt that fails."""

        async def paid(entry: Entry) -> A:
            if self.accounts and entry.target not in self._held:
                await self._hold(entry)
            try:
                return await ask(entry)
            except BaseException as error:
                self._release(entry.target)
                if isinstance(error, ProviderError):
                    if error.usage is not None:
                        self._charge_failed(entry, error.usage)
                elif isinstance(error, asyncio.CancelledError):
                    self._left(entry)
                    raise
                self._over_with(entry)
                raise

        return paid

    def charging(self, ask: Ask[A]) -> Ask[A]:
        """Wraps `ask`, which is called when the request's turn has come: from then on the attempt is charged."""

        async def noted(entry: Entry) -> A:
            self._asked[entry.target] = self._asked.get(entry.target, 0) + 1
            return await ask(entry)

        return noted

    def _left(self, entry: Entry) -> None:
        """Charges a cancelled attempt, whose provider has read the prompt."""
        if self._over_with(entry):
            self._charge_failed(entry, Usage(self.prompt))

    def _over_with(self, entry: Entry) -> bool:
        """One attempt at `entry` is over. Whether it had been sent."""
        sent = self._asked.pop(entry.target, 0)
        if sent > 1:
            self._asked[entry.target] = sent - 1
        return sent > 0

    def _charge_failed(self, entry: Entry, usage: Usage) -> None:
        """Charges `usage` of a failed attempt."""
        self._charge(entry, usage)
        self._lost += usage.prompt + usage.completion

    # 4

    def settle(self, served: Entry | None, usage: Usage | None, sent: int, chain: Chain) -> None:
        """The request is over: `served` (None: nobody) answered with `sent` bytes. Harmless when repeated."""
        if self._settled:
            return
        self._settled = True
        if served is not None:
            self._over_with(served)
        for entry in chain:
            while served is not None and entry.target in self._asked:
                self._left(entry)  # of two hedged attempts, the other was faster
            self._release(entry.target)
        estimated = Usage(self.prompt, answered_tokens(sent, streamed=self.streams))
        known = usage if usage is not None and usage.is_plausible else estimated
        if served is not None:
            self._charge(served, known)
            if known is usage:
                self.generation.ledger.lengths.learn(served.target, -(-usage.completion // self.choices))
        if self.caller is not None and self._taken is not None:
            tokens = known.prompt + known.completion if served is not None else 0
            now = self.generation.registry.clock()
            self.generation.limits.settle(self.caller, self._taken, tokens + self._lost, now)

    def _charge(self, entry: Entry, usage: Usage) -> None:
        cost = self._cost(entry, usage)
        for account in self.accounts:
            self.generation.limits.spend.charge(account.name, cost)
            self.generation.ledger.charge(account.name, cost)


def expense_of(generation: Generation, call: Call, caller: Caller | None, chain: Chain) -> Expense | None:
    """The expense of one request; None if no budget applies."""
    accounts = accounts_of(caller, chain) if caller is not None or chain.budget is not None else ()
    limited = caller if caller is not None and caller.key.tokens_per_minute is not None else None
    if limited is None and not accounts:
        return None
    choices = min(max(asked_number(call, "n"), 1), MOST_CHOICES)
    return Expense(generation, accounts, limited, *expected_tokens(call), choices, call.summary.stream)


def accounts_of(caller: Caller | None, chain: Chain) -> tuple[Account, ...]:
    """Who pays for a request of `caller` along `chain`."""
    found: list[Account] = []
    if caller is not None and caller.budget is not None:
        found.append(Account(f"key {caller.key.name}", caller.budget))
    if chain.budget is not None and chain.alias is not None:
        found.append(Account(f"alias {chain.alias}", chain.budget))
    return tuple(found)
