"""Many workers' texts and reports in, one out, read by Prometheus' own parser."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.observe.metrics_merge import Families, add, merged_health, parse, render
from tests.figures import WELL, report, samples, value, worker


def merged(*texts: str) -> str:
    total: Families = {}
    for text in texts:
        add(total, parse(text))
    return render(total)


def test_one_workers_text_stays_what_it_is() -> None:
    """Read and written again: the same series, types and words of help."""
    text = worker(3)
    again = merged(text)
    assert samples(again) == samples(text)
    assert [line for line in again.split("\n") if line[:1] == "#"] == [x for x in text.split("\n") if x[:1] == "#"]


def test_counters_and_histograms_are_added_up() -> None:
    """Also where a series is one worker's alone."""
    text = merged(worker(3), worker(4), worker(2, model="other-model"))
    both = {"provider": "gpu", "model": "m"}
    assert value(text, "mana_llm_requests_total", endpoint="chat/completions", status="200") == 9
    assert value(text, "mana_llm_llm_requests_total", **both, streaming="true") == 7
    assert value(text, "mana_llm_llm_requests_total", provider="gpu", model="other-model", streaming="true") == 2
    assert value(text, "mana_llm_llm_latency_seconds_sum", **both) == 14.0
    assert value(text, "mana_llm_llm_latency_seconds_bucket", **both, le="1.0") == 0
    assert value(text, "mana_llm_llm_latency_seconds_bucket", **both, le="+Inf") == 7


def test_each_gauge_in_its_own_way() -> None:
    """In flight: the sum. Usable: by any. Memory: the sum. Limits and descriptors: those nearest to each other."""
    texts = [worker(0, usable=False, in_flight=2), worker(0, usable=True, in_flight=3)]
    text = merged(*texts)
    assert value(text, "mana_llm_provider_healthy", provider="gpu") == 1
    assert value(text, "mana_llm_requests_in_flight", provider="gpu") == 5
    assert value(text, "mana_llm_key_requests_in_flight", key="alice") == 5
    assert value(text, "mana_llm_build_info", version="1") == 1
    single = value(texts[0], "process_resident_memory_bytes") or 0
    assert (value(text, "process_resident_memory_bytes") or 0) > 1.5 * single
    assert (value(text, "process_open_fds") or math.inf) < 2 * (value(texts[0], "process_open_fds") or 0)
    assert value(text, "process_max_fds") == value(texts[0], "process_max_fds")
    loaded = "mana_llm_config_last_reload_timestamp_seconds"
    assert value(text, loaded) == value(texts[0], loaded)


def test_who_is_gone_leaves_its_counters() -> None:
    """Its gauges go with it."""
    total = parse(worker(1, in_flight=1))
    add(total, parse(worker(5, usable=False, in_flight=7)), counted_only=True)
    text = render(total)
    assert value(text, "mana_llm_requests_total", endpoint="chat/completions", status="200") == 6
    assert value(text, "mana_llm_requests_in_flight", provider="gpu") == 1


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3, unique=True))
def test_no_name_breaks_the_sum(models: list[str]) -> None:
    """Blanks, quotes, braces and every kind of line break within a label."""
    text = merged(*[worker(2, model=model) for model in models], worker(1, model=models[0]))
    counts = [count for (name, _), count in samples(text).items() if name == "mana_llm_llm_requests_total"]
    assert sorted(counts) == [2] * (len(models) - 1) + [3]


EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00"


def test_workers_that_agree() -> None:
    """Their word; requests in flight added up; the latest look counts."""
    down = {"status": "unhealthy", "consecutive_failures": 2, "last_error": "disconnected", "unhealthy_until": EARLY}
    later = {**down, "consecutive_failures": 3, "last_error": "connect_error", "unhealthy_until": LATE}
    whole = merged_health(
        [report("unhealthy", **down, last_check=EARLY), report("unhealthy", **later, last_check=LATE)]
    )
    assert whole["status"] == "unhealthy"
    assert whole["providers"]["gpu"] == {**later, "last_check": LATE, "in_flight": 2}


def test_workers_that_do_not_agree() -> None:
    """Then it is degraded, and can be used."""
    whole = merged_health([report(), report("unhealthy", status="unhealthy", unhealthy_until=LATE)])
    assert (whole["status"], whole["providers"]["gpu"]["status"]) == ("degraded", "degraded")
    assert whole["providers"]["gpu"]["unhealthy_until"] == LATE


def test_targets_and_what_is_not_configured() -> None:
    """A target that only one worker has a word on is healthy for the others."""
    cooling = {**WELL, "status": "cooling", "cooling_until": LATE}
    one, other = report("degraded", status="cooling", targets={"m": cooling}), report()
    one["providers"]["cloud"] = other["providers"]["cloud"] = {**WELL, "status": "unconfigured", "in_flight": 0}
    whole = merged_health([one, other])
    assert whole["providers"]["gpu"]["targets"] == {"m": {**cooling, "status": "degraded"}}
    assert whole["providers"]["cloud"]["status"] == "unconfigured"
    assert merged_health([one, one])["providers"]["gpu"]["targets"] == {"m": cooling}
    alone = {"status": "healthy", "providers": {"cloud": other["providers"]["cloud"], **report()["providers"]}}
    assert merged_health([alone, alone])["status"] == "healthy"


def test_a_line_of_all_workers_is_counted_once() -> None:
    """What waits is the sum, how long it takes is known by each, and whoever loads a model loads it for all."""

    def target(queue: int, wait: float, loading: bool) -> dict[str, Any]:
        row = {**report()["providers"]["gpu"], "queue": queue, "expected_wait": wait, "loading": loading, "slots": 2}
        return {"status": "healthy", "providers": {"gpu": {**row, "targets": {"m": row}}}}

    whole = merged_health([target(2, 3.0, False), target(1, 3.5, True), report()])
    row = whole["providers"]["gpu"]["targets"]["m"]
    assert (row["queue"], row["expected_wait"], row["loading"], row["slots"]) == (3, 3.5, True, 2)
    page = 'mana_llm_queue_length{model="m",provider="gpu"} '
    total: Families = {}
    for queue in (2, 1):
        add(total, parse(f"# TYPE mana_llm_queue_length gauge\n{page}{queue}"))
    assert f"{page}3" in render(total)
