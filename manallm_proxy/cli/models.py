"""``models``: lists what a running proxy serves, one name per line."""

from __future__ import annotations

import json
from collections.abc import Mapping

from manallm_proxy.cli.client import Client, clean


def models(url: str | None, as_json: bool, environ: Mapping[str, str]) -> int:
    """Raises Failed."""
    client = Client.find(url, environ)
    answer = client.get("/v1/models", "list its models")
    with client.reading():
        names = [str(row["id"]) for row in answer["data"]]
    if as_json:
        print(json.dumps(answer, indent=2))
        return 0
    for name in names:
        print(clean(name))
    return 0
