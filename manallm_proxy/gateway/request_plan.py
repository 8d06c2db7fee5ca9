"""The plan of one request: which chain it walks, past which gates, and which accounts pay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from multidict import CIMultiDictProxy

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Chain, Entry
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.expense import Expense, expense_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.locality import requires_local, restrict_to_local
from manallm_proxy.openai.conversation import conversation_prefix
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.local_providers import A, Ask, RequestGates
from manallm_proxy.routing.tiers import Asked


@define(eq=False)
class RequestPlan:
    """One request's walk, gates and expense. ``expense`` None: no budget applies."""

    generation: Generation
    walk: Walk
    gates: RequestGates
    expense: Expense | None

    async def reserve(self) -> None:
        """Raises KeyLimited or BudgetExceeded if the targets may not be asked."""
        if self.expense is not None:
            await self.expense.reserve(self.walk.chain)

    def settle(self, served: Entry | None, usage: Usage | None, sent: int) -> None:
        """See `Expense.settle`. Harmless when repeated."""
        if self.expense is not None:
            self.expense.settle(served, usage, sent, self.walk.chain)

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """Wraps `ask`: it waits for the request's turn, and its expense is reserved and charged."""
        timed = self._timed(ask) if self.walk.chain.has_tiers else ask
        if self.expense is None:
            return self.gates.in_turn(timed, self.walk.is_last)
        return self.expense.in_turn(self.gates.in_turn(self.expense.charging(timed), self.walk.is_last))

    def _timed(self, ask: Ask[A]) -> Ask[A]:
        """Wraps `ask`: measures the time until an answer begins, for `tiers`."""
        generation, streams = self.generation, self.gates.call.summary.stream
        clock = generation.registry.clock

        async def timed(entry: Entry) -> A:
            started = clock()
            value = await ask(entry)
            generation.tiers.began(entry.target, streams, clock() - started)
            return value

        return timed


def chain_of(generation: Generation, call: Call, caller: Caller | None, headers: CIMultiDictProxy[str]) -> Chain:
    """The call's chain. Raises a ProxyError if the model is unknown or not allowed, or no local target is left."""
    chain = generation.chain_for(call.summary, caller)
    return restrict_to_local(chain, generation.config.providers) if requires_local(chain, caller, headers) else chain


def plan_request(generation: Generation, call: Call, caller: Caller | None, chain: Chain) -> RequestPlan:
    """The plan along `chain`. Raises Unsupported if no provider of it takes the call."""
    if call.endpoint.is_opaque or call.refusal is not None or not generation.all_chat:
        chain = generation.supporting(chain, call)
    if chain.has_tiers:
        asked = Asked(generation.registry.in_flight, partial(_conversation, call, caller), call.summary.stream)
        chain = generation.tiers.arranged(chain, asked, generation.registry.clock())
    ordered, boxes = chain, generation.local.boxes
    if boxes.boxes and (ordered := boxes.slow_last(chain)) is not chain:
        call.remarks.append("degraded_cpu: tried last")
    gates = generation.local.gates(call)
    expense = expense_of(generation, call, caller, ordered)
    gate = gates.gate if expense is None or not expense.accounts else _both(gates, expense)
    may_serve = _may_serve(generation, gates, expense) if generation.local.queues else None
    walk = Walk(ordered, generation.registry, call.request_id, gate, may_serve)
    return RequestPlan(generation, walk, gates, expense)


def _may_serve(generation: Generation, gates: RequestGates, expense: Expense | None) -> Callable[[Entry], bool]:
    """For `Walk.may_serve`. Loopback does not count: what it says is no answer."""
    providers = generation.config.providers

    def may_serve(entry: Entry) -> bool:
        if providers[entry.target.provider].kind == "loopback" or (expense is not None and expense.refusal(entry)):
            return False
        return gates.may_serve(entry)

    return may_serve


def _both(gates: RequestGates, expense: Expense) -> Callable[[Entry, Callable[[Entry], bool]], Skip | None]:
    """Both gates, in an order in which an unaffordable target loads no model, and a skipped one reserves nothing."""

    def gate(entry: Entry, is_last: Callable[[Entry], bool]) -> Skip | None:
        skip = expense.refusal(entry) or gates.gate(entry, is_last)
        if skip is None:
            expense.admit(entry)
        return skip

    return gate


def _conversation(call: Call, caller: Caller | None) -> bytes:
    """Bytes that are equal for all requests of one conversation with one client key."""
    return (caller.key.name.encode() if caller is not None else b"") + b"\0" + conversation_prefix(call)
