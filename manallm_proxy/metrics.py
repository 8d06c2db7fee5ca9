"""Facts become Prometheus' numbers, on aioprometheus.

Labels come from closed sets: the configuration, the error words, and models that a provider has served; a
client cannot mint one. What is not known is ``other``.

aioprometheus serialises the labels at every ``inc`` (4 µs each), so a request only adds to plain
dictionaries, and a scrape copies them into the registry. It also escapes nothing: `_Text` does.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Final, assert_never

from aioprometheus.collectors import Counter, Gauge, Histogram, Registry
from aioprometheus.formats.text import TEXT_CONTENT_TYPE, TextFormatter
from aioprometheus.histogram import Histogram as Buckets
from attrs import define, field

from manallm_proxy.chain import Target
from manallm_proxy.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifeChanged,
    Reloaded,
    RequestEnded,
)

PREFIX: Final = "mana_llm_"
MODELS_LIMIT: Final = 500
"""Distinct targets that have a label of their own."""
OTHER: Final = "other"
SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
RATES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 500.0)

Labels = tuple[str, ...]


@define
class _Counts:
    """One counter: its name, its labels' names, its numbers by label values."""

    name: str
    doc: str
    labels: Labels
    values: dict[Labels, float] = field(factory=lambda: defaultdict(float))


@define
class _Observations:
    """One histogram: per label values the count in each bucket (the last: above all), and the sum."""

    name: str
    doc: str
    labels: Labels
    bounds: tuple[float, ...]
    buckets: dict[Labels, list[int]] = field(factory=dict)
    sums: dict[Labels, float] = field(factory=lambda: defaultdict(float))

    def observe(self, labels: Labels, value: float) -> None:
        counts = self.buckets.get(labels)
        if counts is None:
            counts = self.buckets[labels] = [0] * (len(self.bounds) + 1)
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value


class _Text(TextFormatter):
    """aioprometheus' text format with its label values and help texts escaped as Prometheus asks."""

    def _format_line(self, name: str, labels: dict[str, str], value: Any, const_labels: dict[str, str]) -> str:
        escaped = {key: _escape(str(text)) for key, text in (labels or {}).items()}
        line: str = super()._format_line(name, escaped, value, const_labels)
        return line


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@define(eq=False)
class Metrics:
    """``providers`` yields name, usable, requests in flight of each configured provider at the time of a scrape."""

    version: str
    providers: Callable[[], Iterable[tuple[str, bool, int]]]
    _known: set[tuple[str, str]] = field(factory=set)
    _reloaded_at: float = field(factory=time.time)
    _counts: dict[str, _Counts] = field(factory=dict)
    _histograms: dict[str, _Observations] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for name, doc, *labels in _COUNTERS:
            self._counts[name] = _Counts(name, doc, tuple(labels))
        for name, doc, bounds, *labels in _HISTOGRAMS:
            self._histograms[name] = _Observations(name, doc, tuple(labels), bounds)
        self._add("client_disconnects_total", amount=0)
        for result in ("success", "failure"):
            self._add("reloads_total", result, amount=0)

    def know(self, targets: Iterable[Target]) -> None:
        """Targets of the configuration have labels of their own from the start."""
        for target in targets:
            self._learn(target.provider, target.model)

    def __call__(self, event: Event) -> None:
        match event:
            case RequestEnded():
                self._request(event)
            case AttemptFailed():
                model = self._model(event.provider, event.model)
                self._add("llm_errors_total", event.provider, model, event.reason)
            case FellBack():
                self._add(
                    "fallback_total", self._target(event.from_target), self._target(event.to_target), event.reason
                )
            case Reloaded():
                self._add("reloads_total", "failure" if event.mistakes else "success")
                self._reloaded_at = self._reloaded_at if event.mistakes else time.time()
            case KeyWasRejected() | HealthChanged() | DimensionsDiffer() | LifeChanged() | Crashed():
                pass  # seen as errors, as gauges, or in the log only
            case _:
                assert_never(event)

    def _request(self, event: RequestEnded) -> None:
        self._add("requests_total", event.endpoint, str(event.status))
        self._observe("request_duration_seconds", event.duration, event.endpoint)
        if event.outcome == "client_gone":
            self._add("client_disconnects_total")
        if event.provider is None or event.model is None:
            return
        served = event.outcome in ("ok", "broken")
        if served:
            self._learn(event.provider, event.model)
        pair = (event.provider, self._model(event.provider, event.model))
        if event.alias is not None:
            self._add("alias_resolved_total", event.alias, "/".join(pair))
        if not served:
            return
        self._add("llm_requests_total", *pair, str(event.streaming).lower())
        self._observe("llm_latency_seconds", event.duration, *pair)
        if event.to_first_byte is not None:
            self._observe("time_to_first_byte_seconds", event.to_first_byte, *pair)
        if event.outcome == "broken" and event.error:
            self._add("llm_errors_total", *pair, event.error)
        for kind, tokens in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
            if tokens:
                self._add("tokens_total", *pair, kind, amount=tokens)
        speaking = event.duration - (event.to_first_byte or 0.0)
        if event.streaming and event.completion_tokens and speaking > 0:
            self._observe("output_tokens_per_second", event.completion_tokens / speaking, *pair)

    def _add(self, name: str, *labels: str, amount: float = 1) -> None:
        self._counts[name].values[labels] += amount

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].observe(labels, value)

    def _learn(self, provider: str, model: str) -> None:
        if len(self._known) < MODELS_LIMIT:
            self._known.add((provider, model))

    def _model(self, provider: str, model: str) -> str:
        return model if (provider, model) in self._known else OTHER

    def _target(self, target: str) -> str:
        provider, _, model = target.partition("/")
        return f"{provider}/{self._model(provider, model)}"

    def render(self) -> tuple[bytes, str]:
        """The text format, and its content type."""
        registry = Registry()
        for counts in self._counts.values():
            counter = Counter(PREFIX + counts.name, counts.doc, registry=registry)
            for labels, value in counts.values.items():
                counter.set(_labelled(counts.labels, labels), value)
        for seen in self._histograms.values():
            _render_histogram(seen, registry)
        self._gauges(registry)
        _process(registry)
        return _Text().marshall(registry), TEXT_CONTENT_TYPE

    def _gauges(self, registry: Registry) -> None:
        healthy = Gauge(f"{PREFIX}provider_healthy", "Whether the provider may be asked now", registry=registry)
        flying = Gauge(f"{PREFIX}requests_in_flight", "Requests in flight at the provider", registry=registry)
        for name, usable, in_flight in self.providers():
            healthy.set({"provider": name}, int(usable))
            flying.set({"provider": name}, in_flight)
        Gauge(f"{PREFIX}build_info", "Always 1", registry=registry).set({"version": self.version}, 1)
        doc = "When the configuration that serves was loaded, seconds since the epoch"
        Gauge(f"{PREFIX}config_last_reload_timestamp_seconds", doc, registry=registry).set({}, self._reloaded_at)


