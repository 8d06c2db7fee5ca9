"""Facts in, Prometheus' text out, read back by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifecycleChanged,
    ListUnreadable,
    Reloaded,
    UsageRefused,
    WorkerEnded,
)
from manallm_proxy.gateway.gateway import DOORS
from manallm_proxy.observe.metrics import ENDPOINTS, MODELS_LIMIT, TOKENS_LIMIT, Metrics
from tests.figures import ENDED


def fresh() -> Metrics:
    return Metrics("1.2.3", lambda: [("gpu", True, 2), ("cloud", False, 0)])


def read(metrics: Metrics, name: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples; with a `name` those of the lines that begin so, since the parser takes a second for 25,000."""
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    text = body.decode()
    if name:
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith(name))
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: Any) -> float | None:
    return read(metrics).get((name, tuple(sorted(labels.items()))))


def test_one_served_request_is_counted_everywhere() -> None:
    """Requests, tokens, times, rates, the alias."""
    metrics = fresh()
    metrics(ENDED)
    both = {"provider": "gpu", "model": "m"}
    assert value(metrics, "mana_llm_requests_total", endpoint="chat/completions", status="200") == 1
    assert value(metrics, "mana_llm_llm_requests_total", **both, streaming="true") == 1
    assert value(metrics, "mana_llm_tokens_total", **both, type="prompt") == 7
    assert value(metrics, "mana_llm_tokens_total", **both, type="completion") == 30
    assert value(metrics, "mana_llm_alias_resolved_total", alias="mana/test", target="gpu/m") == 1
    assert value(metrics, "mana_llm_llm_latency_seconds_sum", **both) == 2.0
    assert value(metrics, "mana_llm_llm_latency_seconds_bucket", **both, le="1.0") == 0
    assert value(metrics, "mana_llm_llm_latency_seconds_bucket", **both, le="2.5") == 1
    assert value(metrics, "mana_llm_llm_latency_seconds_bucket", **both, le="+Inf") == 1
    assert value(metrics, "mana_llm_time_to_first_byte_seconds_count", **both) == 1
    assert value(metrics, "mana_llm_output_tokens_per_second_sum", **both) == 20.0
    assert value(metrics, "mana_llm_request_duration_seconds_count", endpoint="chat/completions") == 1


def test_failures_fallbacks_disconnects_and_reloads() -> None:
    """Each fact moves its own number, and those that are gauges or log lines move none."""
    metrics = fresh()
    metrics.know([("gpu", "m"), ("cloud", "n")])
    metrics(AttemptFailed("1", "gpu", "m", "connect_error", "refused", 0.1))
    metrics(FellBack("1", "gpu/m", "cloud/n", "connect_error"))
    metrics(evolve(ENDED, outcome="client_gone", status=499))
    metrics(evolve(ENDED, outcome="broken", error="disconnected"))
    metrics(Reloaded())
    metrics(Reloaded(("a mistake",)))
    metrics(DimensionsDiffer("mana/embed", "gpu/m", 3, "cloud/n", 4))
    for silent in (
        HealthChanged("gpu", None, "healthy", "unhealthy", None),
        LifecycleChanged("started"),
        Crashed("x", ValueError()),
        KeyWasRejected("gpu", 401),
        ListUnreadable("gpu", "it is empty"),
        UsageRefused("gpu", "m"),
    ):
        metrics(silent)
    both = {"provider": "gpu", "model": "m"}
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="connect_error") == 1
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="disconnected") == 1
    refused = {"provider": "cloud", "model": "n", "error_type": "embedding_space_mismatch"}
    assert value(metrics, "mana_llm_llm_errors_total", **refused) == 1
    assert (
        value(metrics, "mana_llm_fallback_total", from_model="gpu/m", to_model="cloud/n", reason="connect_error") == 1
    )
    assert value(metrics, "mana_llm_client_disconnects_total") == 1
    assert value(metrics, "mana_llm_reloads_total", result="success") == 1
    assert value(metrics, "mana_llm_reloads_total", result="failure") == 1


def test_workers_that_ended_unasked() -> None:
    """Counted where another takes their place."""
    metrics = fresh()
    metrics(WorkerEnded(1, 77, "SIGKILL", 0.1))
    metrics(WorkerEnded(2, 78, "SIGKILL", None))
    assert value(metrics, "mana_llm_worker_restarts_total") == 1


def test_what_was_not_served_was_not_resolved() -> None:
    """An alias counts its served requests only; attempts that failed have counted themselves."""
    metrics = fresh()
    metrics(evolve(ENDED, outcome="error", status=404, alias="mana/test"))
    assert "mana_llm_alias_resolved_total{" not in metrics.render()[0].decode()
    metrics(evolve(ENDED, alias="mana/test"))
    assert "mana_llm_alias_resolved_total{" in metrics.render()[0].decode()


