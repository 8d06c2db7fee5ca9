"""Rewrites assertions ahead of the collection, from the other end, so that a fresh clone uses two cores for it.

pytest compiles each test module in its own way when it is first imported, which takes three seconds of CPU for all, and
keeps the result. What is missing for any reason is made by pytest itself, one module later.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

HERE = Path(__file__).parent
"""Of all test modules."""


def ahead(config: pytest.Config) -> None:
    """Starts the process that does it, which ends once all is made."""
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            _rewrite(config)
        os._exit(0)

    def end() -> None:
        os.waitpid(pid, 0)

    config.add_cleanup(end)


def _rewrite(config: pytest.Config) -> None:
    state = config.stash[rewrite.assertstate_key]
    for path in sorted(HERE.rglob("test_*.py"), reverse=True):
        made = rewrite.get_cache_dir(path) / (path.name[:-3] + rewrite.PYC_TAIL)
        if not made.exists() and rewrite.try_makedirs(made.parent):
            stat, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, stat, made)
