"""The ways in that README names, each from nothing to a model's answer: pip, pipx, uv, and what a terminal shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manallm_proxy import __version__
from tests.command import ROOT
from tests.needs import require
from tests.newcomer import answer, ollama, started
from tests.ports import free_port
from tests.terminal import terminal
from tests.upstreams import upstream

PACKAGERS = Path(os.environ.get("PACKAGERS", ROOT / ".venv" / "packagers"))
WHEELS = ROOT / ".venv" / "wheels"
WHY = "`make packages` fetches it"
SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "manallm_proxy", "config", "systemd")
LONGEST = 200.0
"""Seconds from the beginning of the installation to a model's answer, on a machine that does other things as well."""
SCREENS = Path(__file__).parent / "screens"

pytestmark = [pytest.mark.packages, pytest.mark.built_in, pytest.mark.timeout(400)]


def run(*command: str | Path, **environ: str) -> str:
    """What a command prints; no index is asked."""
    quiet = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS), "UV_OFFLINE": "1", "UV_FIND_LINKS": str(WHEELS)}
    everything = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "UV_NO_INDEX": "1", **quiet, **environ}
    done = subprocess.run(command, env=everything, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def copied(folder: Path, *names: str) -> None:
    """These files and folders of the repository, without what tools have left in them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is in the repository, by nothing that is installed here."""
    require(WHEELS, WHY)
    folder = tmp_path_factory.mktemp("wheel")
    copied(folder, *SOURCES)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "made", folder)
    [made] = (folder / "made").iterdir()
    return made


def by_pip(wheel: Path, folder: Path) -> Path:
    """An environment of its own."""
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "venv/bin"


def by_pipx(wheel: Path, folder: Path) -> Path:
    require(PACKAGERS / "pipx", WHY)
    places = {"PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")}
    places |= {
        "PYTHONPATH": str(PACKAGERS),
        "PIPX_MAN_DIR": str(folder / "man"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    run(sys.executable, "-m", "pipx", "install", "--python", sys.executable, wheel, **places)
    return folder / "bin"


def by_uv(wheel: Path, folder: Path) -> Path:
    uv = require(PACKAGERS / "bin/uv", WHY)
    places = {"UV_TOOL_DIR": str(folder / "uv"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    run(uv, "tool", "install", "--python", sys.executable, wheel, **places, UV_CACHE_DIR=str(folder / "cache"))
    return folder / "bin"


@pytest.mark.parametrize("way", [by_pip, by_pipx, by_uv])
async def test_from_nothing_to_an_answer(wheel: Path, tmp_path: Path, way: Callable[[Path, Path], Path]) -> None:
    """`install`, `serve`, the printed command; then `init` and `check`: with nothing but what the wheel brought."""
    began = time.monotonic()
    program = way(wheel, tmp_path) / "manallm-proxy"
    (tmp_path / "work").mkdir()
    async with upstream(ollama("smol", "I am smol.")) as box:
        async with started(
            tmp_path / "work", {"OLLAMA_URL": box.url}, command=(program, "serve", "--port", "{port}")
        ) as (_, said):
            assert await answer(said) == ("ollama/smol", "I am smol.")
            took = time.monotonic() - began
        assert "mana/fast-text   -> ollama/smol (found)" in "".join(said)
        assert run(program, "--version") == f"manallm-proxy {__version__}\n"
        assert "complete" in run(program, "completion", "bash")
        run(program, "init", tmp_path / "mine", OLLAMA_URL=box.url)
        assert "fine" in run(program, "check", "--config", tmp_path / "mine/proxy.yaml", OLLAMA_URL=box.url)
    assert took < LONGEST


async def test_a_fresh_clone_is_one_command(tmp_path: Path) -> None:
    """`make run` in a copy of what the repository holds: it installs itself, and is answered by what is there."""
    require(WHEELS, WHY)
    make = require("make", "Debian: apt-get install make")
    copied(tmp_path / "clone", *SOURCES, "Makefile", "constraints.txt")
    began = time.monotonic()
    environ = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    command = (make, "run", "PORT={port}", f"PYTHON={sys.executable}")
    async with upstream(ollama("smol", "I am smol.")) as box:
        environ["OLLAMA_URL"] = box.url
        ends = (2, -signal.SIGTERM)  # make's own, for a recipe that was ended
        async with started(tmp_path / "clone", environ, command=command, ends=ends, seconds=LONGEST) as (_, said):
            assert await answer(said) == ("ollama/smol", "I am smol.")
            assert time.monotonic() - began < LONGEST
    first = said.index("manallm-proxy is ready.\n")
    assert not [line for line in said[:first] if "WARNING" in line or "notice" in line], said


def test_the_wheel_holds_what_a_user_needs(wheel: Path) -> None:
    """Quickstart, examples, units, nginx's example, page, man pages; no test, and no link."""
    names = run(sys.executable, "-m", "zipfile", "--list", wheel)
    for name in ("quickstart.yaml", "proxy.yaml", "aliases.yaml", "manallm-proxy.service", "nginx.conf.example"):
        assert re.search(rf"^manallm_proxy/examples/{name} .* [1-9][0-9]+$", names, re.MULTILINE), name
    assert "manallm_proxy/gateway/page/index.html" in names
    for page in ("man1/manallm-proxy.1", "man5/manallm-proxy.yaml.5"):
        assert f".data/data/share/man/{page} " in names
    assert "tests/" not in names


async def test_what_a_person_sees(tmp_path: Path) -> None:
    """In a terminal of 80 columns, once it is ready: as kept in ``screens/start.txt``, which KEEP=1 writes anew."""
    (tmp_path / "config").mkdir()
    shutil.copy(ROOT / "config/quickstart.yaml", tmp_path / "config")
    arguments = ("serve", "--config", "config/quickstart.yaml", "--port", str(free_port()))
    async with upstream(ollama("smol", "I am smol.")) as box:
        # as a terminal has it on a desktop that systemd has started
        async with terminal(tmp_path, *arguments, OLLAMA_URL=box.url, JOURNAL_STREAM="8:1") as screen:
            seen = await screen.until(lambda seen: "curl" in seen and seen.rstrip().endswith("'"))
    shown = re.sub(r"127\.0\.0\.1:[0-9]{5}", "127.0.0.1:#####", seen.rstrip() + "\n")
    shown = shown[shown.index("manallm-proxy is ready.") :]  # the log's line before it has the time
    shown = re.sub(r"It runs as root.*\n", "", shown)
    kept = SCREENS / "start.txt"
    if os.environ.get("KEEP"):
        kept.write_text(shown)
    assert shown == kept.read_text()
    assert max(map(len, shown.splitlines())) <= 80
