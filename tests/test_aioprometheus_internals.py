"""aioprometheus' private names: what breaks when one goes, or stops doing what we need it for."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from aioprometheus.collectors import Registry
from aioprometheus.formats.text import TextFormatter
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.observe import aioprometheus_internals as internals
from manallm_proxy.observe.aioprometheus_internals import (
    CounterFamily,
    GaugeFamily,
    HistogramFamily,
    check,
    render,
)


def test_it_holds_for_the_version_that_is_installed() -> None:
    """The import has checked it already; here by name."""
    check()


def broken(*_: Any, **__: Any) -> list[str]:
    return []


@pytest.mark.parametrize("how", ["removed", "renamed by the library", "without effect"])
@pytest.mark.parametrize(
    ("library", "ours", "name"),
    [
        (TextFormatter, internals._Formatter, "_format_line"),
        (TextFormatter, internals._Formatter, "_format_histogram"),
        (None, internals._Numbers, "get_all"),
        (None, HistogramFamily, "get_all"),
    ],
)
def test_a_hook_that_is_gone_is_an_error_that_says_what_to_do(
    library: Any, ours: Any, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At import, not at the first scrape."""
    if how == "removed":
        monkeypatch.delattr(ours, name)
    elif how == "without effect":
        monkeypatch.setattr(ours, name, broken)
    else:  # what the library calls by its new name is its own
        monkeypatch.setattr(TextFormatter, "marshall_lines", broken)
    with pytest.raises(ImportError) as told:
        check()
    assert f"aioprometheus {importlib.metadata.version('aioprometheus')}" in str(told.value)
    assert "constraints.txt" in str(told.value)


def test_each_family_is_read_back() -> None:
    """By Prometheus' own parser: label values with anything in them, cumulative buckets, a family without series."""
    registry = Registry()
    CounterFamily("c_total", "C", ("x",), registry).numbers['a"\\\n,b="c"',] = 2
    GaugeFamily("g", "G", ("x",), [(("\ud800",), 1), (("\ud801",), 2)], registry)
    GaugeFamily("none", "N", ("x",), [], registry)
    histogram = HistogramFamily("h", "H", (0.5, 1.0), (), registry)
    for value in (0.1, 0.5, 0.7, 9.0):
        histogram.record((), value)
    families = list(text_string_to_metric_families(render(registry).decode()))
    samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert samples == {
        ("c_total", 'a"\\\n,b="c"'): 2,
        ("g", r"\ud800"): 1,
        ("g", r"\ud801"): 2,
        ("h_bucket", "0.5"): 2,
        ("h_bucket", "1.0"): 3,
        ("h_bucket", "+Inf"): 4,
        ("h_count",): 4,
        ("h_sum",): 10.3,
    }
    assert [family.name for family in families] == ["c", "g", "h", "none"]
