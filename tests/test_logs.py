"""Facts in, lines out; nothing that a client sends can forge one."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

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
)
from manallm_proxy.logs import LIBRARY_LINES_PER_SECOND, LibraryHandler, Logs
from tests.test_metrics import ENDED


def told(event: Event, level: str = "debug") -> list[dict[str, Any]]:
    stream = io.StringIO()
    Logs.open(level, "json", stream)(event)  # type: ignore[arg-type]  # parametrized by name
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_line_a_request() -> None:
    """All that the contract names."""
    [line] = told(ENDED)
    assert line["level"] == "info"
    assert line["request_id"] == "1"
    assert (line["endpoint"], line["requested"], line["target"]) == ("chat/completions", "mana/test", "gpu/m")
    assert (line["status"], line["outcome"], line["attempts"], line["bytes"]) == (200, "ok", 1, 10)
    assert (line["first_byte_ms"], line["ms"]) == (500.0, 2000.0)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 30)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(
    ("event", "level", "word"),
    [
        (evolve(ENDED, outcome="error", status=503), "warning", "error"),
        (evolve(ENDED, outcome="error", status=400), "info", "error"),
        (evolve(ENDED, outcome="broken"), "warning", "broken"),
        (evolve(ENDED, outcome="client_gone", status=499), "info", "client_gone"),
        (AttemptFailed("1", "gpu", "m", "connect_error", "refused", 0.01), "info", "refused"),
        (FellBack("1", "gpu/m", "cloud/m", "auth", widened=True), "warning", "cloud/m"),
        (FellBack("1", "gpu/m", "cloud/m", "http_5xx"), "debug", "http_5xx"),
        (KeyWasRejected("groq", 401), "error", "api_key"),
        (HealthChanged("gpu", None, "healthy", "unhealthy", "connect_error"), "warning", "unhealthy"),
        (HealthChanged("gpu", None, "unhealthy", "healthy", None), "info", "healthy"),
        (Reloaded(), "info", "reloaded"),
        (Reloaded(("a.b: wrong", "c.d: wrong")), "error", "c.d: wrong"),
        (DimensionsDiffer("mana/embed", "a/m", 3, "b/m", 4), "warning", "dimensions"),
        (LifeChanged("started", "listening on x"), "info", "listening"),
    ],
)
def test_every_fact_has_its_level(event: Event, level: str, word: str) -> None:
    """One line each, at a level that an operator can filter by."""
    [line] = told(event)
    assert line["level"] == level
    assert word in json.dumps(line)


def test_below_the_level_nothing_is_written() -> None:
    """A quiet log is quiet."""
    assert told(ENDED, "warning") == []
    assert len(told(KeyWasRejected("groq", 401), "error")) == 1


def test_a_crash_shows_frames_and_no_words() -> None:
    """The exception's message may hold a prompt."""
    try:
        raise ValueError("the prompt was CANARY")
    except ValueError as error:
        [line] = told(Crashed("chat request", error, "1"))
    assert line["exception"] == "builtins.ValueError"
    assert "test_a_crash_shows_frames" in line["frames"][-1]
    assert "CANARY" not in json.dumps(line)


@pytest.mark.parametrize("form", ["json", "human"])
@given(text=st.text(st.characters(), max_size=300))
def test_no_text_forges_a_line(form: str, text: str) -> None:
    """Line breaks, terminal codes, lone surrogates, quotes: one line, and valid JSON."""
    stream = io.StringIO()
    Logs.open("debug", form, stream)(evolve(ENDED, requested=text, request_id=text))
    line = stream.getvalue()
    assert line.count("\n") == 1 and line.endswith("\n")
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    if form == "json":
        json.loads(line)


class Full(io.StringIO):
    """A disk without room."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """Dropped and counted."""
    logs = Logs.open("debug", "json", Full())
    logs(ENDED)
    assert logs.dropped == 1
    closed = io.StringIO()
    logs = Logs.open("debug", "json", closed)
    closed.close()
    logs(ENDED)
    assert logs.dropped == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_people_at_a_terminal_get_words(environ: dict[str, str], coloured: bool) -> None:
    """`auto` is human there; NO_COLOR is honoured."""
    stream = Terminal()
    Logs.open("debug", "auto", stream, environ)(ENDED)
    assert "target=gpu/m" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) is coloured


def test_libraries_words_are_not_repeated() -> None:
    """aiohttp's parser errors hold the offending line; a flood of them is no flood of lines."""
    stream = io.StringIO()
    handler = LibraryHandler(Logs.open("debug", "json", stream))
    for _ in range(1000):
        record = logging.LogRecord("aiohttp.server", logging.ERROR, "x.py", 1, "Bearer sk-CANARY", (), None)
        record.exc_info = (ValueError, ValueError("Bearer sk-CANARY"), None)
        handler.emit(record)
    lines = stream.getvalue().splitlines()
    assert "CANARY" not in stream.getvalue()
    assert json.loads(lines[0])["exception"] == "ValueError"
    assert len(lines) <= 3 * LIBRARY_LINES_PER_SECOND
