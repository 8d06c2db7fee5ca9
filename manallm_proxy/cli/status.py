"""``status``: the health of each provider of a running proxy, as a table, once or again and again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from manallm_proxy.cli.client import Client, Failed, clean, colours

WIDTH: Final = 80
"""Columns where neither a terminal nor ``$COLUMNS`` tells how many there are."""
PAUSE: Final = 2.0
"""Seconds between two updates."""
HOME, REST_OF_LINE, REST = "\033[H", "\033[K", "\033[J"
_COLOURS: Final = {"healthy": "32", "unconfigured": "2", "unhealthy": "31"}
"""Colour by status; yellow for all others."""


def status(url: str | None, as_json: bool, environ: Mapping[str, str], watches: bool = False) -> int:
    """Prints the table. Returns 0 if a proxy answered, whatever its health. Raises Failed.

    `watches`: repeats every `PAUSE` seconds, until Ctrl-C; waits for a proxy that is down meanwhile.
    """
    client = Client.find(url, environ)
    shown = _shown(client, as_json, environ)
    with contextlib.suppress(KeyboardInterrupt):
        print(_placed(shown) if watches and not as_json else shown, flush=True)
        while watches:
            time.sleep(PAUSE)
            try:
                shown = _shown(client, as_json, environ)
            except Failed as failed:
                print(failed if as_json else _placed(str(failed)), file=sys.stderr if as_json else None, flush=True)
            else:
                print(shown if as_json else _placed(shown), flush=True)
    return 0


def _placed(shown: str) -> str:
    """The table with the time. Overwrites the previous one on a terminal; is appended in a pipe."""
    now = time.strftime("%H:%M:%S")
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return f"{now}\n{shown}\n"
    # overwrites line by line instead of clearing the screen, which would flicker and fill the scrollback
    rows = [f"{now}  (Ctrl-C ends)", *shown.splitlines()[: shutil.get_terminal_size().lines - 2]]
    return HOME + "".join(f"{row}{REST_OF_LINE}\n" for row in rows) + REST


def _shown(client: Client, as_json: bool, environ: Mapping[str, str]) -> str:
    report = client.get("/v1/health", "show its health", (200, 503))
    with client.reading():
        rows = [("PROVIDER", "STATUS", "BUSY", "WHY"), *_rows(report["providers"])]
    if as_json:
        return json.dumps(report, indent=2)
    shown = [f"{client.place}: {clean(report.get('status'))}"]
    coloured = colours(environ)
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    for line, row in zip(table(rows, width), rows, strict=True):
        word = row[1]
        known = coloured and word.islower()
        shown.append(line.replace(word, f"\033[{_COLOURS.get(word, '33')}m{word}\033[0m", 1) if known else line)
    return "\n".join(shown)


def _rows(providers: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, row in providers.items():
        rows.append((clean(name), clean(row.get("status")), str(row.get("in_flight", 0)), _why(row)))
        for model, target in (row.get("targets") or {}).items():
            rows.append((f"  {clean(model)}", clean(target.get("status")), "", _why(target)))
    return rows


def _why(row: Mapping[str, Any]) -> str:
    """What is wrong, and until when; then what a box says of a model."""
    parts: list[str | None] = []
    if row.get("status") != "healthy":
        until = row.get("cooling_until") or row.get("unhealthy_until")
        error = ": ".join(str(part) for part in (row.get("last_error"), row.get("detail")) if part)
        parts = [row.get("reason"), error, f"until {until[11:19]} UTC" if until else None]
    if row.get("loading"):
        parts.append("loading")
    elif row.get("loaded") is not None:
        parts.append("loaded" if row["loaded"] else "not loaded")
    if row.get("queue"):
        wait = f"{row['expected_wait']} s" if row.get("expected_wait") else "unknown"
        parts.append(f"a queue of {row['queue']}, expected wait {wait}")
    return ", ".join(clean(part, None) for part in parts if part)


def table(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Lines with aligned columns, each cut at `width`."""
    sizes = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        line = "  ".join([*(cell.ljust(size) for cell, size in zip(row, sizes, strict=False)), row[-1]]).rstrip()
        lines.append(line if len(line) <= width else f"{line[: width - 3]}...")
    return lines
