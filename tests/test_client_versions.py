"""The versions of whole programs that docs/clients.md names are those that `make clients` installs."""

from __future__ import annotations

import json
import re

from tests.command import ROOT

REAL = ROOT / "tests" / "clients" / "real"


def test_the_page_names_what_is_installed() -> None:
    page = (ROOT / "docs" / "clients.md").read_text().partition("## Whole programs")[2].partition("\n## ")[0]
    named = set(re.findall(r"\d+\.\d+\.\d+", page))
    npm = set(json.loads((REAL / "package.json").read_text())["dependencies"].values())
    python = {path.read_text().partition("==")[2].strip() for path in REAL.glob("*.list")}
    go = set(re.findall(r" v(\S+)$", (REAL / "go.mod").read_text().partition(")")[0], re.MULTILINE))
    sdk = json.loads((REAL.parent / "package.json").read_text())["dependencies"]["openai"]  # the Agents SDK brings it
    assert named == npm | python | go | {sdk}
