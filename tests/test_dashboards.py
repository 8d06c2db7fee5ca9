"""The alerts and the dashboard: every metric and label in them is one of a running proxy."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.contract.events import WorkerEnded
from manallm_proxy.contract.provider_errors import KeyRejected
from manallm_proxy.observe.metrics import error_words
from tests.command import ROOT
from tests.figures import ENDED
from tests.needs import require
from tests.ollama_box import box
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, status, upstream

RULES = ROOT / "config/prometheus/rules.yml"
DASHBOARD = ROOT / "config/grafana/manallm.json"
METRIC = re.compile(r"\b(?:mana_llm|process)_\w+")
PROSE = "\n".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
OF_SEVERAL = {"mana_llm_worker_up"}
"""What only a proxy of several workers has; `test_docs` plays the page that shows it."""
OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that a scrape adds, or a histogram."""


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def labels_of(expression: str) -> set[str]:
    """Those in selectors, and those by or without which is summed up."""
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = [
        name for group in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expression) for name in group.split(",")
    ]
    return {name.strip() for name in (*selected, *grouped)}


def base(metric: str, known: set[str]) -> str:
    """Its family: a histogram's buckets are series of their own."""
    return metric if metric in known else re.sub(r"_(bucket|count|sum)$", "", metric)


async def test_every_metric_is_there_from_the_start(tmp_path: Path) -> None:
    """With its HELP, before the first request, so that no alert is silent for the lack of a series' name."""
    async with proxy(settings({"loop": {"kind": "loopback"}}), tmp_path) as p:
        async with p.client.get(f"{p.url}/metrics") as response:
            told = set(re.findall(r"^# HELP (\S+)", await response.text(), re.MULTILINE))
    wanted = {base(metric, told) for expression in expressions() for metric in METRIC.findall(expression)}
    assert wanted - told == set()
    named = {base(metric, told) for metric in re.findall(r"\bmana_llm_[a-z_]+[a-z]\b(?!\W*')", PROSE)}
    assert named - told - OF_SEVERAL == set()


async def test_every_label_is_one_of_its_metrics(tmp_path: Path) -> None:
    """Of a proxy that has seen an answer, a fallback, a failure, one that is kept, and a key that is refused."""
    keys = [{"name": "a", "sha256": "4cc5c94f" + "0" * 56}]
    no = status("503 No", {"error": {"message": "no"}})
    async with upstream(each(no)) as bad, upstream(each(answers)) as good, box() as gpu:
        gpu.put("m")
        priced = {"target": "good/m", "price": {"input": 1, "output": 1}}
        providers = {"bad": openai(bad.url), "good": openai(good.url), "box": gpu.provider(parallel=1)}
        config = settings(providers, ["bad/m", priced, "box/m"])
        config["aliases"]["mana/home"] = {"chain": ["box/m", priced], "cache": {"ttl": "1h"}}
        async with proxy(config, tmp_path) as p:
            await p.chat(model="mana/test")
            await p.stream(model="mana/test")
            await p.chat(model="box/m")
            for model in ("mana/home", "mana/home"):
                await p.chat(model=model)
            p.app.observe(evolve(ENDED, cache="hit", saved_cost=1.0))
            async with p.client.get(f"{p.url}/metrics") as response:
                text = await response.text()
        async with proxy({**config, "auth": {"keys": keys}}, tmp_path) as p:
            await p.chat()
            p.app.observe(evolve(ENDED, key="a"))  # a stream that takes its time
            p.app.observe(WorkerEnded(1, 1, "SIGKILL", 1.0))
            text += p.app.metrics.render()[0].decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    for expression in expressions():
        used = METRIC.findall(expression)
        known = set().union(*(found[metric] for metric in used), OF_PROMETHEUS)
        assert labels_of(expression) <= known, expression
    shown = re.findall(r"`(?:mana_llm_)?([a-z_]+)\{([a-z_,]+)\}", PROSE)
    told = {name: set(labels.split(",")) for name, labels in shown if f"mana_llm_{name}" in found}
    assert len(told) > 5
    assert told == {name: found[f"mana_llm_{name}"] for name in told}


def test_reasons_in_alerts_are_words_of_ours() -> None:
    """A misspelt one would never fire."""
    words = [word for each in expressions() for word in re.findall(r'(?:error_type|reason)="([^"]*)"', each)]
    assert set(words) == {KeyRejected.reason, "saturated"} and set(words) <= set(error_words())


