"""A long body with a few bytes replaced: its parts are sent one after the other, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import field

from manallm_proxy.contract.records import define

Part = bytes | memoryview
PART_BYTES: Final = 256 * 1024
"""Max bytes per write to a socket: a write of megabytes would block the event loop for a millisecond."""


@define(eq=False)
class Spliced:
    """``parts``: `bytes`, and memoryviews of the original body. Compares equal to the resulting bytes."""

    parts: tuple[Part, ...] = field(repr=False)
    size: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.size = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes | Spliced) and len(self) == len(other) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]  # as all that compare by what they hold


Body = bytes | Spliced


def in_portions(parts: tuple[Part, ...], most: int = PART_BYTES) -> Iterator[list[Part]]:
    """`parts` in portions of at most `most` bytes, one per write."""
    portion: list[Part] = []
    room = most
    for part in parts:
        at = 0
        while len(part) - at > room:
            yield [*portion, memoryview(part)[at : at + room]]
            at += room
            portion, room = [], most
        if at < len(part):
            portion.append(part if not at else memoryview(part)[at:])
            room -= len(part) - at
    if portion:
        yield portion
