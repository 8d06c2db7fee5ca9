"""Readers for amounts of money or tokens, see `values`."""

from __future__ import annotations

import math
import re
from typing import Final

from manallm_proxy.config.values import InvalidValue, expected, plain
from manallm_proxy.contract.budgets import Amount

DEAREST: Final = 1_000_000.0
MOST: Final = 1e12
AMOUNT: Final = re.compile(r"([0-9]{1,13}(?:\.[0-9]{1,9})?) ?(USD|usd|tokens)")


def rate(value: object) -> float:
    """USD per million tokens."""
    found = plain(value)
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise expected("a number: USD per million tokens", value)
    if not math.isfinite(found) or not 0 <= found <= DEAREST:
        raise InvalidValue(f"expected USD per million tokens: at least 0 and at most {DEAREST:,.0f}")
    return float(found)


def amount(value: object) -> Amount:
    """``5 USD`` or ``100000 tokens``."""
    found = plain(value)
    match = AMOUNT.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise expected("an amount with its unit: '5 USD', '100000 tokens'", value)
    number = float(match[1])
    if not 0 < number <= MOST:
        raise InvalidValue("expected an amount above 0")
    if match[2] == "tokens":
        if not number.is_integer():
            raise InvalidValue("expected a whole number of tokens")
        return Amount(number, "tokens")
    return Amount(number, "USD")
