"""The house stands: imports only point down, and each library has one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "manallm_proxy"
FLOORS = [
    {"__init__", "errors", "chain", "health", "schema", "upstream", "ratelimit", "tally"},
    {
        "events", "sse", "compose", "catalog", "transport", "connections", "http1", "names", "pool",
        "session", "notify",
        "document", "readers", "strict", "settings", "access", "config", "description",
        "messages", "listeners",
    },
    {"board", "failover", "client", "probes", "metrics", "lines", "logs", "wires", "crew", "member"},
    {"relay", "snapshot", "sinks", "whole", "written"},
    {"exchange", "report", "server", "door", "web"},
    {"app", "supervisor"},
    {"cli", "__main__"},
]  # fmt: skip
DOORS = {
    "aioprometheus": {"metrics"},
    "logging": {"logs", "wires"},  # wires/google.py quietens the SDK
    "google": {"wires"},
    "aiohttp_sse": {"sinks"},
    "yaml": {"document"},
    "cattrs": {"strict", "config", "settings"},
    "uvloop": {"cli"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    found = next((number for number, names in enumerate(FLOORS) if name in names), None)
    assert found is not None, f"{name} has no floor yet: give it one here and in CONTRIBUTING.md"
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "manallm_proxy"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A room imports from its own floor or from below; a library only through its door."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "manallm_proxy" and len(parts) > 1 and parts[1] != "__version__":
            assert floor(parts[1]) <= floor(room(path)), f"{room(path)} must not import {parts[1]}: it is above"
        elif parts[0] in DOORS:
            assert room(path) in DOORS[parts[0]], f"{parts[0]} is imported through {DOORS[parts[0]]} only"


def test_no_room_needs_itself_by_a_detour() -> None:
    """No cycles, on one floor neither."""
    needs = {path: {n for n in imports(path) if n.startswith("manallm_proxy.")} for path in FILES}
    names = {"manallm_proxy." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in FILES}

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(p.stem for p in (*way, path))
        for name in needs[path] & names.keys():
            visit(names[name], (*way, path))

    for path in FILES:
        visit(path, ())
