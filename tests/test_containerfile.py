"""The Containerfile, read as a builder reads it; no registry and no builder is needed for that."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from manallm_proxy.config.model import Listen

ROOT = Path(__file__).parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def stages() -> list[list[tuple[str, str]]]:
    """Instructions with their arguments, by stage; lines that go on are one."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        assert word.isupper(), line
        if word == "FROM":
            found.append([])
        found[-1].append((word, " ".join(rest.split())))
    return found


@pytest.mark.parametrize("line", [rest.split() for word, rest in stages()[0] if word == "COPY"], ids=" ".join)
def test_what_is_copied_is_there(line: list[str]) -> None:
    """A file that was moved would end the build at its first step."""
    assert all((ROOT / name).exists() for name in line[:-1])


def test_what_setuptools_reads_is_copied() -> None:
    """The project's own files, and those that the links in ``examples`` lead to."""
    copied = {name for word, rest in stages()[0] if word == "COPY" for name in rest.split()[:-1]}
    assert {"pyproject.toml", "setup.cfg", "constraints.txt", "README.md", "LICENSE", "manallm_proxy"} <= copied
    links = [path for path in (ROOT / "manallm_proxy/examples").iterdir() if path.is_symlink()]
    assert links
    assert {path.resolve().relative_to(ROOT).parts[0] for path in links} <= copied


def test_the_last_stage_holds_no_tools() -> None:
    """It runs nothing while it is built, and takes one folder from the stage before, on the same interpreter."""
    first, last = stages()
    assert first[0][1].split()[0] == last[0][1]
    assert [rest for word, rest in last if word == "COPY"] == ["--from=build /opt/manallm-proxy /opt/manallm-proxy"]
    assert not [rest for word, rest in last if word in ("RUN", "ADD")]
    assert any("pip uninstall --yes --quiet setuptools pip" in rest for word, rest in first if word == "RUN")


def test_it_runs_without_privileges_and_is_asked_for_its_health() -> None:
    """A user by number, which Kubernetes can check; the command of the project; the port that it listens on."""
    last = dict(stages()[1])
    assert re.fullmatch(r"[1-9][0-9]{4}:[1-9][0-9]{4}", last["USER"])
    assert json.loads(last["ENTRYPOINT"])[0] in SCRIPTS
    assert json.loads(last["CMD"]) == ["serve", "--host", "0.0.0.0"]
    assert last["EXPOSE"] == str(Listen().port)
    probe = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert f"http://127.0.0.1:{Listen().port}/health" in probe[-1]
    compile(probe[-1], "HEALTHCHECK", "exec")
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "--format docker" in (ROOT / "Containerfile").read_text()  # OCI's own has no health check
