"""How long a provider asks us to wait, in whichever form."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Final

_DURATION: Final = re.compile(
    r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_TRY_AGAIN: Final = re.compile(
    r"(?:try again|retry) in (\d[\dhms.]*)(?:\s*(?:(ms\b|milli)|(min)|(hour)))?", re.IGNORECASE
)
_UNITS: Final = (0.001, 60.0, 3600.0)


def retry_after_of(headers: Mapping[str, str], text: str = "", wall: float | None = None) -> float | None:
    """Seconds to wait, in whichever dialect; None if absent or nonsensical.

    `wall`: the current time in seconds since the epoch, for HTTP dates. Not capped here: `health` does that.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    if (value := headers.get("retry-after")) is not None:
        seconds = duration(value)
        seconds = seconds if seconds is not None else _until(value, time.time() if wall is None else wall)
        if seconds is not None:
            return seconds
    resets = [duration(headers.get(f"x-ratelimit-reset-{of}", "")) for of in ("requests", "tokens")]
    left = [headers.get(f"x-ratelimit-remaining-{of}") for of in ("requests", "tokens")]
    spent = [reset for reset, remaining in zip(resets, left, strict=True) if reset is not None and remaining == "0"]
    if spent:
        return max(spent)
    match = _TRY_AGAIN.search(text)
    seconds = duration(match[1].rstrip(".")) if match else None
    if match is None or seconds is None:
        return None
    return seconds * next((unit for word, unit in zip(match.groups()[1:], _UNITS, strict=True) if word), 1.0)


def duration(value: str) -> float | None:
    """``"7"``, ``"7.66s"``, ``"1m2s"``, ``"850ms"`` -> seconds; None for anything else."""
    value = value.strip()
    number = _number(value)
    if number is not None:
        return number
    match = _DURATION.fullmatch(value) if len(value) < 40 else None
    if not match or not value:
        return None
    hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000


def _number(value: str | None) -> float | None:
    if value is None or len(value) > 20 or not re.fullmatch(r"\s*\d+(\.\d*)?\s*", value, re.ASCII):
        return None
    return float(value)


def _until(date: str, wall: float) -> float | None:
    try:
        when = email.utils.parsedate_to_datetime(date)
        if when.tzinfo is None:  # "-0000": in UTC, from an unknown zone (RFC 5322, section 3.3)
            when = when.replace(tzinfo=UTC)
        return max(0.0, when.timestamp() - wall)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
