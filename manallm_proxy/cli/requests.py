"""``requests``: a running proxy's recent requests, one line each; one request with its attempts; or new ones, live."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

from manallm_proxy.cli.client import Client, clean
from manallm_proxy.cli.operator_client import OperatorClient, seconds


def requests(
    url: str | None,
    id_: str | None,
    filters: Mapping[str, str],
    follows: bool,
    as_json: bool,
    environ: Mapping[str, str],
) -> int:
    """Prints the requests. Raises Failed."""
    client = OperatorClient(Client.find(url, environ))
    if id_ is not None:
        found = client.get(f"/v1/requests/{urllib.parse.quote(id_, safe='', errors='surrogateescape')}")
        with client.client.reading():
            shown = [line(found), *attempts(found)]
        print(json.dumps(found) if as_json else "\n".join(shown))
    elif follows:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(client, filters, as_json)
    else:
        found = client.get("/v1/requests", filters)
        with client.client.reading():
            shown = [line(row) for row in reversed(found["requests"])]
        print(json.dumps(found) if as_json else "\n".join(shown))
    return 0


def _follow(client: OperatorClient, filters: Mapping[str, str], as_json: bool) -> None:
    """Prints a line for each request that ends, in JSON for programs. Filters here, since the feed is unfiltered."""
    client.get("/v1/requests", filters)  # it reports invalid filters
    wanted = {name: value for name, value in filters.items() if name != "limit"}
    for kind, data in client.follow():
        if kind == "skipped":
            print(json.dumps(data) if as_json else f"... {data['requests']} more within a second", flush=True)
        elif kind == "request" and data["phase"] == "ended" and all(data[name] == wanted[name] for name in wanted):
            print(json.dumps(data) if as_json else line(data), flush=True)


def line(row: Mapping[str, Any]) -> str:
    """One request, for people."""
    asked = clean(row["model"] or ("(default)" if row["alias"] else "-"))  # "-": refused before its body was read
    outcome = "ok" if row["outcome"] == "ok" else f"{row['outcome']} {row['status']} {row['error'] or ''}".rstrip()
    passed = f", {row['passed']} passed" if row["passed"] else ""
    target = clean(row["target"] or "nobody")
    return f"{row['time'][:19]}  {asked} -> {target}  {outcome}  {seconds(row['ms'])}{passed}  {clean(row['id'])}"


def attempts(row: Mapping[str, Any]) -> list[str]:
    """The attempts of one request: when each began, how long it took, and how it ended."""
    rows = []
    for each in row["attempts"]:
        fate = "served" if each["reason"] is None else clean(each["reason"])
        took = "skipped" if each["ms"] is None else seconds(each["ms"])
        detail = f"  {clean(each['detail'])}" if each["detail"] else ""
        rows.append(f"  at {seconds(each['at_ms']):>8}  {took:>8}  {clean(each['model'])}  {fate}{detail}")
    return rows
