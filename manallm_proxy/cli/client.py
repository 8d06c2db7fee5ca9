"""A client for the commands that talk to a running proxy: its address, requests, and messages for failures.

Synchronous, with the standard library: these commands send one request and exit.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import field

from manallm_proxy.config.load import find_any, load
from manallm_proxy.config.loopback import ALL_HERE
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.records import frozen

KEY: Final = "MANALLM_API_KEY"
"""The environment variable with the client key, if the proxy asks for one."""
DEFAULT_URL: Final = "http://127.0.0.1:3025"
TIMEOUT: Final = 10.0
"""Max seconds without a byte, for requests that never wait for a provider."""
ANSWER_TIMEOUT: Final = 600.0
"""Max seconds without a byte, for a model's answer."""


class Failed(Exception):
    """The command ends with exit code ``code``; the message says why, on one line."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@frozen
class Client:
    """A proxy at ``url`` (``http://host:port``, ``https://...`` or ``unix:/path``), and the key for it."""

    url: str
    key: str = field(default="", repr=False)

    @classmethod
    def find(cls, url: str | None, environ: Mapping[str, str]) -> Client:
        """The proxy at `url`, else the one that the configuration of this machine describes.

        Raises Failed, with code 2 if `url` is no address.
        """
        key = environ.get(KEY, "").strip()
        if re.fullmatch(r"[\x21-\x7e]*", key) is None:
            raise Failed(f"what {KEY} holds is no key: a key is visible ASCII without blanks")
        if url is None:
            return cls(_configured(environ), key)
        if "@" in url and not url.startswith("unix:/"):
            raise Failed(f"the proxy's address holds a user or a password; the proxy's key goes into {KEY}", 2)
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid and not url.startswith("unix:/"):
            raise Failed(f"'{url}' is no address of a proxy (http://host:port, or unix:/path)", 2)
        return cls(url.rstrip("/").removesuffix("/v1"), key)

    @property
    def place(self) -> str:
        """``host:port``, or the socket."""
        return self.url.partition("://")[2] or self.url

    def get(self, path: str, doing: str, statuses: tuple[int, ...] = (200,)) -> Any:
        """The JSON answer to a GET with one of `statuses`. `doing`: "list its models", for the message."""
        response = self.open("GET", path, doing)
        if response.status not in statuses:
            raise self._other()
        with self.reading():
            return json.load(response)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """For the use of an answer: raises Failed where it has another shape than a proxy's, or breaks off."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, http.client.HTTPException):
            raise self._other() from None

    def open(
        self, method: str, path: str, doing: str, body: Any = None, *, timeout: float | None = None
    ) -> http.client.HTTPResponse:
        """The response, once its head has arrived. Raises Failed if nothing answers, or the key is refused."""
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        seconds = timeout or (ANSWER_TIMEOUT if method == "POST" else TIMEOUT)
        connection = self._connection(seconds)
        try:
            connection.connect()
            connection.request(method, self._prefix + path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
        except TimeoutError as error:
            if connection.sock is None:
                raise self._absent(error) from None
            connection.close()
            raise Failed(
                f"what listens at {self.place} has said nothing for {seconds:g} s: "
                "it hangs (its log says more), or is no proxy"
            ) from None
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise self._absent(error) from None
        if response.status in (401, 403) and (code := _code(response)) != "model_not_allowed":
            raise Failed(f"the proxy at {self.place} refuses to {doing}: {self._key_advice(code)}")
        return response

    @property
    def _prefix(self) -> str:
        return "" if self.url.startswith("unix:") else urlsplit(self.url).path

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.url.startswith("unix:"):
            return _UnixConnection(self.url.removeprefix("unix:"), timeout)
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)

    def _key_advice(self, code: str) -> str:
        if code == "admin_only":
            return f"the key in {KEY} is not an operator's: its entry needs admin: true"
        return f"it does not know the key in {KEY}" if self.key else f"it wants a key: set {KEY}"

    def _absent(self, error: Exception) -> Failed:
        match error:
            case ssl.SSLCertVerificationError():
                mend = "renew it, or have this machine trust its authority (SSL_CERT_FILE)"
                return Failed(f"the TLS certificate of {self.place} is not trusted ({error.verify_message}): {mend}")
            case ssl.SSLError():
                return Failed(f"what answers at {self.place} speaks no TLS: its address may have to begin with http://")
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Failed(
            f"no proxy answers at {self.place}: {why.lower()}; start one with 'manallm-proxy serve', or name it (--url)"
        )

    def _other(self) -> Failed:
        return Failed(f"no proxy answers at {self.place}: what answers there is something else; name it (--url)")


def _code(response: http.client.HTTPResponse) -> str:
    """The code of an error response; empty if it is not one of ours."""
    try:
        return str(json.load(response)["error"]["code"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return ""


def _configured(environ: Mapping[str, str]) -> str:
    """The address that `serve` would listen on; the default if there is no configuration, or an invalid one."""
    try:
        path = find_any(environ)
        listen = load(path, environ).listen if path is not None else None
    except ConfigError:
        listen = None
    if listen is None:
        return DEFAULT_URL
    if listen.unix is not None:
        return f"unix:{os.path.abspath(listen.unix)}"
    host = ALL_HERE.get(listen.host, listen.host)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listen.port}" if listen.port else DEFAULT_URL


def colours(environ: Mapping[str, str]) -> bool:
    """Whether to use colours: standard output is a terminal, and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


NAME_LIMIT: Final = 321
"""Max characters of a name that is shown: of a provider, and of its model."""


def clean(text: object, limit: int | None = NAME_LIMIT) -> str:
    """A name from a provider or client, on one line of a terminal: it may hold escape sequences, or never end."""
    shown = "".join(each if each.isprintable() else "?" for each in str(text)[: None if limit is None else limit + 1])
    return shown if limit is None or len(shown) <= limit else shown[:limit] + "…"


def printable(text: str) -> str:
    """A text of several lines, without control sequences for terminals."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
