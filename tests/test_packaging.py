"""`make install` into a staging folder, what it leaves there, and the unit as systemd's own tools see it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from manallm_proxy import __version__
from tests.needs import require

ROOT = Path(__file__).parent.parent
MINE = (ROOT / "config/proxy.yaml").read_text() + "# mine\n"
WHY = "Debian: apt-get install systemd"
ENVIRON = dict(os.environ)
"""Before any fixture changes it: pip needs the authorities that the machine trusts."""
WHEELS = ROOT / ".venv" / "wheels"
"""What `make test` has fetched: with it an installation needs no network, and half the time."""
if WHEELS.exists():
    ENVIRON |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}

pytestmark = [pytest.mark.packages, pytest.mark.timeout(400)]  # the first of them waits for the installation


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command's result, whatever it is."""
    return subprocess.run(command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=390, check=False)


def make(target: str, stage: Path, *more: str, code: int = 0) -> str:
    """What a target of systemd/install.mk says."""
    places = (f"DESTDIR={stage}", "PREFIX=/usr")
    done = run(require("make", "it installs"), "-f", "systemd/install.mk", target, *places, *more)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One installation for all tests, over an older one, and moved afterwards: nothing in it may know where it was."""
    shared = (
        tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.mktemp("x")
    )
    moved, built = shared / "moved", shared / "built"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of this file may run in several workers: the first one installs
        if not moved.exists():
            install(built)
            built.rename(moved)
    return moved


def install(built: Path) -> None:
    """Over an older installation and an operator's configuration."""
    older, etc = built / "usr/lib/manallm-proxy", built / "etc/manallm"
    older.mkdir(parents=True)
    (older / "stale").touch()
    etc.mkdir(mode=0o700, parents=True)
    (etc / "proxy.yaml").write_text(MINE)
    said = make("install", built)
    assert f"kept: {etc}/proxy.yaml" in said


@pytest.fixture
def unit(stage: Path, tmp_path: Path) -> Path:
    """The installed unit with its launcher's path exchanged for the staged one, which exists."""
    text = (stage / "usr/lib/systemd/system/manallm-proxy.service").read_text()
    assert "/usr/local" not in text
    shutil.copy(stage / "usr/lib/systemd/system/manallm-proxy.socket", tmp_path)
    path = tmp_path / "manallm-proxy.service"
    path.write_text(text.replace("/usr/bin/manallm-proxy", f"{stage}/usr/bin/manallm-proxy"))
    return path


def test_the_unit_verifies_clean(unit: Path) -> None:
    """Not one word from systemd about our units; about the machine's other units it may say what it likes."""
    units = (unit, unit.with_suffix(".socket"))
    done = run(require("systemd-analyze", WHY), "verify", "--man=no", "--recursive-errors=no", *units)
    assert done.returncode == 0, done.stderr
    assert "manallm" not in done.stdout + done.stderr


