"""Results as people and programs read them: Markdown, JSON, one drawing. ``python -m bench.report``: drawn anew."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from attrs import asdict

from bench.doors import PAIRS
from bench.measure import Results
from bench.peers import WAS, everyone
from bench.scenarios import FULL, Scenario
from bench.targets import Verdict, verdicts
from bench.tools import Run

HERE = Path(__file__).parent
TITLES = {"direct": "no proxy", WAS.name: WAS.title, **{peer.name: peer.title for peer in everyone(0)}}


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(heads: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Markdown whose columns also stand in line on a terminal."""
    filled = [heads, *rows]
    widths = [max(len(row[i]) for row in filled) for i in range(len(heads))]
    lines = [
        "| "
        + " | ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in filled
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:], ""]


def judged(results: Results) -> list[str]:
    def mark(verdict: Verdict, wanted: float, reached: bool) -> str:
        if verdict.value is None:
            return f"{wanted:g}"
        return f"{wanted:g} {'reached' if reached else 'MISSED'}"

    rows = [
        [
            f"{v.title} ({'at least' if v.more else 'at most'})",
            f"{v.was:g}" if v.was is not None else "",
            f"{number(v.value)} {v.unit}" if v.value is not None else "not measured",
            f"{number(v.spread[0])} to {number(v.spread[1])}" if v.value is not None else "",
            mark(v, v.least, v.least_reached),
            mark(v, v.aim, v.aim_reached),
        ]
        for v in verdicts(results)
    ]
    return table(["what was promised", "it was", "measured", "rounds", "at least", "aim"], rows)


def pairs(results: Results) -> list[str]:
    """The doors and dialects: what each costs, over a relayed chat and over nginx, which relays the door's format."""
    heads = ["a client's API, from a provider's"]
    ways = [("paced", "paced chunk us"), ("fast", "fast chunk us"), ("many", "answer us, 64 at once")]
    for _, title in ways:
        heads += [title, "to chat", "to nginx"]
    rows = []
    for name, title in [("", "chat, relayed"), *((f" {pair.name}", pair.title) for pair in PAIRS)]:
        row = [title]
        for way, _ in ways:
            row += [number(results.median(way + name, "ours", "cpu"))]
            row += [
                middle(results.across(way + name, way, "ours")),
                middle(results.ratios(way + name, "ours", "nginx")),
            ]
        rows.append(row)
    return table(heads, rows) if any(any(row[1:]) for row in rows[1:]) else []


def middle(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}x" if ratios else ""


def scenario(results: Results, work: Scenario) -> list[str]:
    """One table: a row for everybody that did this work."""
    measured = results.runs.get(work.name, {})
    mine = results.median(work.name, "ours", "cpu")
    late = "age" if work.stream else ""
    heads = [work.title, f"CPU us/{work.unit}", "rounds", "to ours", f"{work.unit}s/s", "added p50 ms", "added p99 ms"]
    first_byte = work.stream and work.family not in ("held", "stop")  # those began before we counted
    if first_byte:
        heads += ["first byte p50 ms", "p99 ms"]
    if work.family == "held":
        heads += ["open", "MiB"]
    if work.family == "flight":
        heads += ["idle MiB", "most MiB"]
    if work.family == "stop":
        heads += ["longest stop ms"]
    heads += ["errors"]
    rows = []
    for name in (name for name in TITLES if name in measured):
        cpu = results.of(work.name, name, "cpu")
        middle = results.median(work.name, name, "cpu")
        limited = "*" if (results.median(work.name, name, "tools") or 0) > 0.9 and name != "direct" else ""
        prefix = f"{late}_" if late else ""
        added = [f"{prefix}p50", f"{prefix}p99", *(["first_p50", "first_p99"] if first_byte else [])]
        row = [
            TITLES[name],
            number(middle) if name != "direct" else "",
            f"{number(min(cpu))} to {number(max(cpu))}" if name != "direct" else "",
            f"{number(middle / mine)}x" if middle and mine else "",
            number(results.median(work.name, name, "per_second")) + limited,
            *(milliseconds(results, work.name, name, value) for value in added),
        ]
        if work.family == "flight":
            row += [number(results.median(work.name, name, value)) for value in ("idle_mib", "peak_mib")]
        if work.family == "stop":
            row += [milliseconds(results, work.name, name, "stop_p50")]
        if work.family == "held":
            row += [
                number(results.median("held", name, "open")),
                number(results.median("held", name, "resident_mib") or None),
            ]
        rows.append([*row, str(sum(run.errors for run in measured[name]))])
    return table(heads, rows) if rows else []


def milliseconds(results: Results, work: str, name: str, value: str) -> str:
    """What a proxy adds; for the direct way what it takes."""
    found = results.median(work, name, value) if name == "direct" else results.added(work, name, value)
    return "" if found is None else f"{'= ' if name == 'direct' else ''}{found / 1000:.3f}"


