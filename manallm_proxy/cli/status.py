"""``status``: the health of each provider of a running proxy, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from manallm_proxy.cli.client import Client, Failed, clean, colours

WIDTH: Final = 80
_COLOURS: Final = {"healthy": "32", "unconfigured": "2", "unhealthy": "31"}
"""Of a status; yellow for any other."""


def status(url: str | None, as_json: bool, environ: Mapping[str, str]) -> int:
    """Returns 0 where a proxy answered, whatever its health. Raises Failed."""
    client = Client.find(url, environ)
    report = client.get("/v1/health", "show its health", (200, 503))
    if not isinstance(report, dict) or not isinstance(report.get("providers"), dict):
        raise Failed(f"no proxy answers at {client.place}: what answers there is something else")
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{client.place}: {clean(report.get('status'))}")
    rows = [("PROVIDER", "STATUS", "BUSY", "WHY"), *_rows(report["providers"])]
    coloured = colours(environ)
    for line, row in zip(table(rows), rows, strict=True):
        word = row[1]
        known = coloured and word.islower()
        print(line.replace(word, f"\033[{_COLOURS.get(word, '33')}m{word}\033[0m", 1) if known else line)
    return 0


def _rows(providers: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, row in providers.items():
        rows.append((clean(name), clean(row.get("status")), str(row.get("in_flight", 0)), _why(row)))
        for model, target in (row.get("targets") or {}).items():
            rows.append((f"  {clean(model)}", clean(target.get("status")), "", _why(target)))
    return rows


def _why(row: Mapping[str, Any]) -> str:
    if row.get("status") == "healthy":
        return ""
    until = row.get("cooling_until") or row.get("unhealthy_until")
    parts = [row.get("reason"), row.get("last_error"), f"until {until[11:19]} UTC" if until else None]
    return ", ".join(clean(part, None) for part in parts if part)


def table(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Lines with aligned columns, each cut at `width`."""
    sizes = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        line = "  ".join([*(cell.ljust(size) for cell, size in zip(row, sizes, strict=False)), row[-1]]).rstrip()
        lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
    return lines
