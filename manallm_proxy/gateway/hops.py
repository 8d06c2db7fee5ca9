"""Counts the manallm-proxies that a request has passed: two whose chains name each other would ask without end.

The first one is known by its ``User-Agent``; from then on a header counts, which only such requests have.
"""

from __future__ import annotations

from typing import Final

from multidict import CIMultiDictProxy

HEADER: Final = "X-Mana-LLM-Hops"
MOST: Final = 8
FAR: Final = MOST // 2
"""Behind more of them, a failure of another one counts against nobody: anyone may send the header, and two requests
that are refused for it would take that proxy from everybody."""
_NAME: Final = "manallm-proxy/"


def hops_of(headers: CIMultiDictProxy[str]) -> int:
    """How many proxies of this kind the request has passed, as far as its headers say."""
    given = headers.get(HEADER)
    if given is not None and given.isascii() and given.isdigit() and len(given) < 4:
        return int(given) + 1
    return 1 if headers.get("User-Agent", "").startswith(_NAME) else 0
