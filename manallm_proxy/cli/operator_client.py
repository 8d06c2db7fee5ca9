"""What a command asks of a running proxy's routes for operators, and the words when it does not answer."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import frozen

KEY: Final = "MANALLM_API_KEY"
"""The environment variable with a client key that has ``admin: true``, if the proxy asks for one."""
TIMEOUT: Final = 10.0
SILENCE: Final = 40.0
"""Seconds without a byte of the feed, on which the proxy says something every 15 s."""


class NoAnswer(Exception):
    """In words for a person."""


@frozen
class OperatorClient:
    """``url``: the proxy's address, as http://host:port."""

    url: str
    environ: Mapping[str, str]

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What `path` answers. NoAnswer where it cannot be had."""
        with self._open(path + (f"?{urllib.parse.urlencode(query)}" if query else ""), TIMEOUT) as answer:
            return json.load(answer)

    def follow(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Type and data of each event, as they come. NoAnswer at the end of the connection."""
        kind = ""
        with self._open("/v1/events", SILENCE) as answer:
            try:
                for line in answer:
                    name, _, value = line.decode().rstrip("\r\n").partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value)
            except OSError:
                pass
        raise NoAnswer(f"the proxy at {self.url} has ended the connection")

    def _open(self, path: str, timeout: float) -> Any:
        if not self.url.startswith(("http://", "https://")):
            raise NoAnswer(f"'{self.url}' is no address of a proxy (http://host:port)")
        request = urllib.request.Request(self.url.rstrip("/") + path)  # noqa: S310 # http only
        if key := self.environ.get(KEY, "").strip():
            request.add_unredirected_header("x-api-key", key)
        try:
            return urllib.request.urlopen(request, timeout=timeout)  # noqa: S310 # http only
        except urllib.error.HTTPError as error:
            raise NoAnswer(f"the proxy at {self.url} refuses: {_why(error)}") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise NoAnswer(f"no proxy answers at {self.url}: {why}") from None


def _why(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"it wants a key with 'admin: true': set {KEY}"
    try:
        return str(json.load(error)["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"status {error.code}"


def told(work: Callable[[], None]) -> int:
    """Runs a command: its exit code, with the reason on stderr where it failed."""
    try:
        work()
    except NoAnswer as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl+C, and `| head`
        sys.stderr.close()
        return 0
    return 0


def clean(text: object) -> str:
    """On one line of a terminal: a name from a client may hold escape sequences."""
    return "".join(each if each.isprintable() else "?" for each in str(text))


def seconds(ms: float | None) -> str:
    """A duration, for people."""
    return "-" if ms is None else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
