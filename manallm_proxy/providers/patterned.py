"""How a stream is translated by a pattern: event after event until there is one, then all together that are of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol

from manallm_proxy.contract.answers import Delta, StreamBatch, Texts

PATTERN_TRIES: Final = 16
"""Events from which a pattern may be learned until one is of use: where they differ in more than words, none is."""
ONE_BY_ONE: Final = 8
"""Steps in which the beginning of a read is told: an event each, or all that are of a pattern."""
HELD: Final = 4096
"""Bytes of an event that was cut which are looked at again with its rest: far more than nearly all events have."""
Make = Callable[[Sequence[bytes]], Texts]


class Pattern(Protocol):
    """What is alike in the events of one stream that only add text of one kind."""

    @property
    def make(self) -> Make:
        """Makes the step of texts that were told."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""

    def learn(self, data: bytes, delta: Delta) -> None:
        """Takes `data`, which is one whole event and was read as `delta`, as the pattern if it is fit for one."""


class Steps(Protocol):
    """A translator (see `wire.Translator`) that has a pattern, of its dialect's own class."""

    blank: ClassVar[bytes]
    """What ends an event."""
    tries_left: int
    """Left until a pattern is of use again."""

    @property
    def plain(self) -> Pattern: ...

    @property
    def held(self) -> int: ...

    def take_held(self) -> bytes:
        """The bytes of the event that has not ended, which is forgotten: they come again, with its rest."""

    def read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        """What the events at the start of `data` add that are of the pattern, and how many bytes these events are."""

    def read(self, data: bytes) -> StreamBatch:
        """As `feed`, without a pattern."""

    def is_learnable(self, delta: Delta) -> bool:
        """Whether an event that was read as `delta` has done nothing beside, so that it may become the pattern."""


def feed_in_steps(translator: Steps, data: bytes) -> StreamBatch:
    """What `data` becomes: event after event until there is a pattern, or another one; then all that are of it."""
    if 0 < translator.held <= HELD and translator.plain.is_known:
        data = translator.take_held() + data  # an event that was cut between two reads is told with those after it
    between = not translator.held
    texts, end = translator.read_plain(data) if between else ((), 0)
    if end and end == len(data):  # as nearly all reads are
        translator.tries_left = PATTERN_TRIES
        return StreamBatch(deltas=(translator.plain.make(texts),), has_content=True)
    before: StreamBatch | None = None
    for _ in range(ONE_BY_ONE):
        if texts:
            translator.tries_left = PATTERN_TRIES
            one = StreamBatch(deltas=(translator.plain.make(texts),), has_content=True)
        else:
            end = data.find(translator.blank) + len(translator.blank)
            if end < len(translator.blank) or not translator.tries_left:
                break
            one = translator.read(data[:end])
            if between and len(one.deltas) == 1 and translator.is_learnable(one.deltas[0]):
                translator.tries_left -= 1
                translator.plain.learn(data[:end], one.deltas[0])
        before = one if before is None else before.followed_by(one)
        if one.done or one.error or end == len(data):
            return before
        data = data[end:]
        between = not translator.held
        texts, end = translator.read_plain(data) if between else ((), 0)
    rest = translator.read(data)
    return rest if before is None else before.followed_by(rest)
