"""Counts events for Prometheus.

Label values come from closed sets: the configuration, error reasons, and models that a provider has served, so clients
cannot create series. A value outside these sets becomes ``other``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, Final, assert_never

from attrs import field

from manallm_proxy.contract.errors import REFUSALS, EmbeddingSpaceMismatch, ProxyError
from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifecycleChanged,
    ListUnreadable,
    LoopReported,
    ModelChosen,
    ModelLoad,
    PartialOffload,
    Reloaded,
    RequestBegun,
    RequestCommitted,
    RequestEnded,
    ResidentsUnreadable,
    SpendFileFailed,
    StateChanged,
    TlsNotVerified,
    UsageRefused,
    WorkerEnded,
)
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.observe.aioprometheus_internals import (
    TEXT_CONTENT_TYPE,
    CounterFamily,
    GaugeFamily,
    HistogramFamily,
    Labels,
    Registry,
    render,
    snapshot,
)
from manallm_proxy.observe.process_gauges import process_gauges, process_start
from manallm_proxy.observe.served_series import Kind, ServedSeries, kind_of

PREFIX: Final = "mana_llm_"
MODELS_LIMIT: Final = 500
"""Max targets with labels of their own; above that, only the configuration adds more."""
OTHER: Final = "other"
SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
RATES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 500.0)
BURST: Final = 0.01
"""Min seconds of a stream whose rate is recorded: a shorter one came in one piece and would distort the mean."""
SERIES_LIMIT: Final = 5000
TOKENS_LIMIT: Final = 10**9
"""Max tokens of one request. A provider's count above it, or a negative one, is ignored: it would ruin the sum."""
ENDPOINTS: Final = frozenset(
    {each.path for each in Endpoint} | {"messages", "responses", "api/chat", "api/generate", "api/embed"}
)
_STATUSES: Final = tuple(f"http_{status}" for status in range(100, 600))


