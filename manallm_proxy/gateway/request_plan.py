"""Where one request goes: along which chain, past which gates, at whose expense."""

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
    """``expense`` None: nobody limits what it may cost."""

    generation: Generation
    walk: Walk
    gates: RequestGates
    expense: Expense | None

    async def reserve(self) -> None:
        """KeyLimited or BudgetExceeded if the targets may not be asked."""
        if self.expense is not None:
            await self.expense.reserve(self.walk.chain)

    def settle(self, served: Entry | None, usage: Usage | None, sent: int) -> None:
        """See `Expense.settle`. Harmless when repeated."""
        if self.expense is not None:
            self.expense.settle(served, usage, sent, self.walk.chain)

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """`ask`, once it is the request's turn there; and who pays."""
        timed = self._timed(ask) if self.walk.chain.has_tiers else ask
        if self.expense is None:
            return self.gates.in_turn(timed)
        return self.expense.in_turn(self.gates.in_turn(self.expense.charging(timed)))

    def _timed(self, ask: Ask[A]) -> Ask[A]:
        """Tiers go by how long it takes until an answer begins."""
        generation, streams = self.generation, self.gates.call.summary.stream
        clock = generation.registry.clock

        async def timed(entry: Entry) -> A:
            started = clock()
            value = await ask(entry)
            generation.tiers.began(entry.target, streams, clock() - started)
            return value

        return timed


def chain_of(generation: Generation, call: Call, caller: Caller | None, headers: CIMultiDictProxy[str]) -> Chain:
    """Raises the ProxyError of a model that is not there, may not be used, or of which nothing is left at home."""
    chain = generation.chain_for(call.summary, caller)
    return restrict_to_local(chain, generation.config.providers) if requires_local(chain, caller, headers) else chain


def plan_request(generation: Generation, call: Call, caller: Caller | None, chain: Chain) -> RequestPlan:
    """Raises Unsupported if no provider of `chain` takes the call."""
    if call.endpoint.is_opaque or call.refusal is not None or not generation.all_chat:
        chain = generation.supporting(chain, call)
    if chain.has_tiers:
        asked = Asked(generation.registry.in_flight, partial(_conversation, call, caller), call.summary.stream)
        chain = generation.tiers.arranged(chain, asked, generation.registry.clock())
    if (ordered := generation.local.boxes.slow_last(chain)) is not chain:
        call.remarks.append("degraded_cpu: tried last")
    gates = generation.local.gates(call, ordered)
    expense = expense_of(generation, call, caller, ordered)
    gate = gates.gate if expense is None or not expense.accounts else _both(gates, expense)
    return RequestPlan(generation, Walk(ordered, generation.registry, call.request_id, gate), gates, expense)


def _both(gates: RequestGates, expense: Expense) -> Callable[[Entry, bool], Skip | None]:
    """What is too dear loads no model; what does not pass the other gates reserves nothing."""

    def gate(entry: Entry, last: bool) -> Skip | None:
        return expense.refusal(entry) or gates.gate(entry, last) or expense.gate(entry)

    return gate


def _conversation(call: Call, caller: Caller | None) -> bytes:
    """The same for all requests of one conversation of one client key."""
    return (caller.key.name.encode() if caller is not None else b"") + b"\0" + conversation_prefix(call)
