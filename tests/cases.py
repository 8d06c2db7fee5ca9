"""Many cases of one pure function in one test: a test of its own costs 5 ms each, most of it pytest's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any


def every(cases: Iterable[Any]) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """Calls the test with each case, a tuple as its arguments where it has several; a failure names its case."""

    def decorate(test: Callable[..., Any]) -> Callable[[], Any]:
        many = len(inspect.signature(test).parameters) > 1
        rows = list(cases)
        assert rows, "no cases"

        def run() -> None:
            for case in rows:
                try:
                    test(*case) if many else test(case)
                except BaseException as error:
                    error.add_note(f"in the case {case!r}")
                    raise

        async def run_async() -> None:
            for case in rows:
                try:
                    await (test(*case) if many else test(case))
                except BaseException as error:
                    error.add_note(f"in the case {case!r}")
                    raise

        made: Callable[[], Any] = run_async if inspect.iscoroutinefunction(test) else run
        made.__name__, made.__doc__, made.__module__ = test.__name__, test.__doc__, test.__module__
        return made

    return decorate


def each_with_each(*values: Iterable[Any]) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """The same for the product of the values of each argument, in its order."""
    return every(itertools.product(*values))