AT = 'instance="i",job="j"'
FIRES: dict[str, tuple[int, dict[str, str]]] = {
    "ManallmNoProviderUsable": (5, {'provider_healthy{provider="a"}': "0x60"}),
    "ManallmAliasDown": (5, {'alias_usable_targets{alias="mana/a"}': "0x60"}),
    "ManallmGone": (22, {f"build_info{{{AT}}}": "1x8 _x60"}),
    "ManallmRequestsFail": (15, {'requests_total{status="502"}': "0+2x60", 'requests_total{status="200"}': "0+10x60"}),
    "ManallmKeyRejected": (20, {'llm_errors_total{provider="a",error_type="provider_auth_error"}': "_x17 1x60"}),
    "ManallmProviderDown": (20, {'provider_healthy{provider="a"}': "0x60", 'provider_healthy{provider="b"}': "1x60"}),
    "ManallmSpills": (60, {'fallback_total{reason="unhealthy"}': "0+6x120", "llm_requests_total": "0+10x120"}),
    "ManallmSaturated": (90, {'fallback_total{from_model="a/m",reason="saturated"}': "0+1x120"}),
    "ManallmQueue": (15, {'expected_wait_seconds{model="m"}': "61x60"}),
    "ManallmHalfOnCpu": (15, {'model_vram_ratio{model="m"}': "0.5x60"}),
    "ManallmSlow": (
        40,
        {
            f'time_to_first_byte_seconds_bucket{{le="{le}"}}': f"0+{n}x60"
            for le, n in (("30", 8), ("60", 10), ("+Inf", 10))
        },
    ),
    "ManallmReloadRefused": (10, {'reloads_total{result="failure"}': "0x5 1x60"}),
    "ManallmRestarts": (30, {f"process_start_time_seconds{{{AT}}}": "0+60x60", f"build_info{{{AT}}}": "1x60"}),
    "ManallmWorkersEnd": (20, {"worker_restarts_total": "0+1x60"}),
    "ManallmDescriptors": (
        15,
        {
            f"process_open_fds{{{AT}}}": "81x60",
            f"process_max_fds{{{AT}}}": "100x60",
            f"build_info{{{AT}}}": "1x60",
        },
    ),
}
"""What makes each alert fire, and after how many minutes it has; in promtool's notation for series."""
WELL = {
    'provider_healthy{provider="a"}': "1x120",
    'alias_usable_targets{alias="mana/a"}': "1x120",
    f"build_info{{{AT}}}": "1x120",
    'requests_total{status="200"}': "0+10x120",
    'requests_total{status="502"}': "0+1x120",
    'llm_errors_total{provider="a",error_type="http_5xx"}': "0+1x120",
    'fallback_total{from_model="a/m",reason="saturated"}': "0x120",
    "llm_requests_total": "0+10x120",
    'expected_wait_seconds{model="m"}': "59x120",
    'model_vram_ratio{model="m"}': "1x120",
    'time_to_first_byte_seconds_bucket{le="30"}': "0+10x120",
    'time_to_first_byte_seconds_bucket{le="+Inf"}': "0+10x120",
    'reloads_total{result="failure"}': "3x120",
    f"process_start_time_seconds{{{AT}}}": "60x120",
    "worker_restarts_total": "2x120",
    f"process_open_fds{{{AT}}}": "79x120",
    f"process_max_fds{{{AT}}}": "100x120",
}
"""An hour and more in which nobody is to be woken."""


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    """By Prometheus' own tool; and none where all is well."""
    promtool = require("promtool", "Debian: apt-get install prometheus")
    assert set(FIRES) == {rule["alert"] for rule in rules()}

    def case(series: dict[str, str], minute: int, query: str, samples: list[dict[str, object]]) -> dict[str, object]:
        named = [
            {"series": name if name.startswith("process") else f"mana_llm_{name}", "values": values}
            for name, values in series.items()
        ]
        expected = [{"expr": query, "eval_time": f"{minute}m", "exp_samples": samples}]
        return {"name": query, "interval": "1m", "input_series": named, "promql_expr_test": expected}

    firing = 'count(ALERTS{{alertstate="firing",alertname="{}"}})'
    tests = [
        case(series, minute, firing.format(name), [{"labels": "{}", "value": 1}])
        for name, (minute, series) in FIRES.items()
    ]
    tests.append(case(WELL, 110, "ALERTS", []))
    file = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(file))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "alerts.yml"],
        env={**os.environ, "GOGC": "400"},  # its garbage collector takes a quarter of it
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    """By its own tool; and the dashboard's queries, which it reads as rules once their variables are filled in."""
    promtool = require("promtool", "Debian: apt-get install prometheus")
    subprocess.run([promtool, "check", "rules", RULES], check=True, capture_output=True)
    queries = []
    for number, expression in enumerate(expressions()):
        filled = re.sub(r"\[\$__\w+\]", "[5m]", expression).replace("$instance", ".*")
        queries.append({"record": f"q{number}", "expr": filled})
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": queries}]}))
    subprocess.run([promtool, "check", "rules", tmp_path / "queries.yml"], check=True, capture_output=True)


def test_panels_do_not_overlap() -> None:
    """24 columns wide; ids are unique."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        cells |= own
