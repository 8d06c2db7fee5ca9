"""What one request may cost before it begins, and what it did cost once that is known.

Reserved before each call, so that many requests at once cannot pass where one may; settled with the provider's usage.

1. A budget of ``on_budget: local`` skips targets for which too little is left; those that cost nothing always pass.
2. One of ``on_budget: refuse`` ends the request at its beginning where too little is left for every target.
3. An attempt that failed has cost what its provider counted, if it told.
4. An answer that nobody counted has cost its prompt and what came of it, both estimated from bytes.
"""

from __future__ import annotations

from attrs import define, field, frozen

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.budgets import Budget, Limit
from manallm_proxy.contract.errors import BudgetExceeded
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.ratelimit import Taken
from manallm_proxy.openai.token_counts import answered_tokens, expected_tokens
from manallm_proxy.routing.circuit import BUDGET, Skip
from manallm_proxy.routing.home import A, Ask
from manallm_proxy.routing.ledger import Spend


@frozen
class Account:
    """Of a client key or an alias. ``name``: in the ledger, and for people."""

    name: str
    budget: Budget


@define(eq=False)
class Expense:
    """Of one request. ``prompt`` and ``answer``: tokens, as they are expected."""

    generation: Generation
    accounts: tuple[Account, ...]
    caller: Caller | None = None
    prompt: int = 0
    answer: int = 0
    streams: bool = False
    _taken: Taken | None = None
    _held: dict[Target, Spend] = field(factory=dict)
    """What is reserved for the attempts that are under way."""
    _settled: bool = False

    def reserve(self, chain: Chain) -> None:
        """KeyLimited or BudgetExceeded where the request may not begin."""
        for account in self.accounts:
            # 2
            if account.budget.on_budget == "refuse":
                overs = [self._over(account, entry) for entry in chain]
                if None not in overs and (limit := overs[0]) is not None:
                    raise BudgetExceeded(
                        f"{self._used(account, limit)}; there is more of it in "
                        f"{self.generation.ledger.resets_in(limit) / 3600:.1f} hours",
                        retry_after=self.generation.ledger.resets_in(limit),
                    )
        if self.caller is not None:
            self._taken = self.caller.reserve(self.prompt + self.answer, self.generation.registry.clock())

    # 1

    def refusal(self, entry: Entry) -> Skip | None:
        """Why `entry` is not to be asked; None where it may be."""
        for account in self.accounts:
            if (limit := self._over(account, entry)) is not None:
                return Skip(BUDGET, self.generation.ledger.resets_in(limit), self._used(account, limit))
        return None

    def gate(self, entry: Entry) -> Skip | None:
        """As `refusal`; where there is none, what the attempt may cost is reserved until it has ended."""
        if (skip := self.refusal(entry)) is not None:
            return skip
        self._hold(entry)
        return None

    def _over(self, account: Account, entry: Entry) -> Limit | None:
        wanted = self._cost(entry, Usage(self.prompt, self.answer))
        limits = account.budget.limits
        if self.generation.is_free(entry):
            if account.budget.on_budget == "local":
                return None
            limits = tuple(limit for limit in limits if limit.amount.unit == "tokens")
        return self.generation.ledger.over(account.name, limits, wanted)

    def _used(self, account: Account, limit: Limit) -> str:
        spent = self.generation.ledger.spent(account.name, limit)
        number = spent.usd if limit.amount.unit == "USD" else spent.tokens
        return f"{account.name} has spent {number:.4g} of {limit}, which leaves too little"

    def _cost(self, entry: Entry, usage: Usage) -> Spend:
        price = self.generation.price_of(entry)
        return Spend(price.cost(usage) if price is not None else 0.0, max(usage.prompt + usage.completion, 1))

    def _hold(self, entry: Entry) -> None:
        self._release(entry.target)
        wanted = self._held[entry.target] = self._cost(entry, Usage(self.prompt, self.answer))
        for account in self.accounts:
            self.generation.ledger.reserve(account.name, wanted)

    def _release(self, target: Target) -> None:
        wanted = self._held.pop(target, None)
        if wanted is not None:
            for account in self.accounts:
                self.generation.ledger.release(account.name, wanted)

    # 3

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """`ask`, with what becomes of an attempt that fails."""
        if not self.accounts:
            return ask

        async def paid(entry: Entry) -> A:
            try:
                return await ask(entry)
            except BaseException as error:
                self._release(entry.target)
                if isinstance(error, ProviderError) and error.usage is not None:
                    self._charge(entry, error.usage)
                raise

        return paid

    # 4

    def settle(self, served: Entry | None, usage: Usage | None, sent: int) -> None:
        """It is over: `served` answered, if anybody did, with `sent` bytes. Harmless when repeated."""
        if self._settled:
            return
        self._settled = True
        for target in tuple(self._held):
            self._release(target)
        estimated = Usage(self.prompt, answered_tokens(sent, streamed=self.streams))
        known = usage if usage is not None and usage.is_credible else estimated
        if served is not None:
            self._charge(served, known)
        if self.caller is not None and self._taken is not None:
            tokens = known.prompt + known.completion if served is not None else 0
            self.caller.settle(self._taken, tokens, self.generation.registry.clock())

    def _charge(self, entry: Entry, usage: Usage) -> None:
        cost = self._cost(entry, usage)
        for account in self.accounts:
            self.generation.ledger.charge(account.name, cost)


def expense_of(generation: Generation, call: Call, caller: Caller | None, chain: Chain) -> Expense | None:
    """None if nothing limits what the request may cost, or no model is asked."""
    accounts = accounts_of(caller, chain)
    limited = caller if caller is not None and caller.key.tokens_per_minute is not None else None
    asks_nobody = call.answer is not None or call.endpoint is Endpoint.COUNT_TOKENS
    if asks_nobody or (limited is None and not accounts):
        return None
    return Expense(generation, accounts, limited, *expected_tokens(call), call.summary.stream)


def accounts_of(caller: Caller | None, chain: Chain) -> tuple[Account, ...]:
    """Who pays for a request of `caller` along `chain`."""
    found: list[Account] = []
    if caller is not None and caller.budget is not None:
        found.append(Account(f"key {caller.key.name}", caller.budget))
    if chain.budget is not None and chain.alias is not None:
        found.append(Account(f"alias {chain.alias}", chain.budget))
    return tuple(found)
