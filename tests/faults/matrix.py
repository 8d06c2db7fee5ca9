"""Which cases of a product `make test` plays, and which are left to `make faults`.

Rules:

1. Every fault meets every kind of provider, and both HTTP clients.
2. What happens below HTTP meets both clients over the kind that is relayed byte by byte, ``openai``.
3. The third axis (what is asked for, or the client) takes turns, so that every pair of values meets somewhere.
4. All other cases carry the mark ``product``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pytest

CONNECTIONS: Final = ("pool", "session")
"""Implementations of the seam to a provider; conftest.py puts them in place."""


def case(*values: Any, named: str | None = None, is_chosen: bool) -> Any:
    """One row for ``parametrize``."""
    return pytest.param(*values, id=named, marks=() if is_chosen else pytest.mark.product)


def turns(ones: Iterable[Any], others: Sequence[Any] = ("",)) -> list[Any]:
    """Rows of every one with every other, the client in turns; of every one alone where no `others` are given."""
    return [
        case(*(value for value in (one, other) if value != ""), connection, is_chosen=(at + beside + turn) % 2 == 0)
        for at, one in enumerate(ones)
        for beside, other in enumerate(others)
        for turn, connection in enumerate(CONNECTIONS)
    ]
