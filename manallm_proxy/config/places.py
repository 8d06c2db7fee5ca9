"""Finds the file and line of each mistake by its path. The files are read again for that, once there is a mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import yaml

from manallm_proxy.config.structure import join
from manallm_proxy.config.yaml_file import text_of
from manallm_proxy.config.yaml_internals import StrictLoader

DEEPEST: Final = 12
"""Max nesting levels of a file that are searched."""
LINES_LIMIT: Final = 50_000
"""Max paths of one file: anchors can create more of them than a file has bytes."""


def located(mistakes: Iterable[str], files: Iterable[Path]) -> tuple[str, ...]:
    """``aliases.mana/x.chain[1]: no provider 'gorq' (config/aliases.yaml:12)``, for each of `mistakes` with a path.

    The line is that of the longest prefix of the path that exists in a file; of two files, in the one with the longer
    prefix.
    """
    known = {file: lines_of(file) for file in files}
    return tuple(_located(mistake, known) for mistake in mistakes)


def _located(mistake: str, known: dict[Path, dict[str, int]]) -> str:
    path = mistake.partition(": ")[0]
    best: tuple[int, str] = (0, "")
    for file, lines in known.items():
        if mistake.startswith(f"{file}: "):  # it already names its file, perhaps without the line
            inner = mistake.removeprefix(f"{file}: ")
            line = next((lines[part] for part in _parts(inner.partition(": ")[0]) if part in lines), None)
            return mistake if line is None else f"{inner} ({file}:{line})"
        for part in _parts(path):
            if part in lines and len(part) > best[0]:
                best = len(part), f" ({file}:{lines[part]})"
    return f"{mistake}{best[1]}"


def _parts(path: str) -> Iterator[str]:
    """`path` and its prefixes, the longest first."""
    yield path
    for match in sorted(re.finditer(r"[.\[]", path), key=lambda match: -match.start()):
        yield path[: match.start()]


def lines_of(file: Path) -> dict[str, int]:
    """The line of each path in a YAML file; empty if it cannot be read."""
    try:
        node = StrictLoader(text_of(file)).get_single_node()
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return dict(islice(_lines(node, "", 0), LINES_LIMIT))


def _lines(node: yaml.Node | None, path: str, depth: int) -> Iterator[tuple[str, int]]:
    """Lines of all paths below `node`. Anchors may make a node contain itself, so `depth` is limited."""
    if depth > DEEPEST:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                inner = join(path, key.value)
                yield inner, key.start_mark.line + 1
                yield from _lines(value, inner, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            inner = join(path, number)
            yield inner, value.start_mark.line + 1
            yield from _lines(value, inner, depth + 1)
