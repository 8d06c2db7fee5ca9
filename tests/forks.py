"""Runs the tests in several processes, forked from the one that has collected them: ``-p tests.forks --forks 4``.

pytest-xdist starts its workers anew, and each of them imports and collects everything: four seconds of CPU. Here that
is done once, before the fork, and what tests/conftest.py starts before it belongs to all workers. A worker gets a few
tests at a time, sends their reports, and asks for more; one that dies fails the test that it was at, and another takes
its place.

Warnings are not passed on: here each is an error. Coverage is measured with pytest-xdist (``make coverage``).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
from _pytest.config import create_terminal_writer
from attrs import define, field

LARGEST = 8
"""Tests that a worker gets at once, or a whole file of such that are marked ``together``; fewer towards the end, when
none should have much left while others have nothing."""
SHARE = 8
PATIENCE = 5
"""Seconds that a worker has to end after an interruption."""
SHORT = 0.1
"""Seconds of a preparation or an end that is not worth telling."""
FORK = multiprocessing.get_context("fork")


@define(eq=False)
class Worker:
    """Seen from the process that has collected: its tests are at these places of ``session.items``."""

    number: int
    pipe: Connection
    process: Any = None
    tests: deque[int] = field(factory=deque)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forks", type=int, default=0, help="processes that run the tests, forked after the collection")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.forks and config.pluginmanager.hasplugin("_cov") and config.option.cov_source:
        raise pytest.UsageError("coverage is not measured in forks: make coverage")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In place of pytest's own, which runs one test after the other."""
    forks = session.config.option.forks
    if not forks or session.config.option.collectonly or session.testsfailed:
        return None
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one folder for all
    todo = deque(range(len(session.items)))
    workers: list[Worker] = []
    numbers = iter(range(len(session.items)))

    def begin() -> None:
        ours, theirs = FORK.Pipe()
        inherited = [ours, *(other.pipe for other in workers)]
        worker = Worker(next(numbers), ours)
        worker.process = FORK.Process(target=_work, args=(session, worker.number, theirs, inherited))
        worker.process.start()
        theirs.close()
        workers.append(worker)
        give(worker)

    def give(worker: Worker) -> None:
        stops = session.shouldfail or session.shouldstop
        many = 0 if stops else min(LARGEST, len(todo), len(todo) // (SHARE * forks) + 1)
        tests = _taken(session.items, todo, many, from_end=worker.number % 3 == 2)
        worker.tests += tests
        worker.pipe.send(tests)

    try:
        for _ in range(min(forks, len(todo))):
            begin()
        while workers:
            for worker in _that_report(workers):
                try:
                    reports = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    workers.remove(worker)
                    worker.pipe.close()
                    worker.process.join()
                    if worker.tests and not (session.shouldfail or session.shouldstop):
                        _died(session.items[worker.tests.popleft()], worker.process.exitcode)
                        todo.extendleft(reversed(worker.tests))
                        if todo:
                            begin()
                    continue
                if reports is None:
                    give(worker)
                else:
                    _publish(session.items[worker.tests.popleft()], reports)
    finally:
        for worker in workers:
            worker.pipe.close()  # it ends with the test that it is at; a test may have an answer to SIGTERM
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


def _taken(items: Sequence[pytest.Item], todo: deque[int], many: int, from_end: bool) -> list[int]:
    """The next of `todo` in their order, with all others of a file whose tests belong together.

    A third of the workers begin at the end: the first tests are those that wait for others (conftest.py), and the
    processors are theirs meanwhile who only compute.
    """
    taken: deque[int] = deque()
    for _ in range(many):
        taken.appendleft(todo.pop()) if from_end else taken.append(todo.popleft())
    if from_end:
        while taken and todo and _share(items[todo[-1]], items[taken[0]]):
            taken.appendleft(todo.pop())
    else:
        while taken and todo and _share(items[taken[-1]], items[todo[0]]):
            taken.append(todo.popleft())
    return list(taken)


def _share(one: pytest.Item, other: pytest.Item) -> bool:
    """Whether they use what takes long to start once for each worker."""
    return one.path == other.path and one.get_closest_marker("together") is not None


def _that_report(workers: list[Worker]) -> Iterator[Worker]:
    ready = wait([worker.pipe for worker in workers])
    return iter([worker for worker in workers if worker.pipe in ready])


def _publish(item: pytest.Item, reports: list[dict[str, Any]]) -> None:
    """As if it had run here. A location takes 0.2 ms to find, and the worker has found it."""
    hook, location = item.ihook, reports[0]["location"] if reports else item.location
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=location)
    for data in reports:
        report = hook.pytest_report_from_serializable(config=item.config, data=data)
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=location)


def _died(item: pytest.Item, code: int | None) -> None:
    what = f"the process that ran this test ended with {code}"
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", what, "call")
    item.ihook.pytest_runtest_logreport(report=report)


class _Reports:
    """Keeps a worker's reports until they are sent; a third of them, where there is nothing to say of the others."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.kept: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_nothing = report.passed and report.when != "call" and report.duration < SHORT and not report.sections
        if is_nothing and not self.config.option.xmlpath:
            return
        self.kept.append(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))


class _Terminal:
    """In place of the terminal reporter: what pytest-timeout writes a stack to."""

    def __init__(self, config: pytest.Config) -> None:
        self._tw = create_terminal_writer(config, sys.stderr)


def _work(session: pytest.Session, number: int, pipe: Connection, inherited: list[Connection]) -> None:
    """All that a worker does. Ends when it gets no more tests, or nobody is there who could give some."""
    for each in inherited:
        each.close()
    atexit._clear()  # what has been registered belongs to the process that collected
    os.environ["TESTS_FORK"] = str(number)
    config = session.config
    capture, reports = config.pluginmanager.getplugin("capturemanager"), _Reports(config)
    capture.stop_global_capturing()  # its files have one position for all forks
    capture.start_global_capturing()
    capture.suspend_global_capture()
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(_Terminal(config), "terminalreporter")
    config.pluginmanager.register(reports)
    try:
        tests = deque(pipe.recv())
        while tests:
            item = session.items[tests.popleft()]
            if not tests:
                pipe.send(None)
                tests.extend(pipe.recv())
            following = session.items[tests[0]] if tests else None
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            pipe.send(reports.kept)
            reports.kept.clear()
            if session.shouldfail or session.shouldstop:
                break
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        session._setupstate.teardown_exact(None)
        atexit._run_exitfuncs()
