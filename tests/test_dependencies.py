"""Dependencies: lower bounds, and pins that fit them."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cases import every

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    Requirement(line)
    for group in (PROJECT["dependencies"], *map(PROJECT["optional-dependencies"].get, ("otel", "test", "dev")))
    for line in group
    if not line.startswith(f"{PROJECT['name']}[")  # one of our groups, which stands here itself
]
PINS = {
    canonicalize_name(pin.name): pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}


@every(DIRECT)
def test_every_pin_is_within_its_bounds(wanted: Requirement) -> None:
    """A changed bound makes constraints.txt stale: `make constraints`."""
    [pin] = PINS[canonicalize_name(wanted.name)].specifier
    assert pin.operator == "=="
    assert wanted.specifier.contains(pin.version)


def test_what_is_needed_by_what_we_need_is_pinned_too() -> None:
    """As far as it is installed here, so a new dependency cannot slip in unpinned."""
    names = [canonicalize_name(wanted.name) for wanted in DIRECT]
    for name in names:
        try:
            needs = distribution(name).requires or ()
        except PackageNotFoundError:  # for another system
            continue
        for need in map(Requirement, needs):
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and canonicalize_name(
                need.name
            ) not in names:
                names.append(canonicalize_name(need.name))
    assert set(names) - PINS.keys() == set()


def test_what_runs_has_a_lower_bound_and_no_upper_one() -> None:
    """A lower one is tested (`make bounds`); an upper one would be a guess."""
    for wanted in map(Requirement, PROJECT["dependencies"]):
        assert [each.operator for each in wanted.specifier] == [">="], wanted


def test_pins_name_no_place() -> None:
    """Neither an index nor a path: a name, a version, where it applies."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    for file in sorted((ROOT / "tests/clients").glob("*.txt")):
        pins += file.read_text().splitlines()
        assert any(file.stem.startswith(pin.partition("==")[0]) for pin in pins), file
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [\w'. =!<>]+)?", pin), pin


def test_the_sdks_for_node_are_pinned_too() -> None:
    """One version each, and no range."""
    versions = json.loads((ROOT / "tests/clients/package.json").read_text())["dependencies"]
    assert set(versions) == {"openai", "openai-6", "@anthropic-ai/sdk", "axe-core"}
    for version in versions.values():
        assert re.fullmatch(r"(npm:openai@)?\d+\.\d+\.\d+", version), version


def test_whoever_installs_takes_the_pins() -> None:
    """`make run`, `make test` and `make install`; only `make fresh` and tools that look from outside do not."""
    makefile = (ROOT / "Makefile").read_text()
    for extras in (".", "'.[test,dev]'"):
        assert f"$(PIP) install $(PINNED) --editable {extras}\n" in makefile
    assert '--constraint "$$source/constraints.txt"' in (ROOT / "systemd/install.mk").read_text()


def test_a_package_that_is_a_source_only_is_built_without_what_the_machine_happens_to_have() -> None:
    """Debian 12's pip takes `setup.py` for it by default, and `make packages` failed where no wheel was cached."""
    assert re.search(r"^PINNED := --use-pep517 ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "pip install --quiet --disable-pip-version-check --use-pep517" in (ROOT / "systemd/install.mk").read_text()
