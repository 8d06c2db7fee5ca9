"""What one request may cost before it begins, and what it did cost once that is known.

Reserved before the call, so that many requests at once cannot pass where one may; settled with the provider's usage.
"""

from __future__ import annotations

from attrs import define

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.targets import Entry
from manallm_proxy.gateway.client_keys import Caller
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.gateway.ratelimit import Taken
from manallm_proxy.openai.token_counts import expected_tokens


@define(eq=False)
class Expense:
    """Of one request. ``prompt`` and ``answer``: tokens, as they are expected."""

    caller: Caller
    generation: Generation
    prompt: int
    answer: int
    _taken: Taken | None = None
    _settled: bool = False

    def reserve(self) -> None:
        """KeyLimited where it may not begin."""
        self._taken = self.caller.reserve(self.prompt + self.answer, self.generation.registry.clock())

    def settle(self, served: Entry | None, usage: Usage | None) -> None:
        """It is over, and `served` answered, if anybody did. Harmless when repeated."""
        if self._settled:
            return
        self._settled = True
        if self._taken is not None:
            self.caller.settle(self._taken, self._tokens(served, usage), self.generation.registry.clock())

    def _tokens(self, served: Entry | None, usage: Usage | None) -> int:
        """An answer that nobody counted has cost its prompt at least."""
        if usage is not None:
            return usage.prompt + usage.completion
        return self.prompt if served is not None else 0


def expense_of(generation: Generation, call: Call, caller: Caller | None) -> Expense | None:
    """None where nothing limits what the request may cost, or no provider is asked."""
    if caller is None or caller.key.tokens_per_minute is None or call.answer is not None:
        return None
    return Expense(caller, generation, *expected_tokens(call))
