"""Caches the metric series of each kind of served request, so that counting one builds no labels."""

from __future__ import annotations

from bisect import bisect_left

from manallm_proxy.contract.events import RequestEnded
from manallm_proxy.contract.records import define
from manallm_proxy.observe.aioprometheus_internals import HistogramFamily, Labels

Kind = tuple[str, int, str | None, str | None, str | None, bool]


def kind_of(event: RequestEnded) -> Kind:
    """The key of `event`: requests of one kind count in the same series."""
    return event.endpoint, event.status, event.provider, event.model, event.alias, event.streaming


@define(eq=False)
class ServedSeries:
    """``counters``: values of families, with the labels to increment; ``pair``: provider and model as labels."""

    counters: tuple[tuple[dict[Labels, float], Labels], ...]
    bounds: tuple[float, ...]
    """Bucket bounds of the following histograms."""
    durations: tuple[tuple[list[int], dict[Labels, float], Labels], ...]
    """For each histogram: the counts of its series, the sums of all, and the labels."""
    first_bytes: HistogramFamily
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
        if event.to_first_byte is not None:
            self.first_bytes.record(self.pair, event.to_first_byte)
        if event.prompt_tokens:
            self.tokens[(*self.pair, "prompt")] += event.prompt_tokens
        if event.completion_tokens:
            self.tokens[(*self.pair, "completion")] += event.completion_tokens
