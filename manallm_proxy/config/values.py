"""Readers: what a single value of the configuration may be, and the message if it is invalid.

A *reader* takes a raw value from YAML and returns the parsed one, or raises `InvalidValue`. Nothing is coerced:
``"3"`` is not a number, 3.7 not an integer, ``"false"`` not a boolean. If a value was one ``${NAME}``, readers of
anything but text parse it as a YAML scalar.

No message contains a value, because it may be a secret.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from manallm_proxy.config.hints import WORDS, suggestion
from manallm_proxy.config.yaml_file import Filled, Unset
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.records import frozen
from manallm_proxy.contract.targets import MODEL_LIMIT, Target

Reader = Callable[[Any], Any]

FALLBACK_CLASSES: Final = ("auth", "payment", "missing_model", "capability", "context_length", "empty")
_FRAMING: Final = (
    *("connection", "content-length", "content-type", "expect"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
)
LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_HOST: Final = re.compile(
    rf"(?:(?P<name>{LABEL}(?:\.{LABEL})*\.?)|\[(?P<ip>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\])(?::[0-9]+)?"
)
"""A name or an IPv4 address, or an IPv6 address in brackets. DNS allows no underscore; names of containers have one."""
_HOST_LIMIT: Final = 253
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
"""RFC 3986, section 3.3."""
_ENDPOINTS: Final = (
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/tags"),
    *(f"/{endpoint.path}" for endpoint in Endpoint),
    "/models",
    *(":generateContent", ":streamGenerateContent", ":batchEmbedContents"),
)
"""Paths of all kinds of provider; if one ends in another, the longer one first."""
_DEEPEST: Final = 16
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
LONGEST: Final = 365 * 24 * 3600.0
"""Seconds."""
LARGEST: Final = 2**40
"""Bytes."""


class InvalidValue(ValueError):
    """A value is not what is expected. The message says what is expected, and never contains the value."""


def expected(what: str, value: object) -> InvalidValue:
    """``expected a whole number, got a string``; if the value is a variable that is not set, its name."""
    if isinstance(value, Unset):
        return InvalidValue(f"{value} and there is no default")
    return InvalidValue(f"expected {what}, got {_kind(value)}")


def shape(what: str, value: object) -> InvalidValue:
    """``expected keys and values, got a string``, where a list or a mapping is expected."""
    if isinstance(value, Unset):
        return InvalidValue(f"expected {what}, got a string")
    text = value if isinstance(value, str) else ""
    if re.match(r"[A-Za-z_]+:\S", text):
        return InvalidValue(f"expected {what}, got a string (a ':' needs a blank after it)")
    if re.match(r"-\S", text):
        return InvalidValue(f"expected {what}, got a string (a '-' needs a blank after it)")
    return expected(what, value)


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "a string" if value else "an empty string"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "a mapping"


def plain(value: object) -> object:
    """`value`; if it comes from a variable, parsed as a YAML scalar."""
    return value.scalar if isinstance(value, Filled) else value


def text(value: object) -> str:
    """A string. Numbers and booleans need quotes to be strings."""
    if not isinstance(value, str):
        quotes = " (put it in quotes)" if isinstance(value, int | float) else ""
        raise InvalidValue(f"{expected('a string', value)}{quotes}")
    return str(value)


@frozen
class Matching:
    """A reader: a string that matches ``pattern`` as a whole; ``what`` describes it for people."""

    pattern: str
    what: str

    def __call__(self, value: object) -> str:
        if re.fullmatch(self.pattern, found := text(value)) is None:
            raise InvalidValue(f"expected {self.what}")
        return found


def boolean(value: object) -> bool:
    """``true`` or ``false``, without coercion."""
    found = plain(value)
    if not isinstance(found, bool):
        raise expected("true or false", value)
    return found


@frozen
class Integer:
    """A reader: an integer from ``least`` to ``most``."""

    least: int
    most: int | None = None

    def __call__(self, value: object) -> int:
        bounds = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
        found = plain(value)
        if not isinstance(found, int) or isinstance(found, bool):
            raise expected(f"a whole number {bounds}", value)
        if found < self.least or (self.most is not None and found > self.most):
            raise InvalidValue(f"expected a whole number {bounds}")
        return found


@frozen
class Duration:
    """A reader: seconds, or text with a unit (``500ms``, ``30s``, ``5m``, ``1h``); ``zero``: whether 0 is allowed."""

    zero: bool = False

    def __call__(self, value: object) -> float:
        found = _quantity(plain(value), _UNITS, r"[0-9]+(?:\.[0-9]+)?")
        if found is None:
            raise expected("a number of seconds or '500ms', '30s', '5m'", value)
        if not math.isfinite(found) or found < 0 or (found == 0 and not self.zero) or found > LONGEST:
            least = "of at least 0" if self.zero else "longer than 0"
            raise InvalidValue(f"expected a duration {least} and at most 365 days")
        return found


def size(value: object) -> int:
    """Bytes, or text with a unit (``64KiB``, ``32MiB``)."""
    raw = plain(value)
    found = None if isinstance(raw, float) else _quantity(raw, _SIZES, "[0-9]+")
    if found is None:
        raise expected("a number of bytes or '64KiB', '32MiB'", value)
    if not 1 <= found <= LARGEST:
        raise InvalidValue("expected a size of at least 1 byte and at most 1024GiB")
    return int(found)


def _quantity(value: object, units: Mapping[str, float], number: str) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        match = re.fullmatch(rf"({number}) ?({'|'.join(units)})", value)
        if match is not None and len(match[1]) <= 18:
            return float(match[1]) * units[match[2]]
    return None


def choice(*known: str) -> Reader:
    """One of a few words."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise expected(f"one of {', '.join(known)}", value)
        if value not in known:
            raise InvalidValue(f"expected one of {', '.join(known)}{suggestion(value, known, WORDS)}")
        return str(value)

    return read


