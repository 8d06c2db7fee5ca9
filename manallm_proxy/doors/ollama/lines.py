"""JSON for Ollama's clients: one object per line, whichever characters their library treats as line ends."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import encode, encode_whole

_LINE_ENDS: Final = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)
"""Characters that JSON allows unescaped, but at which ``str.splitlines`` (in httpx, so ollama-python) ends a line."""


def one_line(value: dict[str, Any], large: bool = False) -> bytes:
    """`value` as JSON, without a line end in it or after it."""
    return encode_whole(value, _part_of_line) if large else without_line_ends(encode(value))


def _part_of_line(value: Any) -> bytes:
    return without_line_ends(encode(value))


def without_line_ends(text: bytes) -> bytes:
    """The JSON `text`, or a part of it, with those of `_LINE_ENDS` escaped."""
    if not text.isascii():
        for raw, escape in _LINE_ENDS:
            text = text.replace(raw, escape)
    return text


@define
class _Second:
    """Caches the text of the current second, since formatting a date takes 2 µs."""

    number: int = -1
    text: str = ""


_second: Final = _Second()


def now() -> str:
    """The time now, for ``created_at``: RFC 3339 in UTC."""
    second, rest = divmod(time.time_ns(), 10**9)
    if second != _second.number:
        _second.number, _second.text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{_second.text}.{rest // 1000:06}Z"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch in RFC 3339; the epoch if they are no valid time, since they come from a provider."""
    try:
        time = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        time = datetime.fromtimestamp(0, UTC)
    return time.isoformat().replace("+00:00", "Z")
