"""What one request may cost before it begins, and what it did cost once that is known.

Reserved before each call, so that many requests at once cannot pass where one may; settled with the provider's usage.
How long an answer may be the request says; else it is as long as its target's are on average, but what is estimated
refuses nobody: of that as much is reserved as there is left.

1. A budget of ``on_budget: local`` skips targets for which too little is left; those that cost nothing always pass.
2. One of ``on_budget: refuse`` ends the request at its beginning where too little is left for every target.
3. An attempt that failed has cost what its provider counted, if it told. One that was left has cost its prompt.
4. An answer that nobody counted has cost its prompt and what came of it, both estimated from bytes.
5. Where a server counts for all who share a budget, it is asked before each call, see `shared_spend`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.budgets import Budget, Limit
from manallm_proxy.contract.errors import BudgetExceeded
from manallm_proxy.contract.provider import Call, Endpoint
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
"""Seconds in which what is given back is known to all, as a rule."""
MOST_CHOICES: Final = 1000
"""Of one request, as far as an estimate needs to know."""


@frozen
class Account:
    """Of a client key or an alias. ``name``: in the ledger, and for people."""

    name: str
    budget: Budget


@define(eq=False)
class Expense:
    """Of one request. ``prompt`` and ``answer``: tokens, as they are expected; ``choices`` has as many answers."""

    generation: Generation
    accounts: tuple[Account, ...]
    caller: Caller | None = None
    prompt: int = 0
    answer: int = 0
    choices: int = 1
    streams: bool = False
    _taken: TokenReservation | None = None
    _held: dict[Target, Hold] = field(factory=dict)
    """What is reserved for the attempts that are under way."""
    _asked: set[Target] = field(factory=set)
    """Those that are under way, whose turn has come."""
    _lost: int = 0
    """Tokens of attempts that did not serve."""
    _settled: bool = False

    async def reserve(self, chain: Chain) -> None:
        """KeyLimited or BudgetExceeded where the request may not begin."""
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
        """As `refusal`, for who only looks: by what this process knows, also where another one would be asked."""
        for account in self.accounts:
            if limits := self._limits(account, entry):
                limit = self.generation.ledger.over(account.name, limits, self._sure(entry))
                if limit is not None:
                    return self._skip(account.name, limit)
        return None

    def gate(self, entry: Entry) -> Skip | None:
        """As `refusal`; where there is none, what the attempt may cost is reserved until it has ended."""
        if (skip := self.refusal(entry)) is not None:
            return skip
        if not self.generation.limits.spend.is_on:
            self._reserve_here(entry)
        return None

    def _over(self, account: Account, entry: Entry) -> Limit | None:
        limits, shared = self._limits(account, entry), self.generation.limits.spend
        if not limits:
            return None
        over = shared.over if shared.is_on else self.generation.ledger.over
        return over(account.name, limits, self._sure(entry))

    def _limits(self, account: Account, entry: Entry) -> tuple[Limit, ...]:
        """Those that an attempt at `entry` has to keep."""
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
        return f"{account} has spent {number:.4g} of {limit}, which leaves too little"

    def _cost(self, entry: Entry, usage: Usage) -> Spend:
        price = self.generation.price_of(entry)
        return Spend(price.cost(usage) if price is not None else 0.0, max(usage.prompt + usage.completion, 1))

    def _sure(self, entry: Entry) -> Spend:
        return self._cost(entry, Usage(self.prompt, self.answer))

    def _likely(self, entry: Entry) -> int:
        """Tokens of the answer, where the request does not bound it."""
        return self.choices * self.generation.ledger.lengths.expected(entry.target) if not self.answer else 0

    def _wanted(self, entry: Entry) -> tuple[Spend, Spend]:
        """What the attempt costs for sure, and what beside that."""
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
        if self._settled:  # whoever pays has left; the answer goes on for others, and nobody would give it back
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
        """Raises Declined where too little is left."""
        accounts = [(each.name, limits) for each in self.accounts if (limits := self._limits(each, entry))]
        if accounts:
            spend, wanted = self.generation.limits.spend, self._wanted(entry)
            try:
                found = await spend.hold(accounts, *wanted)
                if not isinstance(found, Hold) and spend.over(found[0], dict(accounts)[found[0]], wanted[0]) is None:
                    await asyncio.sleep(SETTLING)  # it is reserved: perhaps by a call that is over by now
                    found = await spend.hold(accounts, *wanted)
            except ServerUnavailable:
                if (skip := self.refusal(entry)) is not None:
                    raise Declined(skip) from None
            else:
                if not isinstance(found, Hold):
                    raise Declined(self._skip(*found))
                self._note(entry, found)
                return
        self._reserve_here(entry)

    # 3

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """`ask`, with what becomes of an attempt that fails."""

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
                self._asked.discard(entry.target)
                raise

        return paid

    def charging(self, ask: Ask[A]) -> Ask[A]:
        """`ask`, which is called once it is the request's turn: from then on it is on the bill."""

        async def noted(entry: Entry) -> A:
            self._asked.add(entry.target)
            return await ask(entry)

        return noted

    def _left(self, entry: Entry) -> None:
        """It was cancelled; who was asked has read the prompt."""
        if entry.target in self._asked:
            self._asked.discard(entry.target)
            self._charge_failed(entry, Usage(self.prompt))

    def _charge_failed(self, entry: Entry, usage: Usage) -> None:
        """An attempt that does not serve has cost this."""
        self._charge(entry, usage)
        self._lost += usage.prompt + usage.completion

    # 4

    def settle(self, served: Entry | None, usage: Usage | None, sent: int, chain: Chain) -> None:
        """It is over: `served` answered, if anybody did, with `sent` bytes. Harmless when repeated."""
        if self._settled:
            return
        self._settled = True
        for entry in chain:
            if served is not None and entry != served:
                self._left(entry)  # of two that were asked at once, the other was quicker
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
    """None if nothing limits what the request may cost, or no model is asked."""
    accounts = accounts_of(caller, chain)
    limited = caller if caller is not None and caller.key.tokens_per_minute is not None else None
    asks_nobody = call.answer is not None or call.endpoint is Endpoint.COUNT_TOKENS
    if asks_nobody or (limited is None and not accounts):
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
