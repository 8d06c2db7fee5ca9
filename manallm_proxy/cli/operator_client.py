"""A client for a running proxy's operator routes, for ``explain`` and ``requests``."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from manallm_proxy.cli.client import Client, Failed
from manallm_proxy.contract.records import frozen

SILENCE: Final = 40.0
"""Max seconds without a byte of the feed, on which the proxy sends something every 15 s."""


@frozen
class OperatorClient:
    """``client``: its key, if one is required, must have ``admin: true``."""

    client: Client

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The JSON at `path`. Raises Failed, with the proxy's own message if it refuses."""
        given = urllib.parse.urlencode(query, errors="surrogateescape") if query else ""
        response = self.client.open("GET", path + (f"?{given}" if query else ""), "say that")
        if response.status == 200:
            with self.client.reading():
                return json.load(response)
        try:
            why = str(json.load(response)["error"]["message"])
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            why = f"status {response.status}"
        raise Failed(f"the proxy at {self.client.place} refuses: {why}")

    def follow(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields type and data of each event as it arrives. Raises Failed at the end of the connection."""
        kind = ""
        try:
            for line in self.client.open("GET", "/v1/events", "show its events", timeout=SILENCE):
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)
        except (OSError, ValueError, http.client.HTTPException):  # a line that was cut is no JSON
            pass
        raise Failed(f"the proxy at {self.client.place} has ended the connection")


def seconds(ms: float | None) -> str:
    """A duration, for people."""
    return "-" if ms is None else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
