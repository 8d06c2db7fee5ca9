"""Translates a stream by a pattern: one event at a time until a pattern is known, then all matching events together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol

from manallm_proxy.contract.answers import Delta, StreamBatch, Texts

PATTERN_TRIES: Final = 16
"""Max attempts to learn a pattern before one matches: if events differ in more than text, none ever does."""
ONE_BY_ONE: Final = 8
"""Max rounds at the start of a read, of one event or one run of matching events each; the rest is read at once."""
HELD: Final = 4096
"""Bytes of an event that was cut which are looked at again with its rest: far more than nearly all events have."""
Make = Callable[[Sequence[bytes]], Texts]


class Pattern(Protocol):
    """The constant bytes of a stream's events that only add text of one kind."""

    @property
    def make(self) -> Make:
        """Makes a step from recognised texts."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""

    def learn(self, data: bytes, delta: Delta) -> None:
        """Makes `data`, one whole event that was parsed as `delta`, the pattern, if it is suitable."""


class Steps(Protocol):
    """A translator (see `wire.Translator`) with a pattern of its dialect's class."""

    blank: ClassVar[bytes]
    """The bytes that end an event."""
    tries_left: int
    """Remaining attempts, until a pattern matches again."""

    @property
    def plain(self) -> Pattern: ...

    @property
    def held(self) -> int: ...

    def take_held(self) -> bytes:
        """The bytes of the event that has not ended, which is forgotten: they come again, with its rest."""

    def read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        """(texts, bytes) of the events at the start of `data` that match the pattern."""

    def read(self, data: bytes) -> StreamBatch:
        """As `feed`, without a pattern."""

    def is_learnable(self, delta: Delta) -> bool:
        """Whether an event that was parsed as `delta` had no other effect, so that it may become the pattern."""


def feed_in_steps(translator: Steps, data: bytes) -> StreamBatch:
    """The batch for `data`: one event at a time until a pattern is known, then all matching events together."""
    if 0 < translator.held <= HELD and translator.plain.is_known:
        data = translator.take_held() + data  # an event cut between two reads is recognised with those after it
    between = not translator.held
    texts, end = translator.read_plain(data) if between else ((), 0)
    if end and end == len(data):  # the common case
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