_COUNTERS: Final[tuple[tuple[str, ...], ...]] = (
    ("requests_total", "Requests that have ended", "endpoint", "status"),
    ("llm_requests_total", "Answers that a model began", "provider", "model", "streaming"),
    ("tokens_total", "Tokens, as providers count them", "provider", "model", "type"),
    ("llm_errors_total", "Failed attempts and broken streams", "provider", "model", "error_type"),
    ("alias_resolved_total", "Answers by alias and target", "alias", "target"),
    ("fallback_total", "Walks that passed one target for another", "from_model", "to_model", "reason"),
    ("client_disconnects_total", "Clients that left before their answer was complete"),
    ("reloads_total", "Reloads of the configuration", "result"),
)
_HISTOGRAMS: Final[tuple[tuple[Any, ...], ...]] = (
    ("request_duration_seconds", "From a request's arrival to its last byte", SECONDS, "endpoint"),
    ("llm_latency_seconds", "The same, for requests that a model answered", SECONDS, "provider", "model"),
    ("time_to_first_byte_seconds", "From a request's arrival to its answer's first byte", SECONDS, "provider", "model"),
    ("output_tokens_per_second", "Completion tokens of streams, from their first byte on", RATES, "provider", "model"),
)


def _labelled(names: Labels, values: Labels) -> dict[str, str]:
    """A lone surrogate would break the whole scrape: it becomes a question mark."""
    return {name: text.encode("utf-8", "replace").decode() for name, text in zip(names, values, strict=True)}


def _render_histogram(seen: _Observations, registry: Registry) -> None:
    """Hands the counts to the library's own histogram, whose buckets are cumulative."""
    collector = Histogram(PREFIX + seen.name, seen.doc, buckets=list(seen.bounds), registry=registry)
    for labels, counts in seen.buckets.items():
        filled = Buckets(*seen.bounds)
        filled.buckets.update(zip(filled.buckets, accumulate(counts), strict=True))
        filled.sum, filled.observations = seen.sums[labels], sum(counts)
        collector.set_value(_labelled(seen.labels, labels), filled)


def _process(registry: Registry) -> None:
    """``process_*`` under Prometheus' standard names; what the machine does not tell is left out."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    doc = "User and system CPU time"
    Counter("process_cpu_seconds_total", doc, registry=registry).set({}, used.ru_utime + used.ru_stime)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Gauge("process_max_fds", "Limit of open file descriptors", registry=registry).set({}, soft)
    with contextlib.suppress(OSError, ValueError, IndexError):
        Gauge("process_open_fds", "Open file descriptors", registry=registry).set({}, len(os.listdir("/proc/self/fd")))
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        virtual = Gauge("process_virtual_memory_bytes", "Virtual memory", registry=registry)
        virtual.set({}, int(fields[20]))
        resident = Gauge("process_resident_memory_bytes", "Resident memory", registry=registry)
        resident.set({}, int(fields[21]) * resource.getpagesize())
        with open("/proc/stat", encoding="ascii") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        started = booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        Gauge("process_start_time_seconds", "When the process began", registry=registry).set({}, started)
