"""Descriptions of all configuration keys, read from the comments in the shipped ``proxy.yaml`` and ``aliases.yaml``.

These comments are the single source: the JSON schema and the man page are generated from them. A key's description is
the comment on its line, plus the comment lines below it that start in the same column. Keys that are commented out
count too. Indented keys in a comment above a section belong to each entry of that section.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attrs import evolve

from manallm_proxy.contract.records import frozen

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
"""The folder with the shipped files, which are part of the package."""
FILES: Final = ("proxy.yaml", "aliases.yaml")
EACH: Final = "*"
"""In a path: any name in a mapping, such as a provider's; any index in a list."""
_KEY: Final = re.compile(
    r"(?P<blanks> *)(?P<hash># (?P<more> *))?(?P<item>- )?"
    r"(?P<key>[a-z][A-Za-z0-9_./-]*):(?P<value> [^#]*|)(?:# (?P<text>.*\S))?"
)
_MORE: Final = re.compile(r"[ #]*# (?P<text>.*\S)")
_NAMED: Final = frozenset(("providers", "aliases"))
"""Sections whose keys are names."""

Place = tuple[str, ...]


@frozen
class Description:
    """``place`` of a key, such as ``("limits", "body")``; the value that is shown there, and what it is for."""

    place: Place
    value: str
    text: str

    @property
    def name(self) -> str:
        """``limits.body``, ``auth.keys[].name``, ``providers.NAME.kind``."""
        name = ""
        for before, part in zip(("", *self.place), self.place, strict=False):
            name += f".{part}" if part != EACH else ".NAME" if before in _NAMED else "[]"
        return name.removeprefix(".")


@frozen
class File:
    """``head``: the paragraphs at the top; ``keys`` in the order of the file."""

    head: tuple[str, ...]
    keys: tuple[Description, ...]


def described(name: str) -> File:
    """The shipped file of that name, one of `FILES`."""
    return parse((EXAMPLES / name).read_text("utf-8"))


def parse(text: str) -> File:
    """The keys of a file in the shipped files' style, each once, with its description from the comments."""
    lines = text.splitlines()
    found: dict[Place, Description] = {}
    above: list[tuple[int, str]] = []  # the keys around this line, outermost first, with their columns
    last: Place = ()
    column = -1
    for number, line in enumerate(lines):
        match = _KEY.fullmatch(line)
        if match is None:
            more = _MORE.fullmatch(line)
            if column >= 0 and more is not None and more.start("text") == column:
                found[last] = evolve(found[last], text=f"{found[last].text} {more['text']}")
            else:
                column = -1
            continue
        at = len(match["blanks"]) + len(match["more"] or "")
        if line.startswith("# ") and at:  # of each thing in the section below
            at += 2
            section = next((each for each in lines[number:] if each and each[0] not in "# "), "").partition(":")[0]
            if above[:2] != [(0, section), (2, EACH)]:
                above = [(0, section), (2, EACH)]
        while above and (above[-1][0] > at or above[-1] == (at, EACH) or (above[-1][0] == at and not match["item"])):
            above.pop()
        if match["item"]:
            above.append((at, EACH))
            at += 2
        inside = above[-1][1] if above else ""
        above.append((at, EACH if inside in _NAMED else match["key"]))
        last = tuple(key for _, key in above)
        column = match.start("text")
        if last in found and not (match["text"] and not found[last].text):
            column = -1
        elif above[-1][1] != EACH:
            found[last] = Description(last, match["value"].strip(), match["text"] or "")
    return File(_head(lines), tuple(found.values()))


def _head(lines: list[str]) -> tuple[str, ...]:
    """The paragraphs of prose before the first key."""
    found = [""]
    for line in lines:
        if not line.startswith("#") or _KEY.fullmatch(line):
            break
        text = line.removeprefix("#").strip()
        if text:
            found[-1] += f" {text}" if found[-1] else text
        elif found[-1]:
            found.append("")
    return tuple(filter(None, found))
