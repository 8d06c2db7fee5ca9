"""``models``: what a running proxy serves, one name a line."""

from __future__ import annotations

import json
import sys
import urllib.request


def models(url: str) -> int:
    """1 where no proxy answers there."""
    if not url.startswith(("http://", "https://")):
        print(f"'{url}' is no address of a proxy (http://host:port)", file=sys.stderr)
        return 2
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=10) as answer:  # noqa: S310 # http only
            rows = json.load(answer)["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "reason", None) or type(error).__name__
        print(f"no proxy answers at {url}: {why}", file=sys.stderr)
        return 1
    for row in rows:
        print(row["id"])
    return 0