def host(value: object) -> str:
    """An IP address without brackets, or a host name."""
    found = text(value)
    if re.fullmatch(r"[A-Za-z0-9_.%-]+:[0-9]*", found):
        raise InvalidValue("expected an address without its port (that is 'port')")
    if not is_host(f"[{found}]" if ":" in found else found):
        raise InvalidValue("expected an address or a host's name, such as 127.0.0.1 or ::1")
    return found


HOST_WANTED: Final = "expected a host's name, an IPv4 address, or an IPv6 address in brackets, and perhaps a port"


def _http_url(value: object, instead: str | None) -> str:
    """An http(s) URL that both HTTP clients can connect to: with a host and a path, and nothing else.

    `instead`: where its user and its password go; None if it may hold them. ``urlsplit`` accepts hosts and paths that
    yarl, which both clients use, refuses or changes; so each part is checked here.
    """
    found = text(value)
    try:
        parts = urlsplit(found)
        port = parts.port  # raises ValueError where it is none
    except ValueError:
        if "[" in found and "]" in found:  # some versions of Python raise here already
            raise InvalidValue(HOST_WANTED) from None
        if re.search(r"://[^/:]+:[0-9]+(/|$)", found):
            raise InvalidValue("expected a port from 1 to 65535") from None
        raise InvalidValue("expected a URL such as http://127.0.0.1:11434") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[^\x21-\x7e]", found):
        raise InvalidValue("expected a URL with http:// or https:// and a host")
    if parts.username is not None and instead is not None:
        raise InvalidValue(f"holds a user or a password; {instead}")
    if "?" in found or "#" in found:
        raise InvalidValue("expected a URL without a query ('?') and without a fragment ('#')")
    if not is_host(parts.netloc.rpartition("@")[2]):
        raise InvalidValue(HOST_WANTED)
    if port == 0:
        raise InvalidValue("expected a port from 1 to 65535")
    if _PATH.fullmatch(parts.path) is None:
        raise InvalidValue("holds a character that no URL's path may have")
    return found.rstrip("/")