def test_usage_by_the_clients_key() -> None:
    """Under the key's name where there is one, nothing where nobody is asked for one; gauges as for providers."""
    metrics = Metrics("1", list, lambda: [("alice", 2)])
    metrics(ENDED)
    assert not [name for name, _ in read(metrics) if name.startswith(("mana_llm_key_requests_total", "mana_llm_key_t"))]
    metrics(evolve(ENDED, key="alice"))
    metrics(evolve(ENDED, key="alice", outcome="error", status=429, error="rate_limit_exceeded"))
    metrics(evolve(ENDED, outcome="error", status=401, error="invalid_api_key"))
    metrics(evolve(ENDED, endpoint="/metrics", key="alice", outcome="error", status=403, error="admin_only"))
    assert value(metrics, "mana_llm_key_requests_total", key="alice", status="200") == 1
    assert value(metrics, "mana_llm_key_requests_total", key="alice", status="429") == 1
    assert value(metrics, "mana_llm_key_tokens_total", key="alice", type="prompt") == 7
    assert value(metrics, "mana_llm_key_tokens_total", key="alice", type="completion") == 30
    assert value(metrics, "mana_llm_key_requests_in_flight", key="alice") == 2
    for code in ("rate_limit_exceeded", "invalid_api_key", "admin_only"):
        assert value(metrics, "mana_llm_key_refusals_total", error_type=code) == 1


def test_gauges_are_read_at_the_scrape() -> None:
    """Health, requests in flight, version, the process itself; zero series exist from the start."""
    metrics = fresh()
    assert value(metrics, "mana_llm_provider_healthy", provider="gpu") == 1
    assert value(metrics, "mana_llm_provider_healthy", provider="cloud") == 0
    assert value(metrics, "mana_llm_requests_in_flight", provider="gpu") == 2
    assert value(metrics, "mana_llm_build_info", version="1.2.3") == 1
    assert value(metrics, "mana_llm_reloads_total", result="failure") == 0
    assert (value(metrics, "process_resident_memory_bytes") or 0) > 1e6
    assert (value(metrics, "process_open_fds") or 0) > 0
    assert (value(metrics, "mana_llm_config_last_reload_timestamp_seconds") or 0) > 1e9


def test_a_client_cannot_mint_a_label() -> None:
    """10,000 names that nobody served add no series; served ones do, up to a limit."""
    metrics = fresh()
    metrics(evolve(ENDED, outcome="error", status=404, model="x"))
    before = read(metrics).keys()
    for number in range(10_000):
        metrics(evolve(ENDED, outcome="error", status=404, alias=None, model=f"x{number}", requested=f"y{number}"))
        metrics(AttemptFailed(str(number), "gpu", f"x{number}", "http_4xx", None, 0.1))
    assert {name for name, labels in read(metrics).keys() - before} == {"mana_llm_llm_errors_total"}
    for number in range(MODELS_LIMIT + 50):
        metrics(evolve(ENDED, model=f"served{number}"))
    of = "mana_llm_llm_requests_total"
    models = {dict(labels)["model"] for name, labels in read(metrics, of) if name == of}
    assert len(models) == MODELS_LIMIT + 1
    assert "other" in models


@pytest.mark.parametrize("model", ['a"b', "a\nb", 'x"} 1\nevil_total{a="1', "back\\slash", "\ud800", "ünï"])
def test_no_name_breaks_the_scrape(model: str) -> None:
    """aioprometheus escapes nothing; the scrape still parses, and gives the name back."""
    metrics = fresh()
    metrics(evolve(ENDED, model=model))
    names = {dict(labels).get("model") for _, labels in read(metrics)}
    assert model.encode("utf-8", "backslashreplace").decode() in names
    assert not any(name.startswith("evil") for name, _ in read(metrics))


def test_names_that_differ_in_a_surrogate_only_stay_two() -> None:
    """One must not overwrite the other's count; nor does one in a provider's name break a gauge."""
    metrics = Metrics("1", lambda: [("\ud800", True, 0)])
    for model in ("\ud800", "\ud801", "\ud801"):
        metrics(evolve(ENDED, model=model))
    both = {"provider": "gpu", "streaming": "true"}
    assert value(metrics, "mana_llm_llm_requests_total", **both, model=r"\ud800") == 1
    assert value(metrics, "mana_llm_llm_requests_total", **both, model=r"\ud801") == 2
    assert value(metrics, "mana_llm_provider_healthy", provider=r"\ud800") == 1