def test_the_unit_is_confined(unit: Path) -> None:
    """`systemd-analyze security` fails above its threshold, given in tenths: 1.5."""
    done = run(require("systemd-analyze", WHY), "security", "--offline=yes", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_what_the_unit_promises(unit: Path) -> None:
    """What other parts rely on: drain, watchdog, reload, exit code 78, and keys that may be absent."""
    lines = unit.read_text().splitlines()
    assert {
        "Type=notify",
        "WatchdogSec=20",
        "TimeoutStopSec=45",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "RestartPreventExitStatus=78",
        "StartLimitIntervalSec=0",
        "KillMode=mixed",
    } <= set(lines)
    loaded = {line.partition("=")[2].partition(":")[0] for line in lines if line.startswith("LoadCredential=")}
    optional = {line.removeprefix("SetCredential=") for line in lines if line.startswith("SetCredential=")}
    assert optional == {f"{name}:\\n" for name in loaded}
    assert loaded == set(re.findall(r"\$\{(\w+_API_KEY)\}", (ROOT / "config/proxy.yaml").read_text()))
    # RestartPreventExitStatus heeds ExecStart alone: a check that fails before it would be repeated every second
    assert all(line.startswith("ExecStartPre=-") for line in lines if line.startswith("ExecStartPre="))


def test_the_socket_outlives_the_process(unit: Path) -> None:
    """Enabled with the service and pulled in by it, on loopback, with the address that the shipped file names."""
    service = unit.read_text().splitlines()
    assert {"Wants=manallm-proxy.socket", "Also=manallm-proxy.socket"} <= set(service)
    lines = unit.with_suffix(".socket").read_text().splitlines()
    listen = yaml.safe_load((ROOT / "config/proxy.yaml").read_text())["listen"]
    assert f"ListenStream={listen['host']}:{listen['port']}" in lines
    assert not any(line.startswith(("Accept=", "FlushPending=")) for line in lines)


def test_a_key_that_is_absent_leaves_its_provider_unconfigured(stage: Path, tmp_path: Path) -> None:
    """Under systemd the credential is then an empty line; the shipped configuration starts all the same."""
    for name in ("OPENROUTER_API_KEY", "GROQ_API_KEY", "TOGETHER_API_KEY", "GOOGLE_API_KEY"):
        (tmp_path / name).write_text("\n")
    launcher, config = stage / "usr/bin/manallm-proxy", stage / "etc/manallm/proxy.yaml"
    done = run("env", f"CREDENTIALS_DIRECTORY={tmp_path}", launcher, "check", "--config", config)
    assert done.returncode == 0, done.stderr


def test_man_finds_its_pages(stage: Path) -> None:
    """Where they were installed, and readable by everyone."""
    for section, name in (("1", "manallm-proxy"), ("5", "manallm-proxy.yaml")):
        done = run(require("man", "Debian: apt-get install man-db"), "-M", stage / "usr/share/man", "-w", name)
        page = Path(done.stdout.strip())
        assert page == stage / f"usr/share/man/man{section}/{name}.{section}", done.stderr
        assert stat.S_IMODE(page.stat().st_mode) == 0o644


def test_the_launcher_runs_what_was_installed(stage: Path, tmp_path: Path) -> None:
    """Also through a link, where folder and PYTHONPATH hold another manallm_proxy; and it writes nothing."""
    (tmp_path / "manallm_proxy").mkdir()
    (tmp_path / "manallm_proxy/__init__.py").write_text("raise SystemExit('the wrong one')")
    link = tmp_path / "link"
    link.symlink_to(stage / "usr/bin/manallm-proxy")
    before = sorted(stage.rglob("*"))
    done = run("env", f"PYTHONPATH={tmp_path}", "sh", "-c", f"cd {tmp_path} && ./link --version")
    assert (done.returncode, done.stdout) == (0, f"manallm-proxy {__version__}\n"), done.stderr
    assert sorted(stage.rglob("*")) == before
    assert list(stage.rglob("manallm_proxy/__pycache__/__main__.*.pyc"))


def test_what_is_where(stage: Path) -> None:
    """ExecStart's program is there and nobody but its owner may write it; configuration is not for everyone."""
    text = (stage / "usr/lib/systemd/system/manallm-proxy.service").read_text()
    program = (
        next(line for line in text.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=").split()[0]
    )
    launcher = stage / program.removeprefix("/")
    assert os.access(launcher, os.X_OK)

    def mode(path: str) -> int:
        return stat.S_IMODE((stage / path).stat().st_mode)

    assert stat.S_IMODE(launcher.stat().st_mode) == 0o755
    assert mode("etc/manallm/keys") == 0o750
    assert mode("etc/manallm/aliases.yaml") == 0o640
    assert not (stage / "usr/lib/manallm-proxy/stale").exists()
    assert list(stage.rglob("manallm_proxy/gateway/openapi.yaml"))
    assert list(stage.rglob("manallm_proxy/gateway/page/index.html"))
    assert "u manallm " in (stage / "usr/lib/sysusers.d/manallm-proxy.conf").read_text()
    assert sorted(path.name for path in (stage / "usr/lib").iterdir()) == ["manallm-proxy", "systemd", "sysusers.d"]


def test_nothing_knows_where_it_was_built(stage: Path) -> None:
    """Neither the staging folder nor this working tree is named in any file, compiled ones included."""
    places = (os.fsencode(stage.with_name("built")), os.fsencode(ROOT))
    files = (path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())
    assert [str(path) for path in files if any(place in path.read_bytes() for place in places)] == []


def test_what_was_there_is_never_overwritten(stage: Path) -> None:
    """Neither the operator's configuration nor the mode of its folder."""
    assert (stage / "etc/manallm/proxy.yaml").read_text() == MINE
    assert stat.S_IMODE((stage / "etc/manallm").stat().st_mode) == 0o700


def test_uninstall_keeps_the_configuration_and_removes_the_rest(stage: Path, tmp_path: Path) -> None:
    """It says what it kept; keys are among it."""
    root = shutil.copytree(stage, tmp_path / "copy", symlinks=True, copy_function=os.link)
    (root / "etc/manallm/keys/GROQ_API_KEY").write_text("gsk_mine")
    assert f"Kept: {root}/etc/manallm" in make("uninstall", root)
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    assert left == ["etc/manallm/aliases.yaml", "etc/manallm/keys/GROQ_API_KEY", "etc/manallm/proxy.yaml"]


def test_optional_libraries_are_chosen_at_the_installation_and_kept_by_the_next(tmp_path: Path) -> None:
    """pip is not in there to add them later, and an upgrade without them would end with 78."""
    assert "EXTRAS are redis, otel" in make("install", tmp_path, "EXTRAS=redis;", code=2)
    for arguments in (["EXTRAS=redis"], []):
        make("install", tmp_path, *arguments)
        done = run(tmp_path / "usr/lib/manallm-proxy/bin/python", "-c", "import redis")
        assert done.returncode == 0, (arguments, done.stderr)
    make("install", tmp_path, "EXTRAS=")
    file = tmp_path / "shared.yaml"
    file.write_text("state: redis://127.0.0.1:1\nproviders: {l: {kind: loopback}}\naliases: {}\n")
    done = run(tmp_path / "usr/bin/manallm-proxy", "check", "--config", file)
    assert done.returncode == 78
    assert "install the proxy again with it ('make install EXTRAS=redis'; by pipx or uv 'WHEEL[redis]')" in done.stderr
