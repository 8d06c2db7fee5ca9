"""All that we use of aioprometheus, including its private names. Written for aioprometheus 23.12.0.

The library keys each series by its labels as JSON, which it encodes at every ``inc``: the counts of one request take
26 µs, with the plain dictionaries here 5. It writes label values without escaping them. So values, labels, buckets and
escaping are ours; the library provides the registry, the check of metric names, the ``# HELP`` and ``# TYPE`` lines,
and their order.

For that, the library must call our collectors for their series (`get_all`), and our formatter for each line
(`_format_line`, `_format_histogram`). `check` tests this at import.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from copy import copy
from itertools import accumulate
from typing import Any, Final, Self

from aioprometheus.collectors import Counter, Gauge, Histogram
from aioprometheus.collectors import Registry as Registry
from aioprometheus.formats.text import TEXT_CONTENT_TYPE as TEXT_CONTENT_TYPE
from aioprometheus.formats.text import TextFormatter

Labels = tuple[str, ...]


class _Numbers:
    """What counters and gauges have in common: their label names, and their values by label values."""

    labels: Labels
    numbers: dict[Labels, float]

    def copied(self) -> Self:
        """One that stays as this one is now."""
        twin = copy(self)
        twin.numbers = self.numbers.copy()
        return twin

    def get_all(self) -> list[Any]:
        """Pairs of label text and number, for each series."""
        return [(_label_text(self.labels, values), number) for values, number in self.numbers.items()]


class CounterFamily(_Numbers, Counter):
    """A counter."""

    def __init__(self, name: str, doc: str, labels: Labels, registry: Registry) -> None:
        super().__init__(name, doc, registry=registry)
        self.labels = labels
        self.numbers = defaultdict(float)


class GaugeFamily(_Numbers, Gauge):
    """A gauge."""

    def __init__(
        self, name: str, doc: str, labels: Labels, numbers: Iterable[tuple[Labels, float]], registry: Registry
    ) -> None:
        super().__init__(name, doc, registry=registry)
        self.labels = labels
        self.numbers = dict(numbers)


class HistogramFamily(Histogram):
    """A histogram: per label values the count in each bucket (the last one is above all bounds), and the sum."""

    def __init__(self, name: str, doc: str, bounds: tuple[float, ...], labels: Labels, registry: Registry) -> None:
        super().__init__(name, doc, registry=registry, buckets=bounds)
        self.labels = labels
        self.bounds = bounds
        self.bound_texts = (*map(str, bounds), "+Inf")
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = defaultdict(float)

    def copied(self) -> Self:
        """One that stays as this one is now."""
        twin = copy(self)
        twin.counts = {labels: counts.copy() for labels, counts in self.counts.items()}
        twin.sums = self.sums.copy()
        return twin

    def record(self, labels: Labels, value: float) -> None:
        counts, sums, _ = self.series(labels)
        counts[bisect_left(self.bounds, value)] += 1
        sums[labels] += value

    def series(self, labels: Labels) -> tuple[list[int], dict[Labels, float], Labels]:
        """One series: its counts, the sums of all, and `labels`, under which its sum stands there."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
        return counts, self.sums, labels

    def get_all(self) -> list[Any]:
        """Label text, pairs of bound and cumulative count, and the sum, for each series."""
        return [
            (_label_text(self.labels, values), list(zip(self.bound_texts, accumulate(counts), strict=True)), sum_)
            for (values, counts), sum_ in zip(self.counts.items(), self.sums.values(), strict=True)
        ]


class _Formatter(TextFormatter):
    """Writes what `get_all` of the families above returns."""

    def _format_line(self, name: str, labels: Any, value: Any, const_labels: Any) -> str:
        return f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"

    def _format_histogram(self, series: Any, name: str, const_labels: Any) -> list[str]:
        labels, buckets, total = series
        bucket = f'{name}_bucket{{{labels}{"," if labels else ""}le="'  # once per series: a scrape blocks the loop
        lines = [f'{bucket}{bound}"}} {count}' for bound, count in buckets]
        lines.append(self._format_line(f"{name}_count", labels, buckets[-1][1], None))
        lines.append(self._format_line(f"{name}_sum", labels, total, None))
        return lines


def _label_text(names: Labels, values: Labels) -> str:
    return ",".join([f'{name}="{_escape(value)}"' for name, value in sorted(zip(names, values, strict=True))])


def _escape(text: str) -> str:
    """Escapes as the text format requires; a lone surrogate, which UTF-8 cannot encode, becomes ``\\ud800``."""
    text = text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def snapshot(registry: Registry) -> Registry:
    """What is in it now, for `render` in a thread."""
    now = Registry()
    families: list[Any] = registry.get_all()  # of the classes above
    for family in families:
        now.register(family.copied())
    return now


def render(*registries: Registry) -> bytes:
    """Prometheus' text format."""
    formatter = _Formatter()
    text: bytes = b"".join([formatter.marshall(registry) for registry in registries])
    return text


_EXPECTED: Final = rb"""# HELP c_total Counter
# TYPE c_total counter
c_total{a="\"",b="x"} 1
# HELP g Gauge
# TYPE g gauge
g 2
# HELP h Histogram
# TYPE h histogram
h_bucket{a="y",le="1.0"} 0
h_bucket{a="y",le="+Inf"} 1
h_count{a="y"} 1
h_sum{a="y"} 3.0
"""


def check() -> None:
    """Raises ImportError if the library does not call what is overridden here, or its own lines have changed."""
    try:
        registry = Registry()
        CounterFamily("c_total", "Counter", ("b", "a"), registry).numbers["x", '"'] = 1
        GaugeFamily("g", "Gauge", (), [((), 2)], registry)
        HistogramFamily("h", "Histogram", (1.0,), ("a",), registry).record(("y",), 3.0)
        works = render(registry) == _EXPECTED
    except Exception:
        works = False
    if not works:
        from importlib.metadata import version  # 0.6 MiB that only this message needs

        raise ImportError(
            f"aioprometheus {version('aioprometheus')}: it does not write metrics as expected. "
            "Install the version in constraints.txt, or adapt observe/aioprometheus_internals.py and run its tests."
        )


check()
