"""What wires have learned about models, kept within bounds."""

from __future__ import annotations

from typing import Final, TypeVar

LEARNED_LIMIT: Final = 1000
"""Max models of which it is known what they refuse."""
T = TypeVar("T")


def remember(known: dict[str, T], model: str, value: T) -> None:
    """Adds `model`. Clients choose such names, so the oldest one is dropped above the limit."""
    known.pop(model, None)
    if len(known) >= LEARNED_LIMIT:
        del known[next(iter(known))]
    known[model] = value
