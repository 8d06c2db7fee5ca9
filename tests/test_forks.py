"""What runs all tests in forks: no outcome is lost, not that of a test whose process dies either."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.command import ROOT

TESTS = """
import os
import pytest

@pytest.fixture(scope="session", autouse=True)
def ends():
    yield
    open(f"ended-{os.getpid()}", "x").close()

@pytest.mark.parametrize("number", range(40))
def test_passes(number):
    pass

def test_fails():
    print("said before")
    assert 1 == 2

def test_dies():
    os._exit(7)

def test_skips():
    pytest.skip("not here")

@pytest.fixture
def broken():
    yield
    raise ValueError("at its end")

def test_ends_badly(broken):
    pass
"""


def test_every_outcome_is_told(tmp_path: Path) -> None:
    """Each test runs once; a worker that died is replaced; fixtures end in the others; the exit code is pytest's."""
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.forks", "--forks", "3", "-p", "no:cacheprovider", "-rA"]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environ = {"PATH": "", "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=150, check=False)
    told = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (?:\[1\] )?(\S+)", done.stdout, re.MULTILINE)
    passed = {f"test_it.py::test_passes[{number}]" for number in range(40)}
    assert sorted(told) == sorted(
        [
            *(("PASSED", name) for name in passed),
            ("FAILED", "test_it.py::test_fails"),
            ("FAILED", "test_it.py::test_dies"),
            ("SKIPPED", "test_it.py:22:"),
            ("PASSED", "test_it.py::test_ends_badly"),
            ("ERROR", "test_it.py::test_ends_badly"),
        ]
    ), done.stdout + done.stderr
    assert "said before" in done.stdout
    assert "the process that ran this test ended with 7" in done.stdout
    assert "ValueError: at its end" in done.stdout
    assert done.returncode == 1
    assert len(list(tmp_path.glob("ended-*"))) >= 2
