"""Facts in, lines out; nothing that a client sends can forge one."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_exceptions import BadHttpMessage
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.attempts import AttemptRecord
from manallm_proxy.contract.errors import (
    HostNotAllowed,
    InvalidKey,
    InvalidRequest,
    MethodNotAllowed,
    OriginNotAllowed,
    ProxyError,
    UnknownRoute,
)
from manallm_proxy.contract.events import (
    AttemptFailed,
    Crashed,
    DimensionsDiffer,
    Event,
    FellBack,
    HealthChanged,
    KeyWasRejected,
    LifecycleChanged,
    ListUnreadable,
    Reloaded,
    RequestEnded,
    UsageRefused,
    WorkerEnded,
)
from manallm_proxy.observe.log import LIBRARY_LINES_PER_SECOND, REFUSALS_PER_SECOND, LibraryHandler, Logs
from manallm_proxy.observe.log_fields import line_of
from tests.cases import every
from tests.figures import ENDED


def told(event: Event, level: str = "debug") -> list[dict[str, Any]]:
    stream = io.StringIO()
    Logs.open(level, "json", stream)(event)  # type: ignore[arg-type]  # parametrized by name
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_line_a_request() -> None:
    """With every field that a request has."""
    [line] = told(ENDED)
    assert line["level"] == "info"
    assert line["request_id"] == "1"
    assert (line["endpoint"], line["requested"], line["target"]) == ("chat/completions", "mana/test", "gpu/m")
    assert (line["status"], line["outcome"], line["attempts"], line["bytes"]) == (200, "ok", 1, 10)
    assert (line["first_byte_ms"], line["ms"]) == (500.0, 2000.0)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 30)
    assert line["time"].endswith("Z")


@every(
    [
        (evolve(ENDED, outcome="error", status=503), "warning", "error"),
        (evolve(ENDED, outcome="error", status=400), "info", "error"),
        (evolve(ENDED, outcome="broken"), "warning", "broken"),
        (evolve(ENDED, outcome="client_gone", status=499), "info", "client_gone"),
        (evolve(ENDED, key="alice"), "info", "alice"),
        (AttemptFailed("1", "gpu", "m", "connect_error", "refused", 0.01), "info", "refused"),
        (FellBack("1", "gpu/m", "cloud/m", "auth", widened=True), "warning", "cloud/m"),
        (FellBack("1", "gpu/m", "cloud/m", "http_5xx"), "debug", "http_5xx"),
        (KeyWasRejected("groq", 401), "error", "api_key"),
        (HealthChanged("gpu", None, "healthy", "unhealthy", "connect_error"), "warning", "unhealthy"),
        (HealthChanged("gpu", None, "unhealthy", "healthy", None), "info", "healthy"),
        (Reloaded(), "info", "reloaded"),
        (Reloaded(("a.b: wrong", "c.d: wrong")), "error", "c.d: wrong"),
        (ListUnreadable("gpu", "it is empty"), "warning", "it is empty"),
        (UsageRefused("cloud", "org/m"), "warning", "stream_usage"),
        (DimensionsDiffer("mana/embed", "a/m", 3, "b/m", 4), "warning", "dimensions"),
        (LifecycleChanged("started", "listening on x"), "info", "listening"),
        (LifecycleChanged("draining", worker=3), "info", '"worker": 3'),
        (WorkerEnded(2, 77, "SIGKILL", 0.1), "error", "SIGKILL"),
    ]
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
    assert "mana/test -> gpu/m" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) is coloured


REQUESTS = [
    (ENDED, "32"),
    (evolve(ENDED, outcome="error", status=404, provider=None, error="model_not_found", attempts=0), "33"),
    (evolve(ENDED, outcome="error", status=503, duration=0.0004, to_first_byte=None, attempts=2), "31"),
    (evolve(ENDED, outcome="client_gone", status=499, prompt_tokens=None, completion_tokens=None), "36"),
    (evolve(ENDED, outcome="broken", prompt_tokens=123456, completion_tokens=1234), "31"),
]


def test_requests_stand_below_each_other() -> None:
    """On a terminal the columns are aligned, the outcome has its colour, and what is as usual is left out."""
    stream = Terminal()
    logs = Logs.open("debug", "human", stream, {})
    for event, colour in REQUESTS:
        stream.truncate(stream.seek(0))
        logs(event)
        assert f"\x1b[{colour}m{event.outcome:<11} {event.status}\x1b[0m" in stream.getvalue()
    stream.truncate(stream.seek(0))
    logs = Logs.open("debug", "human", stream, {"NO_COLOR": "1"})
    for event, _ in REQUESTS:
        logs(event)
    logs(HealthChanged("gpu", None, "healthy", "unhealthy", "connect_error"))
    *lines, health = [re.sub(r"^[0-9:.]{12} ", "", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "ok          200    2.0 s   500 ms        7>30  mana/test -> gpu/m chat/completions request_id=1",
        "error       404    2.0 s   500 ms        7>30  mana/test -> nobody chat/completions"
        " error=model_not_found attempts=0 request_id=1",
        "error       503     0 ms        -        7>30  mana/test -> gpu/m chat/completions attempts=2 request_id=1",
        "client_gone 499    2.0 s   500 ms           -  mana/test -> gpu/m chat/completions request_id=1",
        "broken      200    2.0 s   500 ms 123456>1234  mana/test -> gpu/m chat/completions request_id=1",
    ]
    assert health == "warning     health provider=gpu was=healthy now=unhealthy reason=connect_error"


def test_in_a_file_people_get_the_day_too() -> None:
    """A terminal shows now; a file is read later."""
    stream = io.StringIO()
    Logs.open("debug", "human", stream)(ENDED)
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ok ", stream.getvalue())


def test_for_people_the_default_was_asked_for_only_where_a_request_names_no_model() -> None:
    """Of one that was refused unread, as without its key, nobody knows the model."""
    stream = io.StringIO()
    logs = Logs.open("debug", "human", stream)
    skipped = evolve(ENDED, requested="", provider=None, attempts=0)
    logs(evolve(ENDED, requested=""))
    logs(evolve(skipped, status=503, outcome="error", log=(AttemptRecord("gpu/m", "unhealthy"),)))
    logs(evolve(skipped, status=401, outcome="error", error="invalid_api_key"))
    asked = [line.split("  ")[-1].split(" chat/")[0] for line in stream.getvalue().splitlines()]
    assert asked == ["(default) -> gpu/m", "(default) -> nobody", "- -> nobody"]


@pytest.mark.parametrize("form", ["auto", "human", "json"])
def test_the_journal_gets_priorities(form: str, tmp_path: Path) -> None:
    """sd-daemon's prefix, where journald reads the stream itself, and not where the variable was only inherited."""
    events: list[tuple[Event, str]] = [(ENDED, "<6>"), (evolve(ENDED, outcome="broken"), "<4>")]
    events += [(KeyWasRejected("groq", 401), "<3>"), (FellBack("1", "a/m", "b/m", "http_5xx"), "<7>")]
    with (tmp_path / "journal").open("w+") as stream:
        here = os.fstat(stream.fileno())
        for named, is_journal in ((f"{here.st_dev}:{here.st_ino}", True), (f"{here.st_dev}:1", False), ("", False)):
            stream.truncate(0)
            logs = Logs.open("debug", form, stream, {"JOURNAL_STREAM": named})
            for event, _ in events:
                logs(event)
            lines = (tmp_path / "journal").read_text("utf-8").lstrip("\0").splitlines()
            assert [line[:3] == prefix for line, (_, prefix) in zip(lines, events, strict=True)] == [is_journal] * 4
            if form != "human":
                assert all(json.loads(line[3:] if is_journal else line)["event"] for line in lines)


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