def error_words() -> Iterator[str]:
    """Every value of ``error_type`` and ``reason``: why a target was skipped, an attempt failed or a stream broke."""
    yield from ("unconfigured", "unhealthy", "cooling", "saturated", "loading", "no_model")
    yield from ("no_healthy_provider", "too_long", "budget", "hedged")
    yield from _STATUSES
    kinds: list[type[ProxyError]] = [ProxyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        yield kind.reason if issubclass(kind, ProviderError) else kind.code or kind.type


@define(eq=False)
class Metrics:
    """An observer that counts events and renders them as Prometheus' text format."""

    version: str
    providers: Callable[[], Iterable[tuple[str, bool, int]]]
    """Called at each scrape: name, usable, requests in flight of each configured provider."""
    keys: Callable[[], Iterable[tuple[str, int]]] = tuple
    """Called at each scrape: name, requests in flight of each client key."""
    models: Callable[[], Iterable[tuple[str, str, float]]] = tuple
    """Called at each scrape: provider, model, and its share on the GPU, of each model that a local server has loaded.
    """
    queues: Callable[[], Iterable[tuple[str, str, int, float]]] = tuple
    """Called at each scrape: provider, model, requests that wait for it here, seconds that another one would wait."""
    aliases: Callable[[], Iterable[tuple[str, int]]] = tuple
    """Called at each scrape: name, targets that may be asked now."""
    _known: set[tuple[str, str]] = field(factory=set)
    _words: frozenset[str] = field(factory=lambda: frozenset(error_words()))
    _reloaded_at: float = field(factory=time.time)
    _process_started: float | None = field(factory=lambda: process_start())
    _registry: Registry = field(factory=Registry)
    _counters: dict[str, CounterFamily] = field(factory=dict)
    _histograms: dict[str, HistogramFamily] = field(factory=dict)
    _served: dict[Kind, ServedSeries] = field(factory=dict)
    """Series of served requests; bounded by the configuration and MODELS_LIMIT, and by SERIES_LIMIT."""

    def __attrs_post_init__(self) -> None:
        for name, doc, *labels in _COUNTERS:
            self._counters[name] = CounterFamily(PREFIX + name, doc, tuple(labels), self._registry)
        for name, doc, bounds, *labels in _HISTOGRAMS:
            self._histograms[name] = HistogramFamily(PREFIX + name, doc, bounds, tuple(labels), self._registry)
        self._add("client_disconnects_total", amount=0)
        for result in ("success", "failure"):
            self._add("reloads_total", result, amount=0)
        for state in ("well", "away"):
            self._add("state_changes_total", state, amount=0)

    def know(self, targets: Collection[tuple[str, str]]) -> None:
        """Gives the configuration's `targets` (provider and model) labels of their own, even above MODELS_LIMIT."""
        self._known.update(targets)

    def __call__(self, event: Event) -> None:
        match event:
            case RequestEnded():
                series = self._served.get(kind_of(event)) if event.outcome == "ok" else None
                if series is not None and _is_plain(event):
                    series.count(event)
                    if event.streaming:
                        self._rate(event, series.pair)
                    if event.cost or event.avoided:
                        self._money(event, series.pair)
                else:
                    self._request(event)
            case AttemptFailed():
                model = self._model(event.provider, event.model)
                self._add("llm_errors_total", event.provider, model, self._word(event.reason))
            case FellBack():
                from_target, to_target = self._target(event.from_target), self._target(event.to_target)
                self._add("fallback_total", from_target, to_target, self._word(event.reason))
            case Reloaded():
                self._add("reloads_total", "failure" if event.mistakes else "success")
                self._reloaded_at = self._reloaded_at if event.mistakes else time.time()
            case WorkerEnded():
                self._add("worker_restarts_total", amount=event.again_in is not None)
            case ModelLoad():
                self._add("model_loads_total", event.provider, self._model(event.provider, event.model), event.event)
            case StateChanged(of="shared state"):
                self._add("state_changes_total", "well" if event.is_well else "away")
            case PartialOffload() | ResidentsUnreadable() | StateChanged():
                pass  # shown as a gauge; for the operator, in the log
            case ModelChosen() | KeyWasRejected() | HealthChanged() | TlsNotVerified() | LifecycleChanged():
                pass  # counted as attempts, or shown as gauges
            case DimensionsDiffer():
                provider, _, model = event.second.partition("/")
                word = str(EmbeddingSpaceMismatch.code)
                self._add("llm_errors_total", provider, self._model(provider, model), word)
            case ListUnreadable() | SpendFileFailed() | UsageRefused() | Crashed() | LoopReported():
                pass  # for the operator, in the log
            case RequestBegun() | RequestCommitted():
                pass  # counted when it ends
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
        if event.cache is not None:
            self._cached(event)
        if event.provider is None or event.model is None:
            return
        if event.cache == "hit":  # has tokens only of an answer that another client began and left
            self._tokens(event, (event.provider, self._model(event.provider, event.model)))
            return
        if event.outcome == "ok":  # not "broken": so does a 404 for an unknown model end after an early heartbeat
            self._learn(event.provider, event.model)
        pair = (event.provider, self._model(event.provider, event.model))
        if event.outcome not in ("ok", "broken"):  # nothing was served; AttemptFailed has counted the failures
            return
        if event.alias is not None:
            self._add("alias_resolved_total", event.alias, "/".join(pair))
        self._add("llm_requests_total", *pair, "true" if event.streaming else "false")
        self._observe("llm_latency_seconds", event.duration, *pair)
        if event.to_first_byte is not None:
            self._observe("time_to_first_byte_seconds", event.to_first_byte, *pair)
        if event.outcome == "broken" and event.error:
            self._add("llm_errors_total", *pair, self._word(event.error))
        self._tokens(event, pair)
        self._rate(event, pair)
        if event.outcome == "ok" and pair[1] != OTHER and endpoint != OTHER and len(self._served) < SERIES_LIMIT:
            self._served[kind_of(event)] = self._series_of(event, endpoint, status, pair)

    def _tokens(self, event: RequestEnded, pair: tuple[str, str]) -> None:
        for kind, tokens in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
            if tokens and 0 < tokens <= TOKENS_LIMIT:
                self._add("tokens_total", *pair, kind, amount=tokens)
                if event.key is not None:
                    self._add("key_tokens_total", event.key, kind, amount=tokens)
        self._money(event, pair)

    def _money(self, event: RequestEnded, pair: tuple[str, str]) -> None:
        if event.cost:
            self._add("cost_usd_total", *pair, amount=event.cost)
        if event.avoided and event.alias is not None:
            self._add("avoided_cost_usd_total", event.alias, amount=event.avoided)

    def _rate(self, event: RequestEnded, pair: tuple[str, str]) -> None:
        tokens = event.completion_tokens
        if event.streaming and tokens and 0 < tokens <= TOKENS_LIMIT:
            streamed = event.duration - (event.to_first_byte or 0.0)
            if streamed >= BURST:
                self._observe("output_tokens_per_second", tokens / streamed, *pair)

    def _series_of(self, event: RequestEnded, endpoint: str, status: str, pair: tuple[str, str]) -> ServedSeries:
        counters: list[tuple[str, Labels]] = [("requests_total", (endpoint, status))]
        counters.append(("llm_requests_total", (*pair, "true" if event.streaming else "false")))
        if event.alias is not None:
            counters.append(("alias_resolved_total", (event.alias, "/".join(pair))))
        durations = (("request_duration_seconds", (endpoint,)), ("llm_latency_seconds", pair))
        first_bytes = self._histograms["time_to_first_byte_seconds"]
        return ServedSeries(
            tuple((self._counters[name].numbers, labels) for name, labels in counters),
            SECONDS,
            tuple(self._histograms[name].series(labels) for name, labels in durations),
            None if event.to_first_byte is None else first_bytes.series(pair),
            self._counters["tokens_total"].numbers,
            pair,
        )

    def _cached(self, event: RequestEnded) -> None:
        alias = event.alias or ""
        self._add("cache_requests_total", alias, event.cache or "")
        if event.saved_cost:
            self._add("cache_saved_usd_total", alias, amount=event.saved_cost)
        if event.saved_usage is not None:
            for kind, tokens in (("prompt", event.saved_usage.prompt), ("completion", event.saved_usage.completion)):
                if 0 < tokens <= TOKENS_LIMIT:
                    self._add("cache_saved_tokens_total", alias, kind, amount=tokens)

    def _add(self, name: str, *labels: str, amount: float = 1) -> None:
        self._counters[name].numbers[labels] += amount

    def _observe(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].record(labels, value)

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
        """Prometheus' text format, and its content type."""
        return self.scraped()(), TEXT_CONTENT_TYPE

    def scraped(self) -> Callable[[], bytes]:
        """All numbers as of now; to be called for the text, which takes 20 ms for 1,500 models, so in a thread."""
        now = Registry()  # a new one for each scrape: a gauge whose provider is gone must not stay
        self._gauges(now)
        process_gauges(now, self._process_started)
        return partial(render, snapshot(self._registry), now)

    def _gauges(self, registry: Registry) -> None:
        def gauge(name: str, doc: str, labels: Labels, numbers: Iterable[tuple[Labels, float]]) -> None:
            GaugeFamily(PREFIX + name, doc, labels, numbers, registry)

        providers = list(self.providers())
        usable = [((name,), int(is_usable)) for name, is_usable, _ in providers]
        in_flight = [((name,), number) for name, _, number in providers]
        gauge("provider_healthy", "Whether the provider may be asked now", ("provider",), usable)
        gauge("requests_in_flight", "Requests in flight at the provider", ("provider",), in_flight)
        targets = [((name,), number) for name, number in self.aliases()]
        gauge("alias_usable_targets", "Targets of the alias that may be asked now", ("alias",), targets)
        keys = [((name,), number) for name, number in self.keys()]
        gauge("key_requests_in_flight", "Requests in flight by the client's key", ("key",), keys)
        shares: list[tuple[Labels, float]] = [((p, self._model(p, m)), share) for p, m, share in self.models()]
        gauge("model_vram_ratio", "How much of a loaded model is on the GPU", ("provider", "model"), shares)
        waiting: dict[Labels, float] = {}
        expected: dict[Labels, float] = {}
        for provider, model, length, seconds in self.queues():
            pair = provider, self._model(provider, model)
            waiting[pair] = waiting.get(pair, 0) + length
            expected[pair] = max(expected.get(pair, 0.0), seconds)
        gauge("queue_length", "Requests that wait here for a local model", ("provider", "model"), waiting.items())
        doc = "Seconds that another request for a local model would wait here"
        gauge("expected_wait_seconds", doc, ("provider", "model"), expected.items())
        gauge("build_info", "Always 1", ("version",), [((self.version,), 1)])
        doc = "When the configuration that serves was loaded, seconds since the epoch"
        gauge("config_last_reload_timestamp_seconds", doc, (), [((), self._reloaded_at)])


def _is_plain(event: RequestEnded) -> bool:
    """Whether `event` counts only in the series of its kind."""
    if event.key is not None or event.cache is not None or event.error is not None:
        return False
    prompt, completion = event.prompt_tokens, event.completion_tokens
    return (prompt is None or 0 <= prompt <= TOKENS_LIMIT) and (completion is None or 0 <= completion <= TOKENS_LIMIT)


_COUNTERS: Final[tuple[tuple[str, ...], ...]] = (
    ("requests_total", "Requests that have ended", "endpoint", "status"),
    ("llm_requests_total", "Answers that a model began", "provider", "model", "streaming"),
    ("tokens_total", "Tokens, as providers count them", "provider", "model", "type"),
    ("llm_errors_total", "Failed attempts and broken streams", "provider", "model", "error_type"),
    ("alias_resolved_total", "Answers by alias and target", "alias", "target"),
    ("fallback_total", "Fallbacks from one target to the next", "from_model", "to_model", "reason"),
    ("cost_usd_total", "What answers cost, where the price is known", "provider", "model"),
    ("avoided_cost_usd_total", "What the next entry would have cost, had no local one answered", "alias"),
    ("model_loads_total", "Loads of models that were not loaded", "provider", "model", "event"),
    ("cache_requests_total", "Requests of aliases whose answers are kept", "alias", "outcome"),
    ("cache_saved_tokens_total", "Tokens that no provider had to be asked for again", "alias", "type"),
    ("cache_saved_usd_total", "What answers from the cache would have cost, where the price is known", "alias"),
    ("state_changes_total", "How often the server of shared state was lost or found again", "state"),
    ("key_requests_total", "Requests that have ended, by the client's key", "key", "status"),
    ("key_tokens_total", "Tokens, by the client's key", "key", "type"),
    ("key_refusals_total", "Requests refused for their key, or for having none", "error_type"),
    ("client_disconnects_total", "Clients that left before their answer was complete"),
    ("reloads_total", "Reloads of the configuration", "result"),
    ("worker_restarts_total", "Workers that ended unexpectedly and were restarted"),
)
_HISTOGRAMS: Final[tuple[tuple[Any, ...], ...]] = (
    ("request_duration_seconds", "From a request's arrival to its last byte", SECONDS, "endpoint"),
    ("llm_latency_seconds", "From arrival to the last byte, where a model answered", SECONDS, "provider", "model"),
    ("time_to_first_byte_seconds", "From a request's arrival to its answer's first byte", SECONDS, "provider", "model"),
    ("output_tokens_per_second", "Completion tokens of streams, from their first byte on", RATES, "provider", "model"),
)
