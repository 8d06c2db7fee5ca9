"""What a client key or an alias may spend in a day or in a month, of UTC's calendar."""

from __future__ import annotations

from typing import Literal

from manallm_proxy.contract.records import frozen

Unit = Literal["USD", "tokens"]
Period = Literal["day", "month"]
OnBudget = Literal["local", "refuse"]
"""What happens to requests once too little is left: ``local`` allows only free targets, ``refuse`` none."""


@frozen
class Amount:
    """``5 USD``, ``100000 tokens``."""

    number: float
    unit: Unit

    def __str__(self) -> str:
        return f"{written_out(self.number)} {self.unit}"


def written_out(number: float, digits: int = 9) -> str:
    """``12,345``, ``0.00003``: without an exponent, and without more digits than it has."""
    return f"{number:,.{digits}f}".rstrip("0").rstrip(".")


@frozen
class Limit:
    """One amount for one period."""

    period: Period
    amount: Amount

    def __str__(self) -> str:
        return f"{self.amount} a {self.period}"


@frozen
class Budget:
    """All limits of one account; every one applies."""

    limits: tuple[Limit, ...]
    on_budget: OnBudget = "local"

    @property
    def is_money(self) -> bool:
        """Whether any limit is in USD, so that prices are needed."""
        return any(limit.amount.unit == "USD" for limit in self.limits)
