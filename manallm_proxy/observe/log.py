"""Facts become log lines: one a request, one a change. Never keys, never prompts, at no level.

Nothing here waits or raises: a full disk, a closed stream, a pipe whose reader sleeps cost lines, which
are counted, and told once there is room again. So lines are written directly; `logging` would wait for
the reader, and takes 15 µs for the line that takes 10 here. It is used for third-party loggers only, whose
words are not ours to trust: aiohttp repeats the offending line of a malformed request, be it
``Authorization: Bearer ...``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec
from attrs import define, field

from manallm_proxy.contract.events import UNROUTED, Event, RequestEnded
from manallm_proxy.observe.log_fields import REQUEST, Level, frames, line_of

LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
TEXT_LIMIT: Final = 128
"""Characters of a text that a client sent."""
FIELD_LIMIT: Final = 2000
"""Characters of any other text."""
LIBRARY_LINES_PER_SECOND: Final = 5
REFUSALS_PER_SECOND: Final = 20
"""Lines on what reached no route: no HTTP, no such address. Metrics count all of it."""
ATOMIC: Final = 4096
"""Bytes that a pipe takes whole or not at all (PIPE_BUF), and has room for where `poll` says that it is writable."""

_CLIENTS: Final = frozenset({"request_id", "requested"})
"""Fields whose text a client sent."""
_SEPARATORS: Final = frozenset(" ='\"\\")
_LARGE: Final = 2**53
_COLOURS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31"}
_encode: Final = msgspec.json.encode


def clean(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text` cut and escaped, so that nothing in it can begin a line, colour a terminal or break a parser.

    A backslash is doubled: a text that shows an escape cannot pass for one that was escaped.
    """
    text = text if len(text) <= limit else text[:limit] + "…"
    if text.isprintable() and "\\" not in text:
        return text
    return text.encode("unicode_escape", "backslashreplace").decode("ascii")


