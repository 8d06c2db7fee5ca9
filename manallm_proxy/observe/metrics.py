"""Facts become Prometheus' numbers, on aioprometheus.

Labels come from closed sets: the configuration, the error words, and models that a provider has served; a
client cannot mint one. What is not known is ``other``.

aioprometheus serialises the labels as JSON at every ``inc``: 26 µs for what one request counts. So a request
only adds to plain dictionaries, which takes 5: `_Counter` and `_Histogram` are the library's own collectors,
with a store of ours that they hand out at a scrape (under 1 µs a line). The library also escapes nothing:
`_Text` does.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, assert_never

from aioprometheus.collectors import Counter, Gauge, Histogram, Registry
from aioprometheus.formats.text import TEXT_CONTENT_TYPE, TextFormatter
from attrs import define, field

from manallm_proxy.contract.errors import REFUSALS, ProviderError, ProxyError
from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifeChanged,
    NotVerified,
    Reloaded,
    RequestEnded,
    WorkerEnded,
)
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.targets import Target

PREFIX: Final = "mana_llm_"
MODELS_LIMIT: Final = 500
"""Distinct targets beyond which only those of the configuration get a label of their own."""
OTHER: Final = "other"
SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
RATES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 500.0)
BURST: Final = 0.01
"""Seconds within which a whole answer came at once: a rate of it would say nothing, and spoil the mean."""
TOKENS_LIMIT: Final = 10**9
"""A provider's count above it, or below 0, is no count: one of them would ruin the sum for ever."""
ENDPOINTS: Final = frozenset({each.path for each in Endpoint} | {"api/chat", "api/generate", "api/embed"})

_BOUNDS: Final = {bound: str(bound) for bound in (*SECONDS, *RATES)} | {math.inf: "+Inf"}

Labels = tuple[str, ...]


class _Counter(Counter):
    """One counter: its labels' names, and its numbers by label values."""

    def __init__(self, name: str, doc: str, labels: Labels, registry: Registry) -> None:
        super().__init__(PREFIX + name, doc, registry=registry)
        self.labels = labels
        self.counts: dict[Labels, float] = defaultdict(float)

    def get_all(self) -> list[Any]:
        """What the formatter asks for: pairs of labels and number."""
        return [(dict(zip(self.labels, values, strict=True)), count) for values, count in self.counts.items()]


class _Histogram(Histogram):
    """One histogram: per label values the count in each bucket (the last: above all bounds), and the sum."""

    def __init__(self, name: str, doc: str, bounds: tuple[float, ...], labels: Labels, registry: Registry) -> None:
        super().__init__(PREFIX + name, doc, registry=registry, buckets=[*bounds, math.inf])
        self.labels = labels
        self.bounds = bounds
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = defaultdict(float)

    def put(self, labels: Labels, value: float) -> None:
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value

    def get_all(self) -> list[Any]:
        """What the formatter asks for: pairs of labels and cumulative buckets, with ``count`` and ``sum``."""
        return [(dict(zip(self.labels, values, strict=True)), self._filled(values)) for values in self.counts]

    def _filled(self, values: Labels) -> dict[float | str, float]:
        cumulative = list(accumulate(self.counts[values]))
        filled: dict[float | str, float] = dict(zip(self.upper_bounds, cumulative, strict=True))
        return {**filled, "count": cumulative[-1], "sum": self.sums[values]}


class _Text(TextFormatter):
    """aioprometheus' text format with its label values escaped as Prometheus asks.

    The labels of a histogram are put together once a series, not once a bucket: a scrape blocks the loop.
    """

    def _format_line(self, name: str, labels: dict[str, str], value: Any, const_labels: dict[str, str]) -> str:
        inner = _inner(labels)
        return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"

    def _format_histogram(self, histogram: Any, name: str, const_labels: dict[str, str]) -> list[str]:
        labels, values = histogram
        inner = _inner(labels)
        bucket = f'{name}_bucket{{{inner},le="'
        return [
            f'{bucket}{_BOUNDS[key]}"}} {value}' if key in _BOUNDS else f"{name}_{key}{{{inner}}} {value}"
            for key, value in values.items()
        ]


def _inner(labels: dict[str, str]) -> str:
    return ",".join([f'{name}="{_escape(text)}"' for name, text in sorted(labels.items())])


