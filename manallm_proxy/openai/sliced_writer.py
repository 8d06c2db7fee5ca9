"""Encodes large JSON in many short calls into C, see `sliced`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from manallm_proxy.openai.joined import joined_bytes

TEXT: Final = 64 * 1024
"""Characters of a string that one call encodes."""
_BUDGET: Final = 4096
"""Max values encoded per call."""


def encode_large(value: Any, encode: Callable[[Any], bytes]) -> bytes:
    """`value` encoded; small parts of it by `encode`."""
    return joined_bytes(encoded_pieces(value, encode))


def encoded_pieces(value: Any, encode: Callable[[Any], bytes]) -> Iterator[bytes | memoryview]:
    """The parts of `encode_large`. Values that are encoded already are not copied."""
    if isinstance(value, array):
        for at in range(0, len(value), _BUDGET):
            yield (b"," if at else b"[") + encode(value[at : at + _BUDGET].tolist())[1:-1]
        yield b"]" if value else b"[]"
    elif isinstance(value, msgspec.Raw):
        yield memoryview(value)
    elif _left(value, _BUDGET) >= 0 or not isinstance(value, str | dict | list | tuple):
        yield encode(value)
    elif isinstance(value, str):
        yield b'"'
        for at in range(0, len(value), TEXT):
            yield encode(value[at : at + TEXT])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        comma = b"{"
        for some in _runs(list(value.items()), itemgetter(1)):
            if len(some) > 1 or _left(some[0][1], _BUDGET) >= 0:
                yield comma + encode(dict(some))[1:-1]
            else:
                yield comma + encode(some[0][0]) + b":"
                yield from encoded_pieces(some[0][1], encode)
            comma = b","
        yield b"}"
    elif all(isinstance(each, int | float) for each in value):
        for at in range(0, len(value), _BUDGET):
            yield (b"," if at else b"[") + encode(value[at : at + _BUDGET])[1:-1]
        yield b"]"
    else:
        comma = b"["
        for some in _runs(value):
            if len(some) > 1 or _left(some[0], _BUDGET) >= 0:
                yield comma + encode(some)[1:-1]
            else:
                yield comma
                yield from encoded_pieces(some[0], encode)
            comma = b","
        yield b"]"


def _runs(items: Sequence[Any], member: Callable[[Any], Any] = lambda item: item) -> Iterator[Sequence[Any]]:
    """`items` in runs, each small enough for one call, or a single item. `member`: item: its part that may be large."""
    begin, budget = 0, _BUDGET
    for n, item in enumerate(items):
        budget = _left(member(item), budget - 1)
        if budget < 0 and n > begin:
            yield items[begin:n]
            begin, budget = n, _left(member(item), _BUDGET - 1)
    yield items[begin:]


def _left(value: Any, budget: int) -> int:
    """`budget` minus the number of values in `value` (text by length); negative: too large for one call."""
    if isinstance(value, str):
        return budget - 1 - len(value) * _BUDGET // TEXT
    if isinstance(value, msgspec.Raw):
        return budget - 1 - len(value) * _BUDGET // TEXT
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, array):
        return -1
    elif not isinstance(value, list | tuple):
        return budget - 1
    budget -= len(value)
    for each in value:
        if budget < 0:
            break
        budget = _left(each, budget)
    return budget
