"""The aliases that the message about an unknown one names: bounded work, however many aliases there are.

Any client may ask for a name that does not exist, and to compare it with a thousand others takes 20 ms.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from manallm_proxy.contract.targets import MODEL_LIMIT

_AROUND: Final = 16
"""Names that are compared on each side of where the wanted one would stand, sorted by their beginning, then by their
end: four times as many in total. A slip leaves one of the two as it was."""
LISTED: Final = 100
"""Max names that the message lists."""


def unknown_alias(wanted: str, aliases: Iterable[str], allowed: Callable[[str], bool] | None) -> str:
    """What a client reads that asked for `wanted`; it names only what is `allowed` (None: everything)."""
    names = list(aliases)
    close = _closest(wanted[:MODEL_LIMIT], names, allowed)
    hint = f" Did you mean {close}?" if close else ""
    first = list(islice(names, LISTED))
    known = [name for name in first if allowed is None or allowed(name)]
    more = " and more, GET /v1/aliases lists them" if len(names) > LISTED else ""
    return f"no alias of that name.{hint} Known: {', '.join(known)}{more}"


def _closest(wanted: str, names: Sequence[str], allowed: Callable[[str], bool] | None) -> str | None:
    from difflib import get_close_matches  # imported with the first mistake, not at the start

    by_end = _around(sorted(name[::-1] for name in names), wanted[::-1])
    nearby = dict.fromkeys([*_around(sorted(names), wanted), *(name[::-1] for name in by_end)])
    known = [name for name in nearby if allowed is None or allowed(name)]
    return next(iter(get_close_matches(wanted, known, 1)), None)


def _around(names: Sequence[str], wanted: str) -> Sequence[str]:
    """Those of the sorted `names` next to the place of `wanted`."""
    at = bisect_left(names, wanted)
    return names[max(at - _AROUND, 0) : at + _AROUND]
