"""Which cases of a product `make test` plays, and which are left to `make faults`.

Rules:

1. Every fault meets every kind of provider, and both HTTP clients.
2. What happens below HTTP meets both clients over the kind that is relayed byte by byte, ``openai``.
3. The third axis (what is asked for, or the client) takes turns, so that every pair of values meets somewhere.
4. All other cases carry the mark ``product``.
5. The cases of one fault share a proxy, each with a provider of its own (`scene.scenes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pytest

CONNECTIONS: Final = ("pool", "session")
"""Implementations of the seam to a provider; conftest.py puts them in place."""
BY_NAME: Final = "by name"
"""For several of them over one proxy: each provider's name says which is its own."""


def case(*values: Any, named: str | None = None, is_chosen: bool) -> Any:
    """One row for ``parametrize``."""
    return pytest.param(*values, id=named, marks=() if is_chosen else pytest.mark.product)


def together(what: Any, rows: Iterable[tuple[Any, bool]], named: str) -> list[Any]:
    """Two rows for ``parametrize``, each of many cases that share a proxy: those that are chosen, and the rest."""
    cases = [(row, is_chosen) for row, is_chosen in rows]
    chosen, rest = ([row for row, is_chosen in cases if is_chosen is wanted] for wanted in (True, False))
    return [
        case(what, chosen, BY_NAME, named=named, is_chosen=True),
        *([case(what, rest, BY_NAME, named=f"{named}, the rest", is_chosen=False)] if rest else []),
    ]


def turns(ones: Iterable[Any], others: Sequence[Any] = ("",)) -> list[Any]:
    """Rows of every one with every other, the client in turns; of every one alone where no `others` are given."""
    return [
        case(*(value for value in (one, other) if value != ""), connection, is_chosen=(at + beside + turn) % 2 == 0)
        for at, one in enumerate(ones)
        for beside, other in enumerate(others)
        for turn, connection in enumerate(CONNECTIONS)
    ]
