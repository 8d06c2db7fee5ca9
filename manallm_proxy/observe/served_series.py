"""Caches the metric series of each kind of served request, so that counting one builds no labels."""

from __future__ import annotations

from bisect import bisect_left

from manallm_proxy.contract.events import RequestEnded
from manallm_proxy.contract.records import define
from manallm_proxy.observe.aioprometheus_internals import Labels

Kind = tuple[str, int, str | None, str | None, str | None, bool, bool]
Series = tuple[list[int], dict[Labels, float], Labels]
"""Of a histogram: the counts of one series, the sums of all, and its labels."""


def kind_of(event: RequestEnded) -> Kind:
    """The key of `event`: requests of one kind count in the same series."""
    has_first_byte = event.to_first_byte is not None
    return event.endpoint, event.status, event.provider, event.model, event.alias, event.streaming, has_first_byte


@define(eq=False)
class ServedSeries:
    """``counters``: values of families, with the labels to increment; ``pair``: provider and model as labels."""

    counters: tuple[tuple[dict[Labels, float], Labels], ...]
    bounds: tuple[float, ...]
    """Bucket bounds of the following histograms."""
    durations: tuple[Series, ...]
    first_byte: Series | None
    """None for requests that have none."""
    tokens: dict[Labels, float]
    pair: tuple[str, str]

    def count(self, event: RequestEnded) -> None:
        """Counts one request. Its token counts must have been checked."""
        for numbers, labels in self.counters:
            numbers[labels] += 1
        duration = event.duration
        bucket = bisect_left(self.bounds, duration)
        for counts, sums, labels in self.durations:
            counts[bucket] += 1
            sums[labels] += duration
        if self.first_byte is not None and event.to_first_byte is not None:
            counts, sums, labels = self.first_byte
            counts[bisect_left(self.bounds, event.to_first_byte)] += 1
            sums[labels] += event.to_first_byte
        if event.prompt_tokens:
            self.tokens[(*self.pair, "prompt")] += event.prompt_tokens
        if event.completion_tokens:
            self.tokens[(*self.pair, "completion")] += event.completion_tokens
