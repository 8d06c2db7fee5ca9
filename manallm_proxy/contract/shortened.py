"""A request's JSON object without its few long values, so that the rest is parsed like any short request."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class LongValue(NamedTuple):
    """One well-formed value that was cut out, with the index of its first byte, and of the ``0`` in its place.

    ``members``: those of a list, if it was split; else None.
    """

    key: str
    value: msgspec.Raw
    at: int
    left_at: int
    members: list[msgspec.Raw] | None = None


class Shortened(NamedTuple):
    """The rest of the body, and the values that were cut out, in order."""

    left: bytes
    values: list[LongValue]
