"""Listeners get every event, and none of them can hurt the code that reports it, or another listener."""

from __future__ import annotations

import ast
import asyncio
import gc
import json
from pathlib import Path

import aiohttp
import pytest

from manallm_proxy.contract.events import Crashed, Event, LifecycleChanged, LoopReported, Reloaded
from manallm_proxy.observe.fan_out import DEEPEST, FanOut
from manallm_proxy.observe.loop_reports import MESSAGES, loop_report
from manallm_proxy.observe.metrics import Metrics
from tests.proxy import proxy, settings

LOOPBACK = {"loop": {"kind": "loopback"}}


class Listener:
    """Notes events; raises where `fails` says so."""

    def __init__(self, *fails: type[Exception]) -> None:
        self.events: list[Event] = []
        self.fails = list(fails)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.fails:
            raise (self.fails.pop(0) if len(self.fails) > 1 else self.fails[0])


def test_each_listener_gets_each_event_in_order() -> None:
    """In the order of the list."""
    order: list[str] = []
    one, log = Listener(), Listener()
    fan_out = FanOut([lambda _: order.append("first"), one, lambda _: order.append("last"), log], log)
    fan_out(Reloaded())
    assert one.events == log.events == [Reloaded()]
    assert order == ["first", "last"]
    assert fan_out.failures == 0


def test_a_listener_that_raises_hurts_nobody() -> None:
    """The others get the event; every failure is counted, and the log has one line about it, not one per event."""
    broken, other, log = Listener(ValueError), Listener(), Listener()
    fan_out = FanOut([broken, other, log], log)
    for _ in range(3):
        fan_out(Reloaded())
    assert other.events == [Reloaded()] * 3
    assert fan_out.failures == 3
    crashes = [event for event in log.events if isinstance(event, Crashed)]
    assert [type(crash.error) for crash in crashes] == [ValueError]
    assert "Listener" in crashes[0].where


def test_another_kind_of_failure_is_another_line() -> None:
    """Per listener and exception type."""
    log = Listener()
    fan_out = FanOut([Listener(ValueError, KeyError), Listener(ValueError), log], log)
    for _ in range(5):
        fan_out(Reloaded())
    assert fan_out.failures == 10
    crashes = [event for event in log.events if isinstance(event, Crashed)]
    assert [type(crash.error) for crash in crashes] == [ValueError, ValueError, KeyError]


def test_a_log_that_raises_is_counted_and_not_asked_again() -> None:
    """Its own failure, and that of reporting another's, must not call it in a circle."""
    log = Listener(OSError)
    fan_out = FanOut([log], log)
    fan_out(Reloaded())
    assert (fan_out.failures, len(log.events)) == (1, 1)
    log, broken = Listener(OSError), Listener(ValueError)
    fan_out = FanOut([broken, log], log)
    fan_out(Reloaded())
    assert fan_out.failures == 3, "the listener's, the log's for its report, the log's for the event"
    assert len(log.events) == 2


def test_a_listener_that_reports_to_its_own_fan_out_ends() -> None:
    """A mistake, but not an endless one."""
    log = Listener()

    def echo(event: Event) -> None:
        fan_out(event)

    fan_out = FanOut([echo, log], log)
    fan_out(Reloaded())
    assert (len(log.events), fan_out.failures) == (DEEPEST, 1)


def test_what_must_end_the_process_passes() -> None:
    """KeyboardInterrupt and SystemExit are no failures of a listener."""

    def leave(_: Event) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        FanOut([leave], leave)(Reloaded())


async def test_a_broken_metric_costs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is wired so: it starts, answers, and logs the failure once."""

    def broken(_: Metrics, event: Event) -> None:
        raise ValueError("CANARY")

    monkeypatch.setattr(Metrics, "_request", broken)
    async with proxy(settings(LOOPBACK), tmp_path) as p:
        for _ in range(3):
            assert (await p.chat())[0] == 200
        await asyncio.sleep(0)
    rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
    crashes = [row for row in rows if row["event"] == "internal error"]
    assert [row["exception"] for row in crashes] == ["builtins.ValueError"]
    assert "Metrics" in crashes[0]["where"]
    assert sum(row["event"] == "request" for row in rows) == 3
    assert "CANARY" not in p.log.getvalue()


async def never(_: str) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_task_that_nobody_holds_is_reported(tmp_path: Path) -> None:
    """asyncio reports it without an exception: the line has its text, the kind of source and no values."""
    async with proxy(settings(LOOPBACK), tmp_path) as p:
        asyncio.get_running_loop().create_task(never("CANARY"), name="CANARY")
        await asyncio.sleep(0)
        gc.collect()
    [row] = [row for row in map(json.loads, p.log.getvalue().splitlines()) if row["event"] == "event loop report"]
    assert row["level"] == "error"
    assert row["message"] == "Task was destroyed but it is pending!"
    assert row["sources"] == ["task: _asyncio.Task of never"]
    assert "CANARY" not in p.log.getvalue()


def test_the_text_of_a_report_is_shown_only_if_it_is_a_librarys_constant() -> None:
    """Any other may hold values: asyncio itself formats callbacks and their arguments into some."""
    assert loop_report({"message": "Exception in callback f('CANARY')"}) == LoopReported(None)
    assert loop_report({}) == LoopReported(None)
    assert loop_report({"message": "Unclosed connector", "connector": LifecycleChanged("started")}) == LoopReported(
        "Unclosed connector", ("connector: manallm_proxy.contract.events.LifecycleChanged",)
    )


def test_a_report_with_an_exception_is_a_crash() -> None:
    """As before."""
    error = ValueError("CANARY")
    assert loop_report({"message": "CANARY", "exception": error, "task": object()}) == Crashed("background", error)


def test_the_constants_are_those_of_the_libraries() -> None:
    """A text that no library has any more is out of date, and its successor would not be shown."""
    folders = [Path(library.__file__ or "").parent for library in (asyncio, aiohttp)]
    sources = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    begun = tuple(message[:8] for message in MESSAGES)
    trees = [ast.parse(source) for source in sources if any(start in source for start in begun)]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert texts >= MESSAGES
