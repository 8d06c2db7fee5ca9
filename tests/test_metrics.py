"""Facts in, Prometheus' text out, read back by Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.chain import Target
from manallm_proxy.events import AttemptFailed, Crashed, FellBack, HealthChanged, LifeChanged, Reloaded, RequestEnded
from manallm_proxy.metrics import MODELS_LIMIT, Metrics

ENDED = RequestEnded(
    request_id="1",
    endpoint="chat/completions",
    requested="mana/test",
    alias="mana/test",
    provider="gpu",
    model="m",
    streaming=True,
    status=200,
    outcome="ok",
    attempts=1,
    bytes_sent=10,
    duration=2.0,
    to_first_byte=0.5,
    prompt_tokens=7,
    completion_tokens=30,
)


def fresh() -> Metrics:
    return Metrics("1.2.3", lambda: [("gpu", True, 2), ("cloud", False, 0)])


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(body.decode())
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
    metrics.know([Target("gpu", "m"), Target("cloud", "n")])
    metrics(AttemptFailed("1", "gpu", "m", "connect_error", "refused", 0.1))
    metrics(FellBack("1", "gpu/m", "cloud/n", "connect_error"))
    metrics(evolve(ENDED, outcome="client_gone", status=499))
    metrics(evolve(ENDED, outcome="broken", error="disconnected"))
    metrics(Reloaded())
    metrics(Reloaded(("a mistake",)))
    for silent in (
        HealthChanged("gpu", None, "healthy", "unhealthy", None),
        LifeChanged("started"),
        Crashed("x", ValueError()),
    ):
        metrics(silent)
    both = {"provider": "gpu", "model": "m"}
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="connect_error") == 1
    assert value(metrics, "mana_llm_llm_errors_total", **both, error_type="disconnected") == 1
    assert (
        value(metrics, "mana_llm_fallback_total", from_model="gpu/m", to_model="cloud/n", reason="connect_error") == 1
    )
    assert value(metrics, "mana_llm_client_disconnects_total") == 1
    assert value(metrics, "mana_llm_reloads_total", result="success") == 1
    assert value(metrics, "mana_llm_reloads_total", result="failure") == 1


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
    models = {dict(labels)["model"] for name, labels in read(metrics) if name == "mana_llm_llm_requests_total"}
    assert len(models) == MODELS_LIMIT + 1
    assert "other" in models


@pytest.mark.parametrize("model", ['a"b', "a\nb", 'x"} 1\nevil_total{a="1', "back\\slash", "\ud800", "ünï"])
def test_no_name_breaks_the_scrape(model: str) -> None:
    """aioprometheus escapes nothing; the scrape still parses, and gives the name back."""
    metrics = fresh()
    metrics(evolve(ENDED, model=model))
    names = {dict(labels).get("model") for _, labels in read(metrics)}
    assert model.encode("utf-8", "replace").decode() in names
    assert not any(name.startswith("evil") for name, _ in read(metrics))