def _quoted(value: Any) -> str:
    """A field's value for people. Quoted where it could pass for the next field."""
    text = "; ".join(value) if isinstance(value, list) else str(value)
    if text and _SEPARATORS.isdisjoint(text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


@define
class _Descriptor:
    """Writes whole lines to a file, pipe, socket or terminal, and never waits for whoever reads it.

    Past Python's buffers: what they hold after a failure, they write twice or in the middle of a line.
    """

    fd: int
    _poll: select.poll | None = None
    """None for a file, which always has room."""
    _rest: bytes = b""
    """What there was no room for, of a line that has begun: it goes first, so that no line is torn."""

    def __attrs_post_init__(self) -> None:
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            self._poll = select.poll()
            self._poll.register(self.fd, select.POLLOUT)

    def write(self, lines: bytes) -> bool:
        """False where they are lost."""
        self._rest = self._push(self._rest)
        if self._rest:
            return False
        rest = self._push(lines)
        if len(rest) == len(lines):
            return False
        self._rest = rest
        return True

    def _push(self, data: bytes) -> bytes:
        with contextlib.suppress(OSError):  # disk full, a pipe without a reader
            while data and (self._poll is None or self._poll.poll(0)):
                end = data.rfind(b"\n", 0, ATOMIC) + 1 or ATOMIC  # whole lines: other workers write between two calls
                data = data[os.write(self.fd, data[:end]) :]
        return data


@define
class _Rate:
    """So many lines a second; the others are counted, and told with the next one."""

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
        """Since the last time."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed or None


@define
class Logs:
    """Writes to ``stream`` what has at least ``level``; without a stream (closed at the start) nothing."""

    level: Level
    json: bool
    colour: bool
    stream: TextIO | None
    dropped: int = 0
    """Lines lost since the start."""
    soon: Callable[[Callable[[], None]], object] | None = None
    """The event loop's ``call_soon``: the lines of requests that end in one turn of it leave in one write."""
    _told: int = 0
    _waiting: list[bytes] = field(factory=list, repr=False)
    _clock: tuple[int, str] = (0, "")
    _floor: int = field(init=False)
    _descriptor: _Descriptor | None = field(init=False)
    _lock: threading.RLock = field(factory=threading.RLock)
    _busy: bool = False
    _rubbish: _Rate = field(factory=lambda: _Rate(REFUSALS_PER_SECOND))

    def __attrs_post_init__(self) -> None:
        self._floor = LEVELS.index(self.level)
        self._descriptor = None
        with contextlib.suppress(OSError, ValueError):  # io.UnsupportedOperation is both: a stream in memory
            if self.stream is not None:
                self._descriptor = _Descriptor(self.stream.fileno())

    @classmethod
    def open(cls, level: Level, form: str, stream: TextIO | None, environ: Mapping[str, str] = os.environ) -> Logs:
        """`form`: ``json``, ``human``, or ``auto``: human on a terminal, JSON lines otherwise."""
        terminal = stream is not None and stream.isatty()
        as_json = form == "json" or (form == "auto" and not terminal)
        return cls(level, as_json, terminal and not environ.get("NO_COLOR"), stream)

    def adjust(self, level: Level, form: str, environ: Mapping[str, str] = os.environ) -> None:
        """What a reload may change; the stream stays."""
        new = Logs.open(level, form, self.stream, environ)
        self.level, self.json, self.colour, self._floor = new.level, new.json, new.colour, new._floor

    def __call__(self, event: Event) -> None:
        try:
            level, name, fields = line_of(event)
            if isinstance(event, RequestEnded) and event.endpoint == UNROUTED:  # rubbish comes in floods
                if not self._rubbish.admits():
                    return
                fields["suppressed"] = self._rubbish.suppressed()
            self.write(level, name, fields)
        except Exception:  # a log line is never worth a request
            self.dropped += 1

    def write(self, level: Level, name: str, fields: Mapping[str, Any]) -> None:
        """One line: when, how bad, what, and its fields; None is left out."""
        if LEVELS.index(level) < self._floor:
            return
        line = self._line(level, name, fields)
        if self.soon is not None and name == REQUEST:
            with self._lock:
                self._waiting.append(line)
            if len(self._waiting) == 1:
                self.soon(self.flush)
            return
        self.flush()
        self._write(line, 1)

    def flush(self) -> None:
        """Writes what waits."""
        with self._lock:
            lines, self._waiting = self._waiting, []
        if lines:
            self._write(b"".join(lines), len(lines))

    def _write(self, lines: bytes, number: int) -> None:
        # Libraries log from threads of their own, and from destructors, which may run inside of this very call.
        with self._lock:
            if self._busy:
                self.dropped += number
                return
            self._busy = True
            try:
                self._emit(lines, number)
            finally:
                self._busy = False

    def _emit(self, lines: bytes, number: int) -> None:
        if not self._put(lines):
            self.dropped += number
        elif self.dropped > self._told:
            fields = {"lines": self.dropped - self._told}
            if self._put(self._line("warning", "log lines were lost", fields)):
                self._told = self.dropped

    def _put(self, line: bytes) -> bool:
        if self.stream is None or self.stream.closed:
            return False
        if self._descriptor is not None:
            return self._descriptor.write(line)
        try:
            self.stream.write(line.decode())
            self.stream.flush()
        except (OSError, ValueError):
            return False
        return True

    def _line(self, level: Level, name: str, fields: Mapping[str, Any]) -> bytes:
        now = self._now()
        said = {key: _shown(key, value) for key, value in fields.items() if value is not None}
        if self.json:
            return _encode({"time": now, "level": level, "event": name, **said}) + b"\n"
        line = f"{now} {level:<7} {name} " + " ".join([f"{key}={_quoted(value)}" for key, value in said.items()])
        if self.colour:
            line = f"\033[{_COLOURS[level]}m{line}\033[0m"
        return line.encode() + b"\n"

    def _now(self) -> str:
        """RFC 3339 in UTC, to the millisecond; the second's part is made once a second."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if self._clock[0] != seconds:
            self._clock = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
        return f"{self._clock[1]}.{nanoseconds // 1_000_000:03d}Z"


def _shown(key: str, value: Any) -> Any:
    kind = type(value)
    if kind is float or kind is bool:
        return value
    if isinstance(value, str):
        return clean(value, TEXT_LIMIT if key in _CLIENTS else FIELD_LIMIT)
    if isinstance(value, tuple):
        return [clean(str(each), FIELD_LIMIT) for each in value]
    if isinstance(value, int) and abs(value) >= _LARGE:
        return str(_LARGE)  # a provider's number of tokens; no JSON reader takes it
    return value


class LibraryHandler(logging.Handler):
    """Third-party log records as lines of ours: the logger's name, the level, the exception's type, no words.

    At most LIBRARY_LINES_PER_SECOND a second, so that a flood of bad requests is no flood of lines.
    """

    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.WARNING)
        self.logs = logs
        self._rate = _Rate(LIBRARY_LINES_PER_SECOND)

    def emit(self, record: logging.LogRecord) -> None:
        """Counts what is over the rate, and tells the number with the next line."""
        if not self._rate.admits():
            return
        error = record.exc_info[1] if record.exc_info else None
        kind = type(error).__qualname__ if error is not None else None
        # a client's malformed request needs no traceback; anything else does
        bug = error is not None and not type(error).__module__.startswith("aiohttp.http")
        where_to = frames(error) if error is not None and bug else ()
        where = f"{os.path.basename(record.pathname)}:{record.lineno}"
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        fields: dict[str, Any] = {"logger": record.name, "where": where, "exception": kind}
        fields |= {"frames": where_to or None, "suppressed": self._rate.suppressed()}
        with contextlib.suppress(Exception):  # a log line is never worth a request
            self.logs.write(level, "library", fields)


def quiet_libraries(logs: Logs) -> None:
    """Routes all of `logging` through `LibraryHandler`."""
    logging.basicConfig(handlers=[LibraryHandler(logs)], level=logging.WARNING, force=True)
