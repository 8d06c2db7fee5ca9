"""Current prices of models from genai-prices: https://github.com/pydantic/genai-prices.

Importing it takes 0.13 s and 25 MB, so it is imported only if a configuration needs a price that it does not contain.
It counts tokens as we do: input includes tokens read from a cache, output includes reasoning (its README, "Cached input
tokens"). Prices of anything but text tokens (searches, audio, cache writes) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from manallm_proxy.contract.prices import Price

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

GOOGLE: Final = "https://generativelanguage.googleapis.com"
_NAMES: Final = ("input_mtok", "output_mtok", "cache_read_mtok")


def is_installed() -> bool:
    """Whether genai-prices is installed. Does not import it."""
    return find_spec("genai_prices") is not None


def preload() -> None:
    """Imports genai-prices now, so that no request has to wait for that."""
    listed_price("", "")


@lru_cache(maxsize=4096)
def listed_price(base_url: str, model: str) -> Price | None:
    """The price of `model` at the API of `base_url`; None if unknown, or if genai-prices is not installed."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return None
    try:
        _, found = get_snapshot().find_provider_model(model, None, None, base_url)
    except (LookupError, re.error):
        return None
    prices = [made for each in _in_force(found, datetime.now(UTC)) if (made := _price(each)) is not None]
    return max(prices, key=lambda price: (price.output, price.input), default=None)


def _in_force(model: ModelInfo, now: datetime) -> Iterable[ModelPrice]:
    """The latest price in force, and later ones for certain hours of the day, since the hour of use is unknown."""
    if not isinstance(model.prices, list):
        return [model.prices]
    found: list[ModelPrice] = []
    for each in model.prices:
        if each.constraint is None or hasattr(each.constraint, "start_time"):
            found.append(each.prices)
        elif each.constraint.active(now):
            found = [each.prices]
    return found or [model.prices[0].prices]


def _price(listed: ModelPrice) -> Price | None:
    """The price; None for a model that is not billed by tokens."""
    given = {name: value for name in _NAMES if (value := getattr(listed, name)) is not None}
    if "input_mtok" not in given:
        return None
    starts = {tier.start for value in given.values() if not isinstance(value, Decimal) for tier in value.tiers}
    base, *others = (Price(*_at(given, start)) for start in (0, *sorted(starts)))
    return Price(base.input, base.output, base.cached, tuple(zip(sorted(starts), others, strict=True)))


def _at(given: dict[str, Any], start: int) -> tuple[float, float, float | None]:
    """The price for a request whose prompt has more than `start` tokens."""
    found: dict[str, float] = {}
    for name, value in given.items():
        base = getattr(value, "base", value)
        for tier in getattr(value, "tiers", ()):
            base = tier.price if start >= tier.start else base
        found[name] = float(base)
    return found["input_mtok"], found.get("output_mtok", 0.0), found.get("cache_read_mtok")