@given(text=st.text(st.characters(), max_size=200))
def test_no_text_forges_a_field_for_people(text: str) -> None:
    """A name like ``x status=200`` stays one value in quotes: what stands beside it is as for an innocent request."""

    def fields(requested: str) -> list[str]:
        stream = io.StringIO()
        Logs.open("debug", "human", stream)(evolve(ENDED, requested=requested))
        [line] = stream.getvalue().splitlines()
        before, after = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line).split(" -> ")
        return [*before.split()[1:-1], *after.split()]

    assert fields("x" + text) == fields("x")


@pytest.mark.parametrize("form", ["json", "human"])
@given(
    status=st.integers(),
    tokens=st.none() | st.integers(),
    duration=st.floats(),
    error=st.none() | st.text(st.characters()),
    model=st.none() | st.text(st.characters()),
)
def test_any_end_of_a_request_is_one_line(
    form: str, status: int, tokens: int | None, duration: float, error: str | None, model: str | None
) -> None:
    """Whatever the numbers and texts are; also a provider's count that no JSON reader takes."""
    stream = io.StringIO()
    ended = evolve(ENDED, status=status, completion_tokens=tokens, duration=duration, error=error, model=model)
    logs = Logs.open("debug", form, stream)
    logs(ended)
    logs(evolve(ended, completion_tokens=10**5000))
    assert len(stream.getvalue().splitlines()) == 2
    assert logs.dropped == 0
    if form == "json":
        [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_reader_that_sleeps_costs_lines_and_no_time() -> None:
    """A full pipe is not waited for; once it is read again, no line is torn, and the loss is told."""
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as stream:
        logs = Logs.open("debug", "json", stream)
        long = Reloaded(tuple(f"{number}: wrong" for number in range(1000)))
        for _ in range(500):
            logs(long)
        assert logs.dropped > 0
        lost = logs.dropped
        got = reader.read(1 << 20)
        logs(ENDED)
        got += reader.read(1 << 20)
    lines = [json.loads(line) for line in got.splitlines()]
    assert len(lines) == 500 - lost + 2
    assert [line["event"] for line in lines[-2:]] == ["request", "log lines were lost"]
    assert lines[-1]["lines"] == lost


def test_a_line_that_waits_leaves_with_one_that_is_not_written() -> None:
    """Of two requests reported together, only the first is grave enough for the log."""
    stream = io.StringIO()
    logs = Logs.open("warning", "json", stream)
    logs(evolve(ENDED, outcome="error", status=500, error="internal_error", more=True))
    waits = stream.getvalue()
    logs(ENDED)
    assert not waits
    assert json.loads(stream.getvalue())["status"] == 500


def test_lines_leave_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers write to one pipe: what leaves in one call ends with a line, unless that is too long itself."""
    pieces: list[bytes] = []
    write = os.write

    def watched(fd: int, data: bytes) -> int:
        pieces.append(bytes(data))
        return write(fd, data)

    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0), open(writing, "w") as stream:
        logs = Logs.open("debug", "json", stream)
        for _ in range(49):
            logs(evolve(ENDED, more=True))
        monkeypatch.setattr(os, "write", watched)
        logs(ENDED)
    assert len(pieces) > 1
    assert all(batch.endswith(b"\n") and len(batch) <= 4096 for batch in pieces)


def test_a_reader_that_left_costs_lines_only() -> None:
    """A broken pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        logs = Logs.open("debug", "json", stream)
        logs(ENDED)
        assert logs.dropped == 1
    logs(ENDED)
    assert logs.dropped == 2, "a closed descriptor's number may be somebody else's by now"


def test_without_a_stream_nothing_is_written() -> None:
    """Python has no ``sys.stderr`` where descriptor 2 was closed at the start."""
    logs = Logs.open("debug", "auto", None)
    logs(ENDED)
    assert logs.dropped == 1


def test_a_line_within_a_line_is_dropped() -> None:
    """A destructor may log while a line is being written: it must neither wait for itself nor tear the line."""

    class Meddling(io.StringIO):
        def write(self, text: str) -> int:
            logs(ENDED)
            return super().write(text)

    stream = Meddling()
    logs = Logs.open("debug", "json", stream)
    logs(KeyWasRejected("groq", 401))
    assert json.loads(stream.getvalue().splitlines()[0])["event"] == "provider key rejected"
    assert logs.dropped >= 1


def test_a_crash_shows_its_causes() -> None:
    """Causes and members of a group, with their places and without their words."""

    def fail() -> None:
        raise OSError("CANARY")

    try:
        try:
            fail()
        except OSError as cause:
            raise ExceptionGroup("CANARY", [KeyError("CANARY")]) from cause
    except ExceptionGroup as error:
        [line] = told(Crashed("background", error))
    assert [each.split(" at ")[0] for each in line["causes"]] == ["builtins.OSError", "builtins.KeyError"]
    assert line["causes"][0].endswith(" fail")
    assert "CANARY" not in json.dumps(line)


def test_a_deep_crash_is_cut_in_the_middle() -> None:
    """A recursion's thousand frames are one readable line."""

    def deeper(depth: int) -> None:
        if depth == 0:
            raise ValueError
        deeper(depth - 1)

    try:
        deeper(200)
    except ValueError as error:
        [line] = told(Crashed("background", error))
    assert len(line["frames"]) == 41
    assert line["frames"][20] == "162 more"


def test_a_librarys_bug_has_frames_and_a_clients_mistake_has_none() -> None:
    """Levels hold for libraries too."""
    stream = io.StringIO()
    logger = logging.Logger("aiohttp.server")  # noqa: LOG001  # one that nobody else listens to
    logger.addHandler(LibraryHandler(Logs.open("error", "json", stream)))
    logger.warning("below the level")
    for error in (BadHttpMessage("Authorization: Bearer sk-CANARY"), ValueError("CANARY")):
        try:
            raise error
        except (BadHttpMessage, ValueError):
            logger.exception("Error handling request: %s", error)
    mistake, bug = map(json.loads, stream.getvalue().splitlines())
    assert (mistake["exception"], bug["exception"]) == ("BadHttpMessage", "ValueError")
    assert "frames" not in mistake
    assert "test_logs.py" in bug["frames"][0]
    assert "CANARY" not in stream.getvalue()


def test_a_flood_is_reported_in_the_next_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of suppressed lines comes with the next one."""
    now = 100.0
    monkeypatch.setattr("manallm_proxy.observe.log.time.monotonic", lambda: now)
    stream = io.StringIO()
    handler = LibraryHandler(Logs.open("debug", "json", stream))
    record = logging.LogRecord("asyncio", logging.ERROR, "x.py", 1, "words", (), None)
    for _ in range(LIBRARY_LINES_PER_SECOND + 7):
        handler.emit(record)
    now = 101.0
    handler.emit(record)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == LIBRARY_LINES_PER_SECOND + 1
    assert lines[-1]["suppressed"] == 7


@pytest.mark.parametrize(
    "error",
    [InvalidKey("no"), OriginNotAllowed("no"), HostNotAllowed("no"), MethodNotAllowed("no"), UnknownRoute("no")],
)
def test_strangers_make_no_flood_of_lines(monkeypatch: pytest.MonkeyPatch, error: ProxyError) -> None:
    """However often a client without a key calls, on served routes too: so many lines a second."""
    monkeypatch.setattr("manallm_proxy.observe.log.time.monotonic", lambda: 100.0)
    stream = io.StringIO()
    logs = Logs.open("info", "json", stream)
    for _ in range(REFUSALS_PER_SECOND + 7):
        logs(RequestEnded.refused(error, "1", "chat/completions"))
        logs(evolve(ENDED, outcome="error", error="rate_limit_exceeded"))
    lines = [json.loads(line)["error"] for line in stream.getvalue().splitlines()]
    assert lines.count(error.code) == REFUSALS_PER_SECOND
    assert lines.count("rate_limit_exceeded") == REFUSALS_PER_SECOND + 7


def test_a_flood_of_rubbish_is_no_flood_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reached no route is told so many times a second; a known route is always told."""
    now = 100.0
    monkeypatch.setattr("manallm_proxy.observe.log.time.monotonic", lambda: now)
    stream = io.StringIO()
    logs = Logs.open("info", "json", stream)
    rubbish = RequestEnded.refused(InvalidRequest("no HTTP"), "1")
    for _ in range(REFUSALS_PER_SECOND + 7):
        logs(rubbish)
        logs(ENDED)
    now = 101.0
    logs(rubbish)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    refused = [line for line in lines if line["endpoint"] == "other"]
    assert len(lines) - len(refused) == REFUSALS_PER_SECOND + 7
    assert [line.get("suppressed") for line in refused] == [None] * REFUSALS_PER_SECOND + [7]


_TEXTS = st.none() | st.text(max_size=12) | st.sampled_from(["x" * 200, "a\\b", "é", "\x1b[31m"])
_COUNTS = st.none() | st.sampled_from([0, 7, 2**53, 2**70])


@given(_TEXTS, _TEXTS, _TEXTS, _TEXTS, _COUNTS, st.lists(st.text(max_size=9), max_size=2))
def test_a_request_is_written_as_everything_else_is(
    id_: str | None, requested: str | None, model: str | None, error: str | None, tokens: int | None, notes: list[str]
) -> None:
    """Its line takes a shorter way, to the same bytes but for the time."""
    event = RequestEnded.refused(InvalidRequest("no"), id_ or "i", "chat/completions", None)
    event = evolve(event, requested=requested or "", provider="p" if model else None, model=model, error=error)
    event = evolve(event, prompt_tokens=tokens, completion_tokens=tokens, notes=tuple(notes))
    stream = io.StringIO()
    logs = Logs.open("debug", "json", stream)
    logs(event)
    logs.write(*line_of(event))
    short, long = ({**json.loads(line), "time": ""} for line in stream.getvalue().splitlines())
    assert list(short.items()) == list(long.items())
