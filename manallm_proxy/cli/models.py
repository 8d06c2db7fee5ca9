"""``models``: lists what a running proxy serves, one name per line."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Final

KEY: Final = "MANALLM_API_KEY"
"""The environment variable with the client key, if the proxy requires one."""


def models(url: str, environ: Mapping[str, str]) -> int:
    """Prints the models. Returns 1 if the proxy at `url` does not list them, 2 if `url` is not an HTTP URL."""
    if not url.startswith(("http://", "https://")):
        print(f"'{url}' is no address of a proxy (http://host:port)", file=sys.stderr)
        return 2
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/models")  # noqa: S310 # http only
    if key := environ.get(KEY, "").strip():
        request.add_unredirected_header("x-api-key", key)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 # http only
            rows = json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        why = f"it wants a key that it knows: set {KEY}" if error.code == 401 else f"status {error.code}"
        print(f"the proxy at {url} refuses to list its models: {why}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "reason", None) or type(error).__name__
        print(f"no proxy answers at {url}: {why}", file=sys.stderr)
        return 1
    for row in rows:
        print(row["id"])
    return 0
