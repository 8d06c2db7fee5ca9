"""What tests have written is read in C as it is in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from manallm_proxy.config import yaml_file
from manallm_proxy.config.yaml_file import read
from tests.proxy import FAST, written
from tests.quick_yaml import Loader, by_libyaml

ROOT = Path(__file__).parent.parent
ODD = {
    "numbers": [0, -7, 1.5, float("inf"), 10**18, "010", "1:30", "1e3", "0x1f"],
    "words": [
        None,
        True,
        "no",
        "true",
        "null",
        "~",
        "",
        "2001-01-01",
        "<<",
        "*a",
        "&a",
        "!b",
        "- c",
        "d: e",
        "# f",
        "%",
    ],
    "texts": ["ä€😀", "two\nlines\n", " blanks ", "'", '"', "\\", "\t", "${NAME}", "$${", "${NOT}", "${NOT:-else}"],
    "1": {"empty": [], "none": {}, "x" * 200: "y" * 2000},
    **FAST,
}


def told(path: Path) -> tuple[object, list[str]]:
    mistakes: list[str] = []
    return read(path, {"NAME": "7"}, mistakes.append), mistakes


@pytest.mark.parametrize("text", [written(ODD), "a: 1\nb: ${\na: !c d\n", "a: &x [1]\nb: *x\nc: {<<: {d: 1}, d: 2}\n"])
def test_the_same_values_and_mistakes(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "proxy.yaml").write_text(text)
    ours = told(path)
    with by_libyaml():
        assert told(path) == ours


@pytest.mark.parametrize("name", ["proxy.yaml", "aliases.yaml", "quickstart.yaml"])
def test_what_is_shipped(name: str) -> None:
    ours = told(ROOT / "config" / name)
    with by_libyaml():
        assert told(ROOT / "config" / name) == ours


def test_ours_is_used_again() -> None:
    """By whatever a test reads by itself, and where it is read in vain."""
    ours = yaml_file._Loader

    def in_vain() -> None:
        with by_libyaml():
            assert yaml_file._Loader is Loader
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_vain()
    assert yaml_file._Loader is ours
