"""Facts become log lines: one a request, one a change. Never keys, never prompts, at no level.

Lines are written directly: `logging` costs more than the rest of our own work on a request
(performance.md). It is used for third-party loggers only, whose words are not ours to trust: aiohttp
repeats the offending line of a malformed request, be it ``Authorization: Bearer ...``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO, assert_never

import attrs
import msgspec
from attrs import define, field

from manallm_proxy.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifeChanged,
    Reloaded,
    RequestEnded,
)

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
TEXT_LIMIT: Final = 128
"""Characters of a text that a client sent."""
LIBRARY_LINES_PER_SECOND: Final = 5

_COLOURS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31"}
_encode: Final = msgspec.json.encode


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text` cut and escaped, so that nothing in it can begin a line, colour a terminal or break a parser."""
    text = text if len(text) <= limit else text[:limit] + "…"
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")


@define
class Logs:
    """Writes to ``stream`` what has at least ``level``. A stream that fails costs lines, never a request."""

    level: Level
    json: bool
    colour: bool
    stream: TextIO
    dropped: int = 0
    _floor: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._floor = LEVELS.index(self.level)

    @classmethod
    def open(cls, level: Level, form: str, stream: TextIO, environ: Mapping[str, str] = os.environ) -> Logs:
        """`form`: ``json``, ``human``, or ``auto``: human on a terminal, JSON lines otherwise."""
        terminal = stream.isatty()
        as_json = form == "json" or (form == "auto" and not terminal)
        return cls(level, as_json, terminal and not environ.get("NO_COLOR"), stream)

    def __call__(self, event: Event) -> None:
        level, name, fields = line_of(event)
        if LEVELS.index(level) >= self._floor:
            self.write(level, name, fields)

    def write(self, level: Level, name: str, fields: Mapping[str, Any]) -> None:
        """One line: when, how bad, what, and its fields; None is left out."""
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {key: _shown(value) for key, value in fields.items() if value is not None}
        if self.json:
            line = _encode({"time": now, "level": level, "event": name, **said}).decode()
        else:
            line = f"{now[11:23]} {level:<7} {name} " + " ".join(f"{key}={value}" for key, value in said.items())
            if self.colour:
                line = f"\033[{_COLOURS[level]}m{line}\033[0m"
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # disk full, closed, a pipe without a reader
            self.dropped += 1


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, 2000)
    if isinstance(value, tuple):
        return [clean(str(each), 2000) for each in value]
    return value


def line_of(event: Event) -> tuple[Level, str, dict[str, Any]]:
    """Level, name and fields of one fact."""
    match event:
        case RequestEnded():
            return _request_level(event), "request", _request(event)
        case AttemptFailed():
            fields = attrs.asdict(event)
            fields["duration_ms"] = _ms(fields.pop("duration"))
            return "info", "attempt failed", fields
        case FellBack():
            return "warning" if event.widened else "debug", "fell back", attrs.asdict(event)
        case KeyWasRejected():
            todo = f"check the api_key of provider '{event.provider}' and reload"
            return "error", "provider key rejected", {**attrs.asdict(event), "todo": todo}
        case HealthChanged():
            level: Level = "warning" if event.now == "unhealthy" else "info"
            return level, "health", attrs.asdict(event)
        case Reloaded():
            if event.mistakes:
                return "error", "reload refused, the old configuration serves on", {"mistakes": event.mistakes}
            return "info", "reloaded", {}
        case DimensionsDiffer():
            return "warning", "embedding dimensions differ within one alias", attrs.asdict(event)
        case LifeChanged():
            return "info", event.what, {"detail": event.detail or None}
        case Crashed():
            frames = tuple(f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(event.error.__traceback__))
            # the exception's own words may hold what a client sent; type and frames find the bug
            kind = f"{type(event.error).__module__}.{type(event.error).__qualname__}"
            fields = {"where": event.where, "request_id": event.request_id, "exception": kind, "frames": frames}
            return "error", "internal error", fields
        case _:
            assert_never(event)


def _request_level(event: RequestEnded) -> Level:
    if event.outcome == "broken" or (event.outcome == "error" and event.status >= 500):
        return "warning"
    return "info"


def _request(event: RequestEnded) -> dict[str, Any]:
    target = f"{event.provider}/{event.model}" if event.provider is not None else None
    return {
        "request_id": clean(event.request_id),
        "endpoint": event.endpoint,
        "requested": clean(event.requested) or None,
        "target": target,
        "status": event.status,
        "outcome": event.outcome,
        "error": event.error,
        "attempts": event.attempts,
        "stream": event.streaming,
        "bytes": event.bytes_sent,
        "first_byte_ms": _ms(event.to_first_byte),
        "ms": _ms(event.duration),
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


class LibraryHandler(logging.Handler):
    """Third-party log records as lines of ours: the logger's name, the level, the exception's type, no words.

    At most LIBRARY_LINES_PER_SECOND a second, so that a flood of bad requests is no flood of lines.
    """

    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.WARNING)
        self.logs = logs
        self.suppressed = 0
        self._second = 0
        self._lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Counts what is over the rate, and tells the number with the next line."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LIBRARY_LINES_PER_SECOND:
            self.suppressed += 1
            return
        suppressed, self.suppressed = self.suppressed, 0
        kind = type(record.exc_info[1]).__qualname__ if record.exc_info and record.exc_info[1] else None
        where = f"{os.path.basename(record.pathname)}:{record.lineno}"
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        fields = {"logger": record.name, "where": where, "exception": kind, "suppressed": suppressed or None}
        with contextlib.suppress(Exception):  # a log line is never worth a request
            self.logs.write(level, "library", fields)


def quiet_libraries(logs: Logs) -> None:
    """Routes all of `logging` through `LibraryHandler`."""
    logging.basicConfig(handlers=[LibraryHandler(logs)], level=logging.WARNING, force=True)
