"""What people really write: each mistake with its file, its line and what to do about it, as `check` prints it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manallm_proxy.config.load import load
from manallm_proxy.config.structure import ConfigError
from tests.proxy import run
from tests.slips import ALIASES, PROXY, slipped, slips


def told(folder: Path, proxy: bytes, aliases: bytes = ALIASES.encode()) -> tuple[str, ...]:
    """All mistakes, as they are printed; the folder's name is left out."""
    (folder / "proxy.yaml").write_bytes(proxy)
    (folder / "aliases.yaml").write_bytes(aliases)
    try:
        load(folder / "proxy.yaml", {})
    except ConfigError as error:
        return tuple(line.replace(f"{folder}/", "") for line in error.located)
    return ()


def test_a_slip_is_reported_with_its_place(tmp_path: Path) -> None:
    """File, line and words, all of them, and none beside."""
    for old, new, wanted in slips():
        proxy, aliases = slipped(old, new)
        assert told(tmp_path, proxy.encode(), aliases.encode()) == wanted, (old, new)


def test_without_a_slip_there_is_none(tmp_path: Path) -> None:
    """Or the table would show nothing."""
    assert told(tmp_path, PROXY.encode()) == ()


BOM = b"\xef\xbb\xbf"
OLD, BAD = PROXY.encode(), PROXY.replace("kind: openai", "kind: opnai").encode()
KIND = "providers.groq.kind: expected one of ollama, openai, google, loopback (did you mean 'openai'?) (proxy.yaml:8)"
BLANK = "a key with an unusual blank, as copied from a web page: type the key again"


@pytest.mark.parametrize(
    ("proxy", "aliases", "wanted"),
    [
        (b"", None, ("proxy.yaml: is empty",)),
        (b"# all of it\n", None, ("proxy.yaml: is empty",)),
        (b"just text", None, ("proxy.yaml: must hold keys and values at its top level",)),
        (b"- a\n", None, ("proxy.yaml: must hold keys and values at its top level",)),
        (PROXY.encode("utf-16"), None, ("proxy.yaml: is not UTF-8 text",)),
        (OLD + b"# caf\xe9\n", None, ("proxy.yaml: is not UTF-8 text",)),
        (OLD, b"", ("aliases.yaml: is empty",)),
        (OLD, b"mana/fast: {chain: [ollama/x]}\n", ("mana/fast: unknown key (aliases.yaml:1)",)),
        (BOM + OLD, None, ()),
        (BOM + BAD, None, (KIND,)),
        (OLD.replace(b"\n", b"\r\n"), None, ()),
        (BAD.replace(b"\n", b"\r\n"), None, (KIND,)),
        (BAD.replace(b"\n", b"\r"), None, (KIND,)),
        (
            OLD.replace(b"  port", b"\xc2\xa0 port"),
            None,
            (f"proxy.yaml: line 2: {BLANK}", "...: unknown key (proxy.yaml:2)"),
        ),
        (b"[" * 50, None, ("proxy.yaml: is nested too deeply",)),
    ],
)
def test_a_file_that_is_not_as_it_should_be(
    tmp_path: Path, proxy: bytes, aliases: bytes | None, wanted: tuple[str, ...]
) -> None:
    """Empty, of another encoding, with other line ends: Windows' are as good as ours."""
    assert told(tmp_path, proxy, ALIASES.encode() if aliases is None else aliases) == wanted


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none.yaml", "no such file"),
        (".", "cannot be read (Is a directory)"),
        ("pipe", "cannot be read (it is no regular file)"),
        ("loop", "cannot be read (Too many levels of symbolic links)"),
    ],
)
async def test_a_configuration_that_is_no_regular_file(tmp_path: Path, name: str, why: str) -> None:
    """`check` reports it for either file, with exit code 78, and does not block on a pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    place = tmp_path / name
    assert await run("check", "--config", str(place)) == (78, f"{place}: {why}\n")
    (tmp_path / "proxy.yaml").write_text(f"{PROXY}aliases_file: {name}\n")
    code, output = await run("check", "--config", str(tmp_path / "proxy.yaml"))
    assert (code, output.splitlines()[0].partition(";")[0]) == (78, f"{place}: {why}")