def headroom(results: Results) -> list[str]:
    """Whether the tools were fast enough: what they reach alone, beside the fastest proxy."""
    lines = []
    for work in (work for work in FULL if work.name in ("many", "body", "fast")):
        rates = {name: results.median(work.name, name, "per_second") or 0.0 for name in results.runs.get(work.name, {})}
        alone = rates.pop("direct", 0.0)
        if rates and alone:
            fastest = max(rates, key=lambda name: rates[name])
            of = f"{rates[fastest]:,.0f} ({TITLES[fastest]})"
            lines.append(f"- the tools alone, {work.title}: {alone:,.0f} {work.unit}s/s; the fastest proxy: {of}")
    return [*lines, ""]


def markdown(results: Results) -> str:
    lines = [*(f"- {key}: {value}" for key, value in results.facts.items()), ""]
    for name, version in results.versions.items():
        lines.append(f"- {TITLES[name]} {version}")
    lines += [f"- {TITLES.get(name, name)}: {reason}" for name, reason in results.missing.items()]
    lines += ["", *headroom(results), *judged(results)]
    starts = (
        [TITLES[name], number(sorted(times)[len(times) // 2]), str(len(times)), number(results.idle_mib[name])]
        for name, times in results.starts.items()
    )
    lines += table(["process", "start to first answer s (median)", "starts", "idle MiB"], starts)
    lines += pairs(results)
    for work in (work for work in FULL if work.family != "doors"):
        lines += scenario(results, work)
    lines += [
        "CPU: user and system time of all processes of a proxy, from the kernel. Medians over the rounds; added: "
        "less the direct way of the same round, as the longest stop is. A request's latency: to its "
        "last byte; a chunk's: its age on arrival. "
        "\\*: the tools' core was busy too (over 90 %), so a rate is a limit of the machine, not of this proxy alone.",
        "",
    ]
    return "\n".join(lines)


def condensed(results: Results) -> str:
    """One line of JSON: verdicts, and medians."""
    medians = {
        work: {
            name: {value: results.median(work, name, value) for value in asdict(runs[0]) if value != "why"}
            for name, runs in by.items()
        }
        for work, by in results.runs.items()
    }
    told = {key: getattr(results, key) for key in ("facts", "versions", "missing", "starts", "idle_mib")}
    return json.dumps({**told, "medians": medians, "targets": [asdict(verdict) for verdict in verdicts(results)]})


def drawing(results: Results) -> str:
    """Bars on a logarithmic scale: CPU time, from one microsecond on."""
    groups = [("many", "CPU per request, 64 at once (us)"), ("paced", "CPU per chunk, 100 streams of 50 chunks/s (us)")]
    parts, top = [], 10
    for work, title in groups:
        bars = [(n, results.median(work, n, "cpu") or 0.0) for n in results.runs.get(work, {}) if n != "direct"]
        parts.append(f'<text x="10" y="{top + 16}" font-weight="bold">{title}, logarithmic</text>')
        top += 28
        for name, value in sorted(bars, key=lambda bar: bar[1]):
            width = 120 * math.log10(max(value, 1.1))
            colour = "#c2410c" if name == "ours" else "#64748b"
            parts.append(
                f'<text x="150" y="{top + 14}" text-anchor="end">{TITLES[name]}</text>'
                f'<rect x="160" y="{top}" width="{width:.0f}" height="18" fill="{colour}"/>'
                f'<text x="{166 + width:.0f}" y="{top + 14}">{number(value)}</text>'
            )
            top += 24
        top += 14
    style = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {top}" width="760" height="{top}" {style}>'
    return "\n".join([head, f'<rect width="760" height="{top}" fill="#fff"/>', *parts, "</svg>", ""])


def keep(results: Results) -> None:
    """Into the repository: numbers, words, drawing."""
    (HERE / "results.json").write_text(json.dumps(asdict(results), indent=None) + "\n")
    write(results)


def write(results: Results) -> None:
    (HERE / "results.svg").write_text(drawing(results))
    introduction = (
        "# The last full run\n\n`make bench KEEP=1` writes this file; what people have to say of it is in `notes.md`, "
        "and stands at the end.\n\n![CPU time](results.svg)\n\n"
    )
    (HERE / "RESULTS.md").write_text(introduction + markdown(results) + "\n" + (HERE / "notes.md").read_text())


def load(path: Path) -> Results:
    told = json.loads(path.read_text())
    runs = {
        work: {name: [Run(**run) for run in runs] for name, runs in by.items()} for work, by in told.pop("runs").items()
    }
    return Results(**told, runs=runs)


if __name__ == "__main__":
    write(load(HERE / "results.json"))
