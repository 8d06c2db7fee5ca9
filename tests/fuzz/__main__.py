"""``make fuzz``: coverage-guided, each target for some seconds in a process of its own, with a corpus that is kept.

``python -m tests.fuzz [SECONDS]`` runs all targets. What is new in the corpus is there to be committed, once it is
small; a crash is a file too, and `tests/test_fuzz.py` plays it for ever.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 1024
"""Bytes of an input: what is rarer than that is not found by chance."""


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["manallm_proxy"]):
        from tests.fuzz.targets import TARGETS
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={CORPUS / name}/crash-"]
    atheris.Setup([sys.argv[0], str(folder), *options, "-timeout=10", "-verbosity=0"], TARGETS[name])
    atheris.Fuzz()


def reached(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """Steps from line to line of ours that `data` leads to."""
    steps: set[tuple[str, int, int]] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if "manallm_proxy" not in frame.f_code.co_filename:
            return None
        steps.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
        last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return steps


def keep_the_smallest(name: str, found: Path) -> int:
    """Into the corpus goes each input that leads somewhere new, the shortest first; how many that were."""
    from tests.fuzz.targets import TARGETS

    kept = sorted((CORPUS / name).iterdir())
    seen = set[tuple[str, int, int]]().union(*(reached(TARGETS[name], path.read_bytes()) for path in kept))
    added = 0
    for path in sorted(found.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        steps = reached(TARGETS[name], path.read_bytes())
        if not steps <= seen:
            seen |= steps
            added += 1
            shutil.copy(path, CORPUS / name)
    return added


def main(seconds: int) -> int:
    """0 where nothing broke."""
    from tests.fuzz.targets import TARGETS

    broken = 0
    for name in TARGETS:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(CORPUS / name, folder, dirs_exist_ok=True)
            command = [sys.executable, "-m", "tests.fuzz", "one", name, folder, str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
            if done.returncode:
                broken += 1
                print(f"{name}: BROKEN\n{done.stdout}\n{done.stderr}", file=sys.stderr)
                continue
            print(f"{name}: {len(list(Path(folder).iterdir()))} inputs, {keep_the_smallest(name, Path(folder))} new")
    return 1 if broken else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", name, folder, seconds]:
            fuzz(name, Path(folder), int(seconds))
        case [seconds]:
            sys.exit(main(int(seconds)))
        case _:
            sys.exit(main(60))
