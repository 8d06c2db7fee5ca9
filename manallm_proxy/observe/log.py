"""Writes events as log lines: one per request, one per change. No level shows keys or prompts.

Nothing here waits or raises. With a full disk, a closed stream, a stopped terminal or an unread pipe, lines are lost;
they are counted, and the count is logged once there is room again. `output` writes without waiting; `logging` would
wait for the reader, and takes 15 µs for a line that takes 10 here. Only third-party libraries log through it, and their
messages are not trusted: aiohttp's parser errors quote the offending line of a request, for example
``Authorization: Bearer ...`` (aiohttp 3.14.5, http_exceptions.BadHttpMessage).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec
from attrs import field

from manallm_proxy.contract.errors import UNAUTHENTICATED
from manallm_proxy.contract.events import UNROUTED, Event, RequestEnded
from manallm_proxy.contract.records import define
from manallm_proxy.observe.log_fields import (
    REQUEST,
    Level,
    RequestLine,
    frames,
    line_of,
    request_level,
    request_line,
)
from manallm_proxy.observe.log_forms import PRIORITY, Form, human_line
from manallm_proxy.observe.output import Output, open_output

LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
TEXT_LIMIT: Final = 128
"""Max characters of a text that a client sent."""
FIELD_LIMIT: Final = 2000
"""Max characters of any other text."""
LIBRARY_LINES_PER_SECOND: Final = 5
REFUSALS_PER_SECOND: Final = 20
"""Max lines about requests without a key, or that reached no route (invalid HTTP). Metrics count all of them."""
RETRY: Final = 1.0
"""Seconds from a loss to the next attempt to write, if no other line is written before."""

_CLIENTS: Final = frozenset({"request_id", "requested"})
"""Fields whose text a client sent."""
_FROM_OUTSIDE: Final = ("request_id", "requested", "target", "key", "error")
"""Fields of a request's line whose text does not come from us alone."""
_COUNTED: Final = ("prompt_tokens", "completion_tokens")
"""Token counts, as a provider reported them."""
_LARGE: Final = 2**53
_BACKSLASH: Final = ord("\\")
_DELETE: Final = 0x7F
"""As numbers, which Python finds in bytes in a seventh of the time."""
_encode: Final = msgspec.json.encode


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """Truncates and escapes `text`, so that nothing in it can begin a line, colour a terminal or break a parser.

    Backslashes are doubled, so that an escape sequence in `text` cannot be mistaken for one of ours.
    """
    text = text if len(text) <= limit else text[:limit] + "…"
    if text.isprintable() and "\\" not in text:
        return text
    return text.encode("unicode_escape", "backslashreplace").decode("ascii")


def _is_from_outside(event: RequestEnded) -> bool:
    """Whether anyone who can connect can cause `event`."""
    return event.endpoint == UNROUTED or event.error in UNAUTHENTICATED


