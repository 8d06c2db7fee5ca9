"""How a stream is translated by a pattern: event after event until there is one, then all together that are of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from attrs import define, field

from manallm_proxy.contract.answers import Delta, StreamBatch, Words

LESSONS: Final = 16
"""Events of one stream from which a pattern may be learned: where they differ in more than words, none is of use."""


class Pattern(Protocol):
    """What is alike in the events of one stream that only add words."""

    @property
    def is_known(self) -> bool:
        """Whether there is one."""

    def learn(self, data: bytes, delta: Delta) -> None:
        """Takes `data`, which is one whole event and was read as `delta`, as the pattern if it is fit for one."""


@define
class Patterned:
    """A translator (see `wire.Translator`) that has a pattern, of its dialect's own class."""

    blank: ClassVar[bytes]
    """What ends an event."""
    _plain: Pattern = field(init=False)
    _lessons: int = field(default=LESSONS, kw_only=True)

    @property
    def held(self) -> int:
        """See `wire.Translator`."""
        raise NotImplementedError  # each holds what it has of an event in its own way

    def feed(self, data: bytes) -> StreamBatch:
        """See `wire.Translator`."""
        was_between = not self.held
        if was_between:
            texts, used = self._read_plain(data)
            if texts:
                batch = StreamBatch(deltas=(Words(texts),), has_content=True)
                return batch if used == len(data) else batch.followed_by(self._feed(data[used:]))
        end = data.find(self.blank) + len(self.blank)  # one event, then the others
        if end < len(self.blank) or (
            was_between and (not self._lessons or (self._plain.is_known and end != len(data)))
        ):
            return self._feed(data)
        batch = self._feed(data[:end])
        if was_between and len(batch.deltas) == 1 and batch.deltas[0].is_text:
            self._lessons -= 1
            self._plain.learn(data[:end], batch.deltas[0])
        if batch.done or batch.error or end == len(data):
            return batch
        return batch.followed_by(self.feed(data[end:]) if self._plain.is_known else self._feed(data[end:]))

    def _read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        """What the events at the start of `data` add that are of the pattern, and how many bytes these events are."""
        raise NotImplementedError  # some have more to read than words

    def _feed(self, data: bytes) -> StreamBatch:
        """As `feed`, without a pattern."""
        raise NotImplementedError  # the dialect
