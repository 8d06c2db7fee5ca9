"""Asks the targets of a chain on behalf of one request, or of all who share its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from attrs import evolve, field

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.door import Reply, StatefulReply
from manallm_proxy.contract.provider import Call, Provider
from manallm_proxy.contract.provider_errors import FarFailed, ServerFailed
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.contract.trace import Trace
from manallm_proxy.gateway.advice import advice
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.hops import FAR, HEADER
from manallm_proxy.gateway.request_plan import RequestPlan
from manallm_proxy.gateway.trace_context import headers_for
from manallm_proxy.openai.allocator import APART
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.large import LARGE_BYTES, free_aside, offload
from manallm_proxy.providers.loopback import LoopbackProvider
from manallm_proxy.routing import relay
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.failover import Walk, in_background

T = TypeVar("T")


@define(eq=False)
class Dispatch:
    """One `call` along its `plan`. ``for_operator``: whether the client may learn why no model answered."""

    generation: Generation
    call: Call = field(repr=False)
    plan: RequestPlan
    for_operator: bool
    trace: Trace | None = None
    hops: int = 0
    """See `hops`."""
    notes: tuple[str, ...] = ()
    """`Call.notes` of the call as the latest target got it."""

    @property
    def walk(self) -> Walk:
        """The walk of ``plan``."""
        return self.plan.walk

    async def complete(self) -> tuple[Answer, Entry]:
        """The first whole answer along the chain, and the entry that gave it."""
        attempt = await self.plan.walk.run(self.plan.in_turn(self._ask(relay.complete)), self.asked)
        attempt.served()  # ends the attempt: a whole answer has nothing to close
        answer = attempt.value
        if answer.usage is not None:
            self.plan.settle(attempt.entry, answer.usage, 0)
        if answer.dimensions is not None:
            self.generation.check_dimensions(self.walk.chain, self.call, attempt.entry, answer.dimensions)
        self._forget_large()
        return answer, attempt.entry

    async def opened(self, beat: Callable[[], Awaitable[None]]) -> Attempt[relay.Opened]:
        """The first stream along the chain. Until then `beat` is called every ``early_heartbeat`` seconds."""
        ask = self.plan.in_turn(self._ask(relay.open_stream))
        walking = self.plan.walk.run(ask, self.asked, relay.Opened.aclose)
        silence = self.generation.config.streaming.early_heartbeat
        if silence > 0 and not self.call.endpoint.is_opaque:  # only its provider knows the content type
            attempt = await in_background(walking, silence, beat)
        else:
            attempt = await walking
        self._forget_large()
        return attempt

    def _forget_large(self) -> None:
        """Drops a large request: the answer, which may repeat it, takes its room."""
        if (size := len(self.call.body)) > LARGE_BYTES:
            free_aside(self.call.forget(), size > APART or self.call.native is not None)

    @property
    def asked(self) -> str:
        """Safe name for the 503 message: an alias or target of ours, never client text."""
        chain = self.plan.walk.chain
        return chain.alias or str(chain.entries[0].target)

    def _ask(
        self, attempt: Callable[[Provider, Catalog, Call, Entry], Awaitable[T]]
    ) -> Callable[[Entry], Awaitable[T]]:
        catalog = self.generation.catalog

        def ask(entry: Entry) -> Awaitable[T]:
            provider, call = self._attempt(entry, self._call_at(entry) if differs else self.call)
            return attempt(provider, catalog, call, entry)

        async def ask_aside(entry: Entry) -> T:
            provider, call = self._attempt(entry, await offload(True, self._call_at, entry))
            return await attempt(provider, catalog, call, entry)

        async def ask_far(entry: Entry) -> T:
            try:
                return await chosen(entry)
            except ServerFailed as error:
                raise FarFailed.of(error) from None

        differs = self.call.native is not None or self.call.own is not None
        chosen = ask_aside if self.call.is_large and differs else ask
        return ask_far if self.hops > FAR else chosen

    def _call_at(self, entry: Entry) -> Call:
        """The call as the entry's provider gets it."""
        name = entry.target.provider
        return self.call.at(name, () if self.call.native is None else self.generation.config.providers[name].speaks)

    def _attempt(self, entry: Entry, call: Call) -> tuple[Provider, Call]:
        """The provider to ask, and the call for it. Loopback gets the reasons why no model answers, for operators."""
        provider = self.generation.providers[entry.target.provider]
        self.notes = call.notes
        if self.trace is not None:
            call = evolve(call, trace=headers_for(self.trace, entry.target))
        if self.hops:
            call = evolve(call, trace={**(call.trace or {}), HEADER: str(self.hops)})
        if self.plan.walk.log and self.for_operator and isinstance(provider, LoopbackProvider):
            call.advice = advice(self.generation, self.walk.chain, self.walk.log)
        return provider, call


async def written(reply: Reply, target: Target, answer: Answer) -> bytes:
    """`target`'s whole answer in the client's format."""
    apart = reply.ends_long or (answer.is_large and (answer.body is None or isinstance(reply, StatefulReply)))
    return await offload(True, _written, reply, target, answer) if apart else reply.whole(target, answer)


def _written(reply: Reply, target: Target, answer: Answer) -> bytes:
    """As `written`. Frees the large parts of `answer`."""
    whole = reply.whole(target, answer)
    free_later(answer.choices, answer.vectors)
    answer.choices = answer.vectors = ()
    return whole
