"""What tokens cost. Prices are in USD per million tokens, as providers list them."""

from __future__ import annotations

from typing import Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import frozen

MILLION: Final = 1_000_000


@frozen
class Price:
    """Prices of one model. ``cached`` None: tokens read from the provider's cache cost as much as other input."""

    input: float
    output: float = 0.0
    cached: float | None = None
    above: tuple[tuple[int, Price], ...] = ()
    """(tokens, price): applies to the *whole* request if its prompt has more tokens than that; ascending."""

    def cost(self, usage: Usage) -> float:
        """USD. ``usage.cached`` is a part of ``usage.prompt``, ``usage.reasoning`` one of ``usage.completion``."""
        price = self
        for tokens, other in self.above:
            if usage.prompt > tokens:
                price = other
        cached = min(usage.cached, usage.prompt) if price.cached is not None else 0
        read = (usage.prompt - cached) * price.input + cached * (price.cached or 0.0)
        return (read + usage.completion * price.output) / MILLION

    @property
    def is_free(self) -> bool:
        return not (self.input or self.output or self.cached or self.above)

    def __str__(self) -> str:
        if self.is_free:
            return "costs nothing"
        cached = f", {self.cached:g} cached" if self.cached is not None else ""
        return f"{self.input:g} in, {self.output:g} out{cached} USD per million tokens"


FREE: Final = Price(0.0)
