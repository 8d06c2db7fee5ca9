"""Log line formats: JSON, aligned columns for people, and the priority prefix for journald.

A request's line for people; a terminal shows the time of day only, a file the full timestamp::

    12:53:10.104 ok          200    1.2 s   400 ms        7>30  mana/fast-text -> gpu/qwen2.5:7b chat/completions ...

The columns are outcome, status, duration, time to first byte, prompt and completion tokens, requested model and target.
All other fields follow as ``name=value``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, TextIO

from manallm_proxy.contract.records import frozen
from manallm_proxy.observe.log_fields import REQUEST, Level

PRIORITY: Final[Mapping[Level, bytes]] = {"debug": b"<7>", "info": b"<6>", "warning": b"<4>", "error": b"<3>"}
"""sd-daemon(3): journald strips the prefix and stores it as the entry's PRIORITY."""
_COLOURS: Final = {"debug": "2", "info": "0", "warning": "33", "error": "31"}
_OF_OUTCOMES: Final = {"ok": "32", "client_gone": "36", "error": "33", "broken": "31"}
_WIDTH: Final = 11
"""Of the second column: the longest outcome."""
_IN_COLUMNS: Final = frozenset(
    ("outcome", "status", "ms", "first_byte_ms", "prompt_tokens", "completion_tokens", "requested", "target")
)
_LEFT_OUT: Final = frozenset(("endpoint", "stream", "bytes", "request_id"))
"""Fields of a request that have a place of their own, or are in JSON only."""
_SEPARATORS: Final = frozenset(" ='\"\\")


@frozen
class Form:
    """``short``: time of day only, for terminals; ``journal``: journald reads the stream."""

    json: bool
    colour: bool = False
    short: bool = False
    journal: bool = False

    @classmethod
    def of(cls, form: str, stream: TextIO | None, environ: Mapping[str, str]) -> Form:
        """`form`: ``json``, ``human``, or ``auto``: human on a terminal, JSON lines otherwise."""
        terminal = stream is not None and stream.isatty()
        as_json = form == "json" or (form == "auto" and not terminal)
        return cls(as_json, terminal and not environ.get("NO_COLOR"), terminal, _is_journal(stream, environ))


def _is_journal(stream: TextIO | None, environ: Mapping[str, str]) -> bool:
    """Whether systemd connected `stream` to the journal (systemd.exec(5), $JOURNAL_STREAM).

    The variable alone is not enough: child processes inherit it, and their output may go elsewhere.
    """
    named = environ.get("JOURNAL_STREAM")
    if not named or stream is None:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


def human_line(form: Form, now: str, level: Level, name: str, fields: Mapping[str, Any]) -> str:
    """The line for people. `fields` must be clean: no line ends, no control characters."""
    time = now[11:23] if form.short else now
    if name == REQUEST and "outcome" in fields:
        return _request(form, time, fields)
    line = f"{time} {level:<{_WIDTH}} {name} {_named(fields, frozenset())}"
    return _coloured(line, _COLOURS[level]) if form.colour else line


def _request(form: Form, time: str, fields: Mapping[str, Any]) -> str:
    outcome, status = str(fields["outcome"]), str(fields["status"])
    mark = f"{outcome:<{_WIDTH}} {status:>3}"
    if form.colour:
        is_ours = outcome == "error" and status >= "500"
        mark = _coloured(mark, "31" if is_ours else _OF_OUTCOMES.get(outcome, "0"))
    read, written = fields.get("prompt_tokens", "-"), fields.get("completion_tokens", "-")
    tokens = f"{read}>{written}" if read != "-" or written != "-" else "-"
    left_out = _IN_COLUMNS | _LEFT_OUT if fields.get("attempts") != 1 else _IN_COLUMNS | _LEFT_OUT | {"attempts"}
    rest = _named(fields, left_out)
    # no model is the default one, unless the request was refused before its body was read
    unnamed = "(default)" if "target" in fields or "passed" in fields else "-"
    return (
        f"{time} {mark} {_duration(fields.get('ms')):>8} {_duration(fields.get('first_byte_ms')):>8} {tokens:>11}"
        f"  {_quoted(fields.get('requested', unnamed))} -> {_quoted(fields.get('target', 'nobody'))}"
        f" {_quoted(fields.get('endpoint', ''))} {rest}{' ' if rest else ''}request_id={_quoted(fields['request_id'])}"
    )


def _duration(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _named(fields: Mapping[str, Any], left_out: frozenset[str]) -> str:
    return " ".join([f"{key}={_quoted(value)}" for key, value in fields.items() if key not in left_out])


def _quoted(value: Any) -> str:
    """A field's value, quoted if it contains a separator."""
    text = "; ".join(value) if isinstance(value, list) else str(value)
    if text and _SEPARATORS.isdisjoint(text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _coloured(text: str, colour: str) -> str:
    return f"\033[{colour}m{text}\033[0m"
