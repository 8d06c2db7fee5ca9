"""Structure: a package imports only from those that it may, and each library is imported by one package."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.cases import every

pytestmark = pytest.mark.together  # all of them read all files
TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "manallm_proxy"
MAY_IMPORT: dict[str, set[str]] = {
    "contract": set(),
    "openai": {"contract"},
    "routing": {"contract"},
    "state": {"contract"},
    "config": {"contract"},
    "http_client": {"contract"},
    "observe": {"contract"},
    "http_server": {"contract"},
    "providers": {"contract", "openai", "http_client"},
    "doors": {"contract", "openai"},
    "gateway": {
        "contract",
        "openai",
        "routing",
        "state",
        "config",
        "http_client",
        "observe",
        "http_server",
        "providers",
        "doors",
    },
    "process": {"contract", "routing", "config", "observe", "http_server", "gateway"},
    "cli": {
        *("contract", "openai", "routing", "config", "http_client", "observe", "providers", "gateway", "process"),
    },
    "__main__": {"config", "cli"},
}
"""Who may import whom, from the ground up: each package only those above its own line."""
LIBRARIES = {
    "aiohttp": {"http_client", "http_server"},
    "aiohttp_sse": {"http_server"},
    "aioprometheus": {"observe"},
    "logging": {"observe"},
    "genai_prices": {"config"},
    "opentelemetry": {"observe"},
    "google": {"providers"},
    "yaml": {"config"},
    "cattrs": {"config"},
    "uvloop": {"cli"},
    "redis": {"state"},
}
"""The packages through which a library enters."""
FILES = sorted(PACKAGE.rglob("*.py"))
BLOCKS = {"body", "orelse", "finalbody", "handlers", "cases"}
"""The fields of a node that hold statements, or what has such fields."""


def package(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(block: ast.AST) -> Iterator[ast.AST]:
    """All below `block`. No expression holds an import, and to walk these takes five times as long."""
    for name in BLOCKS.intersection(block._fields):
        for each in getattr(block, name):
            yield each
            yield from statements(each)


@cache
def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.startswith("manallm_proxy")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


def test_arrows_point_down() -> None:
    """The table itself: nobody may import what stands below its own line, so there can be no cycle."""
    seen: set[str] = set()
    for name, may in MAY_IMPORT.items():
        assert may <= seen, f"{name} may not import {may - seen}: it stands below"
        seen.add(name)


def test_every_arrow_is_used() -> None:
    """An import that is not used needs no permission."""
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for path in FILES:
        if package(path) in used:
            used[package(path)] |= {name.split(".")[1] for name in imports(path) if name.startswith("manallm_proxy.")}
    for name, may in MAY_IMPORT.items():
        assert may <= used[name], f"{name} does not import {may - used[name]} any more: take it out of the table"


@every(FILES)
def test_a_package_imports_what_it_may(path: Path) -> None:
    """Of ours what the table says, of a library only where it has its door."""
    here = package(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "manallm_proxy":
            there = parts[1] if len(parts) > 1 else ""
            allowed = {"", "__version__", here, *MAY_IMPORT.get(here, ())}
            assert there in allowed, f"{here} must not import {there}"
        elif parts[0] in LIBRARIES:
            assert here in LIBRARIES[parts[0]], f"{parts[0]} is imported through {LIBRARIES[parts[0]]} only"


def test_no_test_needs_another() -> None:
    """What two test modules need stands in a file of its own: a test module can be changed without the others."""
    for path in sorted(TESTS.rglob("*.py")):
        for name in re.findall(r"^\s*(?:from|import) (tests\.\S+)", path.read_text(), re.MULTILINE):
            assert not name.rpartition(".")[2].startswith("test_"), f"{path}: {name}"


def test_no_file_needs_itself_by_a_detour() -> None:
    """No cycles, inside a package neither."""
    names = {"manallm_proxy." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in FILES}
    needs = {path: {m for n in imports(path) for m in (n, n.rpartition(".")[0]) if m in names} for path in FILES}

    sound: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(p.stem for p in (*way, path))
        if path not in sound:
            for name in needs[path]:
                visit(names[name], (*way, path))
            sound.add(path)

    for path in FILES:
        visit(path, ())


PRIVATE = {
    "observe": {"aioprometheus"},
    "http_client": {"aiohttp.http_exceptions", "aiohttp.client_proto"},
    "openai": set(),
}
"""Modules that are undocumented, and so belong into a package's file of internals."""


@every([path for path in FILES if package(path) in PRIVATE])
def test_private_names_live_in_the_file_of_internals(path: Path) -> None:
    """No file but ``*_internals.py`` imports an undocumented module, or touches another object's private name."""
    if path.stem.endswith("_internals"):
        return
    for name in imports(path):
        for module in PRIVATE[package(path)]:
            assert not (f"{name}.".startswith(f"{module}.")), f"{path.name} imports {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else type(node.value).__name__
            assert owner in ("self", "cls"), f"{path.name}:{node.lineno}: {owner}.{node.attr}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository: what was committed is not known")
def test_no_link_leads_out_of_the_repository() -> None:
    """One to an environment was committed twice, by `git add -A`, and took the place of the folder that was there."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    links = [ROOT / line.partition("\t")[2] for line in listed.splitlines() if line.startswith("120000 ")]
    places = {str(link): Path(os.path.normpath(link.parent / link.readlink())) for link in links if link.is_symlink()}
    assert [name for name, place in places.items() if not place.is_relative_to(ROOT)] == []
