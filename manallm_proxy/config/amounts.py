"""Readers of what is counted in money or tokens, see `values`."""

from __future__ import annotations

import math
from typing import Final

from manallm_proxy.config.values import Wrong, expected, plain

DEAREST: Final = 1_000_000.0


def rate(value: object) -> float:
    """USD per million tokens."""
    found = plain(value)
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise expected("a number: USD per million tokens", value)
    if not math.isfinite(found) or not 0 <= found <= DEAREST:
        raise Wrong(f"expected USD per million tokens: at least 0 and at most {DEAREST:,.0f}")
    return float(found)