@define
class _Rate:
    """Admits at most `per_second` lines per second, and counts the others."""

    per_second: int
    _suppressed: int = 0
    _second: int = 0
    _lines: int = 0

    def admits(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        self._suppressed += self._lines > self.per_second
        return self._lines <= self.per_second

    def suppressed(self) -> int | None:
        """Lines suppressed since the last call; None if there are none."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed or None


@define
class Logs:
    """Writes to ``stream`` every event of at least ``level``. Without a stream (closed at startup) lines are lost."""

    level: Level
    form: Form
    stream: TextIO | None
    dropped: int = 0
    """Lines lost since startup."""
    _reported: int = 0
    """How many of the lost lines the log has reported."""
    _waiting: list[bytes] = field(factory=list, repr=False)
    _clock: tuple[int, str] = (0, "")
    _floor: int = field(init=False)
    _output: Output | None = field(init=False)
    """None for a stream in memory."""
    _lock: threading.RLock = field(factory=threading.RLock)
    _busy: bool = False
    _retry: asyncio.TimerHandle | None = None
    _refusals: _Rate = field(factory=lambda: _Rate(REFUSALS_PER_SECOND))

    def __attrs_post_init__(self) -> None:
        self._floor = LEVELS.index(self.level)
        self._output = None
        with contextlib.suppress(OSError, ValueError):  # io.UnsupportedOperation, of a stream in memory, is both
            if self.stream is not None:
                self._output = open_output(self.stream.fileno())

    @classmethod
    def open(cls, level: Level, form: str, stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> Logs:
        """`form`: ``json``, ``human``, or ``auto``: human on a terminal, JSON lines otherwise."""
        return cls(level, Form.of(form, stream, environ), stream)

    def adjust(self, level: Level, form: str, environ: Mapping[str, str] = os.environ) -> None:
        """Applies what a reload may change; the stream stays."""
        self.level, self._floor = level, LEVELS.index(level)
        self.form = Form.of(form, self.stream, environ)

    def __call__(self, event: Event) -> None:
        try:
            if type(event) is RequestEnded:
                self._request(event)
            else:
                self.write(*line_of(event))
        except Exception:  # a log line is never worth a request
            self.dropped += 1

    def write(self, level: Level, name: str, fields: Mapping[str, Any]) -> None:
        """Writes one line: time, level, event and those of its fields that are not None."""
        if LEVELS.index(level) >= self._floor:
            self.flush()
            self._write(self._line(level, name, fields), 1)

    def _request(self, event: RequestEnded) -> None:
        """Writes the line of a request, with those of all that are reported together."""
        try:
            data = self._request_line(event)
        except Exception:
            self.dropped += 1
            data = None
        if event.more:
            if data is not None:
                with self._lock:
                    self._waiting.append(data)
        elif self._waiting:
            self.flush(data)
        elif data is not None:
            self._write(data, 1)

    def _request_line(self, event: RequestEnded) -> bytes | None:
        level = request_level(event)
        if LEVELS.index(level) < self._floor:
            return None
        line = request_line(event)
        if event.error is not None and _is_from_outside(event):  # these come in floods
            if not self._refusals.admits():
                return None
            line.suppressed = self._refusals.suppressed()
        return self._json(level, line) if self.form.json else self._line(level, REQUEST, line.fields())

    def _json(self, level: Level, line: RequestLine) -> bytes:
        """As `_line`, in a quarter of its time."""
        line.time, line.level, line.event = self._now(), level, REQUEST
        try:
            data = _encode(line)
        except ValueError:  # a lone surrogate, or a number of thousands of digits
            data = b"\\"
        if not _is_fit(line, data):
            _make_fit(line)
            data = _encode(line)
        return PRIORITY[level] + data + b"\n" if self.form.journal else data + b"\n"

    def flush(self, last: bytes | None = None) -> None:
        """Writes the lines that wait for others of the same turn of the event loop, and `last` after them."""
        with self._lock:
            lines, self._waiting = self._waiting, []
        if last is not None:
            lines.append(last)
        if lines:
            self._write(b"".join(lines), len(lines))

    def _write(self, lines: bytes, number: int) -> None:
        # libraries log from threads of their own, and from destructors, which may run inside this very call
        with self._lock:
            if self._busy:
                self.dropped += number
                return
            self._busy = True
            try:
                if self._put(lines):
                    if self.dropped > self._reported:
                        self._report_lost()
                else:
                    self.dropped += number
                    self._retry_later()
            finally:
                self._busy = False

    def _report_lost(self) -> None:
        fields = {"lines": self.dropped - self._reported}
        if self._put(self._line("warning", "log lines were lost", fields)):
            self._reported = self.dropped

    def _retry_later(self) -> None:
        """Reports the loss even if no event follows. Only possible in a thread with a running event loop."""
        if self._retry is None and self._output is not None:
            with contextlib.suppress(RuntimeError):
                self._retry = asyncio.get_running_loop().call_later(RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._write(b"", 0)
        if self.dropped > self._reported:
            self._retry_later()

    def _put(self, line: bytes) -> bool:
        if self.stream is None or self.stream.closed:
            self._output = None  # the descriptor may belong to another file by now
            return False
        if self._output is not None:
            return self._output.write(line)
        try:
            self.stream.write(line.decode())
            self.stream.flush()
        except (OSError, ValueError):
            return False
        return True

    def _line(self, level: Level, name: str, fields: Mapping[str, Any]) -> bytes:
        now, form = self._now(), self.form
        shown: dict[str, Any] = {"time": now, "level": level, "event": name} if form.json else {}
        for key, value in fields.items():
            kind = type(value)  # the usual cases of `_shown` come first, in half the time
            if kind is str:
                is_clean = len(value) <= TEXT_LIMIT and value.isprintable() and "\\" not in value
                shown[key] = value if is_clean else _shown(key, value)
            elif kind is int and -_LARGE < value < _LARGE:
                shown[key] = value
            elif value is not None:
                shown[key] = _shown(key, value)
        line = _encode(shown) if form.json else human_line(form, now, level, name, shown).encode()
        return PRIORITY[level] + line + b"\n" if form.journal else line + b"\n"

    def _now(self) -> str:
        """The time in RFC 3339, UTC, with milliseconds. All but these are formatted once per second."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if self._clock[0] != seconds:
            self._clock = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
        return f"{self._clock[1]}.{nanoseconds // 1_000_000:03d}Z"


def _is_fit(line: RequestLine, data: bytes) -> bool:
    """Whether no field of a line needs `_shown`: any special character would show as a backslash in its JSON."""
    prompt, completion = line.prompt_tokens, line.completion_tokens
    return (
        len(data) <= FIELD_LIMIT
        and _BACKSLASH not in data
        and data.isascii()
        and _DELETE not in data
        and len(line.request_id) <= TEXT_LIMIT
        and (line.requested is None or len(line.requested) <= TEXT_LIMIT)
        and (prompt is None or -_LARGE < prompt < _LARGE)
        and (completion is None or -_LARGE < completion < _LARGE)
    )


def _make_fit(line: RequestLine) -> None:
    """Applies `_shown` to each field whose text does not come from us alone."""
    for name in _FROM_OUTSIDE:
        setattr(line, name, _shown(name, getattr(line, name)))
    for name in _COUNTED:
        setattr(line, name, _shown(name, getattr(line, name)))
    if line.notes is not None:
        line.notes = _shown("notes", tuple(line.notes))
    if line.passed is not None:
        line.passed = _shown("passed", tuple(line.passed))


def _shown(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, TEXT_LIMIT if key in _CLIENTS else FIELD_LIMIT)
    if isinstance(value, tuple):
        return [clean(str(each), FIELD_LIMIT) for each in value]
    if isinstance(value, int) and abs(value) >= _LARGE:
        return str(_LARGE)  # a provider's token count; JSON readers lose precision above it
    return value


class LibraryHandler(logging.Handler):
    """Writes third-party log records as lines of ours: logger, level and exception type, never the message.

    At most LIBRARY_LINES_PER_SECOND, so that a flood of bad requests does not become a flood of lines.
    """

    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.WARNING)
        self.logs = logs
        self._rate = _Rate(LIBRARY_LINES_PER_SECOND)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes `record`; above the rate limit, only counts it for the next line."""
        if not self._rate.admits():
            return
        error = record.exc_info[1] if record.exc_info else None
        kind = type(error).__qualname__ if error is not None else None
        # a client's malformed request needs no traceback; anything else does
        bug = error is not None and not type(error).__module__.startswith("aiohttp.http")
        stack = frames(error) if error is not None and bug else ()
        where = f"{os.path.basename(record.pathname)}:{record.lineno}"
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        fields: dict[str, Any] = {"logger": record.name, "where": where, "exception": kind}
        fields |= {"frames": stack or None, "suppressed": self._rate.suppressed()}
        with contextlib.suppress(Exception):  # a log line is never worth a request
            self.logs.write(level, "library", fields)


def quiet_libraries(logs: Logs) -> None:
    """Routes all of `logging` through `LibraryHandler`."""
    logging.basicConfig(handlers=[LibraryHandler(logs)], level=logging.WARNING, force=True)