def test_words_that_are_on_no_list_are_other() -> None:
    """Endpoints, statuses and reasons, whoever made them up."""
    metrics = fresh()
    metrics.know([("gpu", "m")])
    metrics(evolve(ENDED, endpoint="made/up", status=12345, outcome="broken", error="made up"))
    metrics(AttemptFailed("1", "gpu", "m", "made up", None, 0.1))
    metrics(AttemptFailed("1", "gpu", "m", "http_498", None, 0.1))
    metrics(FellBack("1", "gpu/m", "gpu/m", "made up"))
    metrics(FellBack("1", "gpu/m", "gpu/m", "saturated"))
    both = {"provider": "gpu", "model": "m"}
    assert value(metrics, "mana_llm_requests_total", endpoint="other", status="other") == 1
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="other") == 2
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="http_498") == 1
    way = {"from_model": "gpu/m", "to_model": "gpu/m"}
    assert value(metrics, "mana_llm_fallback_total", **way, reason="other") == 1
    assert value(metrics, "mana_llm_fallback_total", **way, reason="saturated") == 1


def test_the_endpoints_are_the_doors() -> None:
    """A new door must not hide behind ``other``."""
    assert {door.name for door in DOORS.values()} | {"responses", "messages/count_tokens"} == ENDPOINTS


@pytest.mark.parametrize("tokens", [-5, 0, TOKENS_LIMIT + 1, 10**400])
def test_a_providers_absurd_count_is_no_count(tokens: int) -> None:
    """A counter never falls, and no number that a provider sends raises in the way of a request."""
    metrics = fresh()
    metrics(ENDED)
    metrics(evolve(ENDED, prompt_tokens=tokens, completion_tokens=tokens))
    both = {"provider": "gpu", "model": "m"}
    assert value(metrics, "mana_llm_tokens_total", **both, type="prompt") == 7
    assert value(metrics, "mana_llm_tokens_total", **both, type="completion") == 30
    assert value(metrics, "mana_llm_output_tokens_per_second_count", **both) == 1


def test_an_answer_in_one_piece_has_no_rate() -> None:
    """Thirty tokens in a microsecond would spoil the mean."""
    metrics = fresh()
    metrics(evolve(ENDED, duration=0.500001))
    assert value(metrics, "mana_llm_output_tokens_per_second_count", provider="gpu", model="m") is None


def test_a_broken_answer_teaches_no_name() -> None:
    """After an early heartbeat a 404 for a made-up model ends as a broken 200."""
    metrics = fresh()
    metrics(evolve(ENDED, outcome="broken", model="made-up", error="http_404"))
    models = {dict(labels).get("model") for _, labels in read(metrics)}
    assert models == {None, "other"}


def test_the_configuration_has_labels_however_many_models_were_served() -> None:
    """A reload after a flood of served names still shows its own targets."""
    metrics = fresh()
    for number in range(MODELS_LIMIT + 1):
        metrics(evolve(ENDED, model=f"served{number}"))
    metrics.know([("gpu", "configured")])
    metrics(evolve(ENDED, model="configured"))
    of = "mana_llm_llm_requests_total"
    labels = (("model", "configured"), ("provider", "gpu"), ("streaming", "true"))
    assert read(metrics, of)[of, labels] == 1


@given(st.lists(st.sampled_from(range(7)), max_size=8))
def test_the_short_way_counts_as_the_long_one(which: list[int]) -> None:
    """From the second request of a kind on its series are known; the page is the same as if they were not."""
    kinds = [
        ENDED,
        evolve(ENDED, streaming=not ENDED.streaming),
        evolve(ENDED, alias=None, prompt_tokens=None),
        evolve(ENDED, key="alice"),
        evolve(ENDED, cost=0.5, avoided=0.25),
        evolve(ENDED, completion_tokens=TOKENS_LIMIT + 1),
        evolve(ENDED, outcome="broken", error="disconnected"),
    ]
    short, long = fresh(), fresh()
    for number in which:
        short(kinds[number])
        long._served.clear()
        long(kinds[number])
    pages = [metrics.render()[0].decode().splitlines() for metrics in (short, long)]
    lines = [[line for line in page if line.startswith("mana_llm") and "reload" not in line] for page in pages]
    assert lines[0] == lines[1]


def test_money_is_counted_each_time() -> None:
    """Of the first request of its kind, and of those whose series are known by then."""
    metrics = fresh()
    for _ in range(3):
        metrics(evolve(ENDED, cost=0.5, avoided=0.25))
    assert value(metrics, "mana_llm_cost_usd_total", provider="gpu", model="m") == 1.5
    assert value(metrics, "mana_llm_avoided_cost_usd_total", alias="mana/test") == 0.75