def is_host(text: str) -> bool:
    """Whether `text`, the part of a URL between ``//`` and its path, is a host that can be looked up, with its port."""
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    if match["name"] is not None:
        return len(match["name"]) <= _HOST_LIMIT
    try:
        ipaddress.IPv6Address(match["ip"])
    except ValueError:
        return False
    return True


def base_url(value: object) -> str:
    """A provider's address, without a slash at its end and without a key. The endpoints' paths are added to it."""
    found = _http_url(value, "give the key as api_key")
    for end in _ENDPOINTS:
        if found.endswith(end):
            raise InvalidValue(f"ends in an endpoint: leave out '{end}', which the proxy adds itself")
    return found


def proxy_url(value: object) -> str:
    """A forward proxy's address, which may hold a user and a password."""
    return _http_url(value, None)


def collector_url(value: object) -> str:
    """The address of a collector of traces, without a slash at its end and without a key."""
    return _http_url(value, "give them as $OTEL_EXPORTER_OTLP_HEADERS")


def api_key(value: object) -> str | Unset:
    """A key that is valid in a header. `Unset` passes: it leaves the provider unconfigured."""
    if isinstance(value, Unset):
        return value
    if not (found := text(value)):
        raise InvalidValue("is empty")
    if re.match(r"\s*[Bb]earer\s", found):
        raise InvalidValue("leave out 'Bearer', which the proxy adds itself")
    if re.fullmatch(r"[\x21-\x7e]+", found.strip()) is None:
        raise InvalidValue("is no key: a key is visible ASCII without blanks")
    if found != found.strip():
        raise InvalidValue("has a blank or a line end around it: leave that out")
    return found


def header_name(value: object) -> str:
    """The name of a header that may be added: a token, but not a header that frames the message."""
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", found := text(value)) is None:
        raise InvalidValue("is no name for a header")
    if found.lower() in _FRAMING:
        raise InvalidValue("is a header that the proxy sets itself")
    return found


def target(value: object) -> Target:
    """``provider/model``. Whether the provider exists is checked later."""
    found = text(value)
    try:
        target = Target.parse(found)
    except ValueError:
        raise InvalidValue("expected provider/model") from None
    if re.fullmatch(rf"[\x21-\x7e]{{1,{MODEL_LIMIT}}}", target.model) is None:
        raise InvalidValue(f"expected a model of at most {MODEL_LIMIT} visible ASCII characters, without blanks")
    return target


def fallback_class(value: object) -> str:
    """A class or a status under ``fallback_on``; statuses become strings."""
    found = plain(value)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str):
        raise expected(f"one of {', '.join(FALLBACK_CLASSES)} or a status from 400 to 499", value)
    if found not in FALLBACK_CLASSES and re.fullmatch("4[0-9][0-9]", str(value)) is None:
        hint = suggestion(found, FALLBACK_CLASSES)
        raise InvalidValue(f"expected one of {', '.join(FALLBACK_CLASSES)} or a status from 400 to 499{hint}")
    return str(found)


def options(value: object) -> dict[str, Any]:
    """Options sent to Ollama unchanged, so they must be JSON."""
    if value is not None and not isinstance(value, dict):
        raise expected("keys and values", value)
    found: dict[str, Any] = _json(value or {}, 0)
    return found


def _json(value: object, depth: int) -> Any:
    if depth > _DEEPEST:
        raise InvalidValue("is nested too deeply")
    match plain(value):
        case dict() as found:
            return {key: _json(inner, depth + 1) for key, inner in found.items()}
        case list() as found:
            return [_json(inner, depth + 1) for inner in found]
        case float() as found if not math.isfinite(found):
            raise InvalidValue("expected finite numbers")
        case Unset() as unset:
            raise expected("a value", unset)
        case found:
            return found
