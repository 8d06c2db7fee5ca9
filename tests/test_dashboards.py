"""The alerts and the dashboard: every metric and label in them is one of a running proxy."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.contract.events import WorkerEnded
from manallm_proxy.contract.provider_errors import KeyRejected
from tests.command import ROOT
from tests.figures import ENDED
from tests.needs import require
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, status, upstream

RULES = ROOT / "config/prometheus/rules.yml"
DASHBOARD = ROOT / "config/grafana/manallm.json"
METRIC = re.compile(r"\b(?:mana_llm|process)_\w+")
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


async def test_every_label_is_one_of_its_metrics(tmp_path: Path) -> None:
    """Of a proxy that has seen an answer, a fallback, a failure, and a key that is refused."""
    keys = [{"name": "a", "sha256": "4cc5c94f" + "0" * 56}]
    async with upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad, upstream(each(answers)) as good:
        config = settings({"bad": openai(bad.url), "good": openai(good.url)})
        async with proxy(config, tmp_path) as p:
            await p.chat(model="mana/test")
            await p.stream(model="mana/test")
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


def test_reasons_in_alerts_are_words_of_ours() -> None:
    """A misspelt one would never fire."""
    assert f'error_type="{KeyRejected.reason}"' in next(
        r["expr"] for r in rules() if r["alert"] == "ManallmKeyRejected"
    )


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
