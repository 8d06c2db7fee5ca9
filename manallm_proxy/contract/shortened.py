"""A request's JSON object without its few long values, from which it can be read as any short one."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class LongValue(NamedTuple):
    """One value that was cut out: well-formed, the index of its first byte, and of the ``0`` that stands for it."""

    key: str
    value: msgspec.Raw
    at: int
    left_at: int


class Shortened(NamedTuple):
    """What is left, and what was cut out, in its order."""

    left: bytes
    values: list[LongValue]
