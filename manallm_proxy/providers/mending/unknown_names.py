"""How servers of all kinds say that they do not know something that a request names."""

from __future__ import annotations

import re
from typing import Final

_UNKNOWN: Final = re.compile(
    rb"unsupported|not supported|unrecogni[sz]ed|unknown|unexpected|extra_forbidden|extra (?:inputs|fields)",
    re.IGNORECASE,
)


def is_unknown(refusal: bytes) -> bool:
    """Whether a `refusal` says that something is unknown."""
    return _UNKNOWN.search(refusal) is not None