def _escape(text: str) -> str:
    return _sound(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _sound(text: str) -> str:
    """A lone surrogate would break the whole scrape: it is written as ``\\ud800``, so that two stay two."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _error_words() -> Iterator[str]:
    """The closed list of contract, section 7: why a target was passed, an attempt failed, a stream broke."""
    yield from ("unconfigured", "unhealthy", "cooling", "saturated", "no_healthy_provider")
    yield from (f"http_{status}" for status in range(100, 600))
    kinds: list[type[ProxyError]] = [ProxyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        yield kind.reason if issubclass(kind, ProviderError) else kind.code or kind.type


@define(eq=False)
class Metrics:
    """``providers`` yields name, usable, requests in flight of each configured provider at the time of a scrape.

    ``keys`` yields name and requests in flight of each client key.
    """

    version: str
    providers: Callable[[], Iterable[tuple[str, bool, int]]]
    keys: Callable[[], Iterable[tuple[str, int]]] = tuple
    _known: set[tuple[str, str]] = field(factory=set)
    _words: frozenset[str] = field(factory=lambda: frozenset(_error_words()))
    _reloaded_at: float = field(factory=time.time)
    _process_began: float | None = field(factory=lambda: _process_start())
    _registry: Registry = field(factory=Registry)
    _counters: dict[str, _Counter] = field(factory=dict)
    _histograms: dict[str, _Histogram] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for name, doc, *labels in _COUNTERS:
            self._counters[name] = _Counter(name, doc, tuple(labels), self._registry)
        for name, doc, bounds, *labels in _HISTOGRAMS:
            self._histograms[name] = _Histogram(name, doc, bounds, tuple(labels), self._registry)
        self._add("client_disconnects_total", amount=0)
        for result in ("success", "failure"):
            self._add("reloads_total", result, amount=0)

    def know(self, targets: Iterable[Target]) -> None:
        """Targets of the configuration have labels of their own from the start, however many were served."""
        self._known.update((target.provider, target.model) for target in targets)

    def __call__(self, event: Event) -> None:
        match event:
            case RequestEnded():
                self._request(event)
            case AttemptFailed():
                model = self._model(event.provider, event.model)
                self._add("llm_errors_total", event.provider, model, self._word(event.reason))
            case FellBack():
                passed, next_one = self._target(event.from_target), self._target(event.to_target)
                self._add("fallback_total", passed, next_one, self._word(event.reason))
            case Reloaded():
                self._add("reloads_total", "failure" if event.mistakes else "success")
                self._reloaded_at = self._reloaded_at if event.mistakes else time.time()
            case WorkerEnded():
                self._add("worker_restarts_total", amount=event.again_in is not None)
            case KeyWasRejected() | HealthChanged() | NotVerified() | DimensionsDiffer() | LifeChanged() | Crashed():
                pass  # seen as errors, as gauges, or in the log only
            case _:
                assert_never(event)

    def _request(self, event: RequestEnded) -> None:
        endpoint = event.endpoint if event.endpoint in ENDPOINTS else OTHER
        status = str(event.status) if 100 <= event.status <= 599 else OTHER
        self._add("requests_total", endpoint, status)
        if event.error in REFUSALS:
            self._add("key_refusals_total", event.error)
        if event.key is not None:
            self._add("key_requests_total", event.key, status)
        self._observe("request_duration_seconds", event.duration, endpoint)
        if event.outcome == "client_gone":
            self._add("client_disconnects_total")
        if event.provider is None or event.model is None:
            return
        if event.outcome == "ok":  # "broken" shows nothing: behind an early heartbeat a 404 ends like that
            self._learn(event.provider, event.model)
        pair = (event.provider, self._model(event.provider, event.model))
        if event.outcome not in ("ok", "broken"):  # nothing was served; the attempts have told of failures
            return
        if event.alias is not None:
            self._add("alias_resolved_total", event.alias, "/".join(pair))
        self._add("llm_requests_total", *pair, "true" if event.streaming else "false")
        self._observe("llm_latency_seconds", event.duration, *pair)
        if event.to_first_byte is not None:
            self._observe("time_to_first_byte_seconds", event.to_first_byte, *pair)
        if event.outcome == "broken" and event.error:
            self._add("llm_errors_total", *pair, self._word(event.error))
        for kind, tokens in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
            if tokens and 0 < tokens <= TOKENS_LIMIT:
                self._add("tokens_total", *pair, kind, amount=tokens)
                if event.key is not None:
                    self._add("key_tokens_total", event.key, kind, amount=tokens)
        speaking = event.duration - (event.to_first_byte or 0.0)
        tokens = event.completion_tokens
        if event.streaming and tokens and 0 < tokens <= TOKENS_LIMIT and speaking >= BURST:
            self._observe("output_tokens_per_second", tokens / speaking, *pair)

    def _add(self, name: str, *labels: str, amount: float = 1) -> None:
        self._counters[name].counts[labels] += amount

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].put(labels, value)

    def _learn(self, provider: str, model: str) -> None:
        if len(self._known) < MODELS_LIMIT:
            self._known.add((provider, model))

    def _model(self, provider: str, model: str) -> str:
        return model if (provider, model) in self._known else OTHER

    def _target(self, target: str) -> str:
        provider, _, model = target.partition("/")
        return f"{provider}/{self._model(provider, model)}"

    def _word(self, reason: str) -> str:
        return reason if reason in self._words else OTHER

    def render(self) -> tuple[bytes, str]:
        """The text format, and its content type."""
        now = Registry()  # gauges are what they are at this moment: nothing of the last scrape stays behind
        self._gauges(now)
        _process(now, self._process_began)
        text = _Text()
        return text.marshall(self._registry) + text.marshall(now), TEXT_CONTENT_TYPE

    def _gauges(self, registry: Registry) -> None:
        healthy = Gauge(f"{PREFIX}provider_healthy", "Whether the provider may be asked now", registry=registry)
        flying = Gauge(f"{PREFIX}requests_in_flight", "Requests in flight at the provider", registry=registry)
        for name, usable, in_flight in self.providers():
            labels = {"provider": _sound(name)}  # the library's own store takes no surrogate
            healthy.set(labels, int(usable))
            flying.set(labels, in_flight)
        held = Gauge(f"{PREFIX}key_requests_in_flight", "Requests in flight by the client's key", registry=registry)
        for name, in_flight in self.keys():
            held.set({"key": name}, in_flight)
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
    ("key_requests_total", "Requests that have ended, by the client's key", "key", "status"),
    ("key_tokens_total", "Tokens, by the client's key", "key", "type"),
    ("key_refusals_total", "Requests that a key, or none, did not allow", "error_type"),
    ("client_disconnects_total", "Clients that left before their answer was complete"),
    ("reloads_total", "Reloads of the configuration", "result"),
    ("worker_restarts_total", "Workers that ended unasked, and were started again"),
)
_HISTOGRAMS: Final[tuple[tuple[Any, ...], ...]] = (
    ("request_duration_seconds", "From a request's arrival to its last byte", SECONDS, "endpoint"),
    ("llm_latency_seconds", "The same, for requests that a model answered", SECONDS, "provider", "model"),
    ("time_to_first_byte_seconds", "From a request's arrival to its answer's first byte", SECONDS, "provider", "model"),
    ("output_tokens_per_second", "Completion tokens of streams, from their first byte on", RATES, "provider", "model"),
)


def _process(registry: Registry, began: float | None) -> None:
    """``process_*`` under Prometheus' standard names; what the machine does not tell is left out."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    doc = "User and system CPU time"
    Counter("process_cpu_seconds_total", doc, registry=registry).set({}, used.ru_utime + used.ru_stime)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = math.inf if soft == resource.RLIM_INFINITY else soft
    Gauge("process_max_fds", "Limit of open file descriptors", registry=registry).set({}, limit)
    if began is not None:
        Gauge("process_start_time_seconds", "When the process began", registry=registry).set({}, began)
    with contextlib.suppress(OSError):
        opened = len(os.listdir("/proc/self/fd"))
        Gauge("process_open_fds", "Open file descriptors", registry=registry).set({}, opened)
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _stat()
        virtual, resident = int(fields[20]), int(fields[21]) * resource.getpagesize()
        Gauge("process_virtual_memory_bytes", "Virtual memory", registry=registry).set({}, virtual)
        Gauge("process_resident_memory_bytes", "Resident memory", registry=registry).set({}, resident)


def _stat() -> list[str]:
    """``/proc/self/stat`` behind the program's name, which may hold anything."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _process_start() -> float | None:
    """Seconds since the epoch. Asked once: ``/proc/stat`` is slow to read on machines with many cores."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(_stat()[19])
        with open("/proc/stat", encoding="ascii", errors="replace") as file:
            booted = [int(line.split()[1]) for line in file if line.startswith("btime ")]
        return booted[0] + ticks / os.sysconf("SC_CLK_TCK")
    return None
