"""Where one request goes: along which chain, past which gates, at whose expense."""

from __future__ import annotations

from attrs import define
from multidict import CIMultiDictProxy

from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Chain
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.expense import Expense, expense_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.locality import at_home, is_pinned
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.home import A, Ask, Visit


@define(eq=False)
class Way:
    """``expense`` None: nobody limits what it may cost."""

    walk: Walk
    visit: Visit
    expense: Expense | None

    def in_turn(self, ask: Ask[A]) -> Ask[A]:
        """`ask`, once it is the request's turn there."""
        return self.visit.in_turn(ask)


def way_of(
    generation: Generation, call: Call, caller: Caller | None, headers: CIMultiDictProxy[str], remarks: list[str]
) -> Way:
    """Raises the ProxyError of a model that is not there, may not be used, or of which nothing is left."""
    chain = _chain(generation, call, caller, headers, remarks)
    visit = generation.home.visit(call, chain)
    walk = Walk(chain, generation.registry, call.request_id, visit.gate)
    return Way(walk, visit, expense_of(generation, call, caller))


def _chain(
    generation: Generation, call: Call, caller: Caller | None, headers: CIMultiDictProxy[str], remarks: list[str]
) -> Chain:
    chain = generation.chain_for(call.summary, caller)
    if is_pinned(chain, caller, headers):
        chain = at_home(chain, generation.config.providers)
    if call.endpoint.is_opaque:
        chain = generation.able(chain, call.endpoint)
    ordered = generation.home.boxes.slow_last(chain)
    if ordered is not chain:
        remarks.append("degraded_cpu: tried last")
    return ordered
