"""``make pieces``: time and instructions of each pure piece, beside the last kept ones. A difference fails nothing.

Time is pyperf's median, of processes of its own. Instructions are counted by ``valgrind --tool=callgrind``, which
hardly knows noise; where there is none, it says so. KEEP=1 keeps the result in ``bench/pieces.json``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.pieces import every

KEPT = Path(__file__).parent / "pieces.json"
LOUD = {"ns": 0.25, "instructions": 0.03}
"""Differences that are worth a word, as shares."""
LOOPS = 20
LIMIT = 600
"""Seconds for all of one kind."""

Numbers = dict[str, dict[str, float]]


def time() -> None:
    """In pyperf's hands, which starts this again and again."""
    pyperf: Any = importlib.import_module("pyperf")
    runner = pyperf.Runner(processes=2, values=3, warmups=1, min_time=0.02, program_args=("-m", "bench.compare"))
    for name, batch in every().items():
        runner.bench_func(name, batch)


def count() -> None:
    """In callgrind's hands: each ``getpgid`` ends one account and begins the next."""
    pieces = every()
    gc.collect()
    gc.disable()
    for batch in pieces.values():
        for _ in range(3):
            batch()
        os.getpgid(0)
        for _ in range(LOOPS):
            batch()
        os.getpgid(0)


def timed(folder: Path) -> Numbers:
    """Nanoseconds."""
    out = folder / "times.json"
    started(["-m", "bench.compare", "--quiet", "--output", str(out)])
    pyperf: Any = importlib.import_module("pyperf")
    suite = pyperf.BenchmarkSuite.load(str(out))
    return {b.get_name(): {"ns": round(b.median() * 1e9, 1)} for b in suite.get_benchmarks()}


def counted(folder: Path) -> Numbers:
    """Instructions, less those of calling nothing."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("no valgrind here (Debian: apt-get install valgrind): instructions are not counted")
        return {}
    out = folder / "account"
    options = ["--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=getpgid", "-q"]
    started(["-m", "bench.compare", "count"], [valgrind, *options])
    accounts = sorted(folder.glob("account.*"), key=lambda path: int(path.suffix[1:]))
    sums = [int(re.findall(r"(?m)^(?:totals|summary): (\d+)", path.read_text())[-1]) for path in accounts]
    each = [total / LOOPS for total in sums[1::2]]
    return {name: {"instructions": round(n - each[0])} for name, n in zip(every(), each, strict=True)}


def started(words: list[str], before: list[str] | None = None) -> None:
    """This program again, with the same hashes each time."""
    environ = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc"}
    done = subprocess.run(
        [*(before or []), sys.executable, *words],
        env=environ,
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")


def shown(value: float | None, kept: float | None, loud: float) -> str:
    if value is None:
        return ""
    if not kept:
        return f"{value:14,.0f}        "
    change = value / kept - 1
    return f"{value:14,.0f} {change:+7.1%}{' !' if abs(change) > loud else '  '}"


def main() -> None:
    here = f"Python {platform.python_version()}, {platform.machine()}"
    with tempfile.TemporaryDirectory(prefix="manallm-pieces-") as name:
        numbers = timed(Path(name))
        for batch, found in counted(Path(name)).items():
            numbers[batch].update(found)
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {"where": "nowhere", "pieces": {}}
    print(f"{here}; kept: {kept['where']}{'' if kept['where'] == here else ' (hardly comparable)'}")
    print(f"{'':34}{'nanoseconds':>14}{'':10}{'instructions':>14}")
    for batch, now in numbers.items():
        was = kept["pieces"].get(batch, {})
        print(f"{batch:34}" + "".join(shown(now.get(kind), was.get(kind), loud) for kind, loud in LOUD.items()))
    if os.environ.get("KEEP", "") not in {"", "0"}:
        KEPT.write_text(json.dumps({"where": here, "pieces": numbers}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["count"]:
        count()
    elif len(sys.argv) > 1:
        time()
    else:
        main()
