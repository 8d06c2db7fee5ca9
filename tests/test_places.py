"""Every mistake of a configuration is reported with its file and line: there are two files."""

from __future__ import annotations

from pathlib import Path

import pytest

from manallm_proxy.config.load import load
from manallm_proxy.config.providers import KNOWN_OPTIONS
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.contract.targets import OPTION_KINDS
from manallm_proxy.providers.ollama.settings import _TOP_LEVEL, OPERATORS
from tests.proxy import run

PROXY = """\
listen: {port: 3025}
providers:
  gpu:
    kind: ollama
    base_url: http://box:11434
"""
ALIASES = """\
aliases:
  mana/a:
    chain:
      - gpu/m
default: mana/a
"""


def told(folder: Path, proxy: str, aliases: str = ALIASES) -> list[str]:
    """All mistakes, with their places."""
    (folder / "proxy.yaml").write_text(proxy)
    (folder / "aliases.yaml").write_text(aliases)
    with pytest.raises(ConfigError) as caught:
        load(folder / "proxy.yaml", {})
    return list(caught.value.located)


@pytest.mark.parametrize(
    ("old", "new", "place", "wanted"),
    [
        ("port: 3025", "port: '3025'", "proxy.yaml:1", "listen.port: expected a whole number"),
        ("port: 3025", "prot: 3025", "proxy.yaml:1", "listen.prot: unknown key (did you mean 'port'?)"),
        ("    kind: ollama\n", "", "proxy.yaml:3", "providers.gpu.kind: is missing"),
        ("kind: ollama", "kind: olama", "proxy.yaml:4", "providers.gpu.kind: expected one of"),
        ("http://box:11434", "box", "proxy.yaml:5", "providers.gpu.base_url: expected a URL"),
        ("http://box:11434", "${NO}", "proxy.yaml:5", "providers.gpu.base_url: NO is not set"),
        ("- gpu/m", "- gqu/m", "aliases.yaml:4", "aliases.mana/a.chain[0]: no provider 'gqu' (did you mean 'gpu'?)"),
        ("- gpu/m", "- gpu", "aliases.yaml:4", "aliases.mana/a.chain[0]: expected provider/model"),
        (
            "- gpu/m",
            "- {target: gpu/m, prefer: [x]}",
            "aliases.yaml:4",
            "aliases.mana/a.chain[0].prefer: is for the target",
        ),
        (
            "- gpu/m",
            "- {target: gpu/*, prefer: [3]}",
            "aliases.yaml:4",
            "aliases.mana/a.chain[0].prefer[0]: expected a str",
        ),
        ("default: mana/a", "default: mana/b", "aliases.yaml:5", "default: no alias 'mana/b'"),
        ("default: mana/a", "defualt: mana/a", "aliases.yaml:5", "defualt: unknown key (did you mean 'default'?)"),
    ],
)
def test_file_and_line(tmp_path: Path, old: str, new: str, place: str, wanted: str) -> None:
    """Of the key or entry that is wrong, else of what is around it."""
    [mistake] = told(tmp_path, PROXY.replace(old, new), ALIASES.replace(old, new))
    assert mistake.startswith(wanted), mistake
    assert mistake.replace(f"{tmp_path}/", "").endswith(f" ({place})"), mistake


def test_aliases_in_the_first_file_have_their_lines_there(tmp_path: Path) -> None:
    """Also where an aliases.yaml lies beside it."""
    [mistake] = told(tmp_path, f"{PROXY}aliases:\n  mana/a:\n    chain: [gqu/m]\n")
    assert mistake.startswith("aliases.mana/a.chain[0]: no provider 'gqu'")
    assert mistake.endswith("/proxy.yaml:8)")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("    kind:", "\tkind:", "line 4: a tab"),
        ("kind: ollama", "kind:ollama", "line 5: a ':' where there can be no key: the line before lacks a blank"),
        ("  gpu:", "  gpu", "line 4: a ':' where there can be no key"),
        ("url: http", "url:http", "line 6: a key without ':' and a blank after it"),
        ("    base_url", "   base_url", "line 5: the indentation of this line fits none"),
        ("kind: ollama", "kind: 'ollama", "line 6: a quote is opened and not closed"),
        ("{port: 3025}", "{port: 3025", "line 2: a ',' or the closing '}' is missing"),
        ("http://box:11434", "@box", "line 5: text that begins with '@' needs quotes"),
    ],
)
def test_the_commonest_slips_in_our_words(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    """PyYAML's own words are for those who know its grammar."""
    [mistake] = told(tmp_path, PROXY.replace(old, new))
    assert mistake.startswith(f"{tmp_path}/proxy.yaml: {wanted}"), mistake


def test_what_is_odd_is_remarked(tmp_path: Path) -> None:
    """A variable without braces as a key, an entry twice: no mistakes, and hardly meant."""
    (tmp_path / "proxy.yaml").write_text(f"{PROXY}    api_key: $GPU_KEY\n")
    (tmp_path / "aliases.yaml").write_text(ALIASES.replace("- gpu/m", "- gpu/m\n      - gpu/m"))
    assert [note.partition(": ")[0] for note in load(tmp_path / "proxy.yaml", {}).notes] == [
        "providers.gpu.api_key",
        "aliases.mana/a.chain[1]",
    ]


def test_whose_aliases_count_is_remarked(tmp_path: Path) -> None:
    """Those beside the providers; an aliases.yaml that belongs to another file is nobody's business."""
    (tmp_path / "aliases.yaml").write_text(ALIASES)
    mine = f"{PROXY}aliases:\n  mana/a:\n    chain: [gpu/m]\n"
    (tmp_path / "proxy.yaml").write_text(mine)
    line = PROXY.count("\n") + 1
    said = f"aliases: those of proxy.yaml count; {tmp_path}/aliases.yaml is not read, and can be removed"
    said += f" ({tmp_path}/proxy.yaml:{line})"
    assert load(tmp_path / "proxy.yaml", {}).notes == (said,)
    (tmp_path / "other.yaml").write_text(mine)
    assert load(tmp_path / "other.yaml", {}).notes == ()
    (tmp_path / "proxy.yaml").unlink()
    assert load(tmp_path / "other.yaml", {}).notes == (said.replace("proxy", "other"),)
    (tmp_path / "aliases.yaml").unlink()
    assert load(tmp_path / "other.yaml", {}).notes == ()


def test_an_option_that_ollama_does_not_have_is_remarked(tmp_path: Path) -> None:
    """Of a provider and of an entry; Ollama passes over it in silence. All that we know of are known."""
    (tmp_path / "proxy.yaml").write_text(f"{PROXY}    options: {{num_ctxt: 8192, num_ctx: 8192, sk-secret x: 1}}\n")
    entry = "- {target: gpu/m, options: {temprature: 1, keep_alive: 5m}}"
    (tmp_path / "aliases.yaml").write_text(ALIASES.replace("- gpu/m", entry))
    what = "no option that Ollama is known to have"
    mine, theirs = (f"({tmp_path}/{name}:{line})" for name, line in (("proxy.yaml", 6), ("aliases.yaml", 4)))
    assert load(tmp_path / "proxy.yaml", {}).notes == (
        f"providers.gpu.options.num_ctxt: {what} (did you mean 'num_ctx'?) {mine}",
        f"providers.gpu.options.sk-secret...: {what} {mine}",
        f"aliases.mana/a.chain[0].options.temprature: {what} (did you mean 'temperature'?) {theirs}",
    )
    ours = {*OPTION_KINDS, *_TOP_LEVEL, *OPERATORS}
    assert ours <= KNOWN_OPTIONS


def test_an_option_of_a_type_that_ollama_refuses_is_a_mistake(tmp_path: Path) -> None:
    """Of a provider and of an entry: else each request would be refused as its caller's mistake."""
    wrong = "num_ctx: 8k, temperature: '0.5', use_mmap: 1, stop: x, seed: true, num_gpu: 1.5"
    right = "num_batch: 512, num_thread: 4.0, top_p: 1, min_p: 0.5, keep_alive: 5m, shift: false, top_k: null"
    entry = "- {target: gpu/m, options: {num_predict: many, stop: [a]}}"
    proxy, aliases = f"{PROXY}    options: {{{wrong}, {right}}}\n", ALIASES.replace("- gpu/m", entry)
    mine, theirs = (f"({tmp_path}/{name}:{line})" for name, line in (("proxy.yaml", 6), ("aliases.yaml", 4)))
    assert told(tmp_path, proxy, aliases) == [
        f"providers.gpu.options.num_ctx: expected a whole number, got a string {mine}",
        f"providers.gpu.options.temperature: expected a number, got a string {mine}",
        f"providers.gpu.options.use_mmap: expected true or false, got a number {mine}",
        f"providers.gpu.options.stop: expected a list, got a string {mine}",
        f"providers.gpu.options.seed: expected a whole number, got true or false {mine}",
        f"providers.gpu.options.num_gpu: expected a whole number, got a number {mine}",
        f"aliases.mana/a.chain[0].options.num_predict: expected a whole number, got a string {theirs}",
    ]


def test_an_option_that_ollama_takes_for_another_value_is_a_mistake(tmp_path: Path) -> None:
    """A window of -8 or 0 tokens is one of 4, in which no prompt fits; an answer of 0 tokens is one without end."""
    entry = "- {target: gpu/m, options: {num_ctx: 3.0, num_predict: 0}}"
    mine, theirs = (f"({tmp_path}/{name}:{line})" for name, line in (("proxy.yaml", 6), ("aliases.yaml", 4)))
    window = "must be at least 4 tokens: Ollama takes less for 4"
    for few in (-8, 0):
        proxy = f"{PROXY}    options: {{num_ctx: {few}, num_predict: -1}}\n"
        assert told(tmp_path, proxy, ALIASES.replace("- gpu/m", entry)) == [
            f"providers.gpu.options.num_ctx: {window} {mine}",
            f"aliases.mana/a.chain[0].options.num_ctx: {window} {theirs}",
            f"aliases.mana/a.chain[0].options.num_predict: must not be 0, which Ollama takes for no limit; -1 says so"
            f" {theirs}",
        ]


@pytest.mark.parametrize("command", ["check", "serve"])
async def test_remarks_are_printed(tmp_path: Path, command: str) -> None:
    """By `check`, and by a start that a person sees."""
    (tmp_path / "aliases.yaml").write_text(ALIASES)
    text = PROXY.replace("3025", "1, host: 192.0.2.1") + "auth: {open: true}\naliases: {}\n"
    (tmp_path / "proxy.yaml").write_text(text)
    _, output = await run(command, "--config", str(tmp_path / "proxy.yaml"))
    assert " ".join(output.split()).startswith("aliases: those of proxy.yaml count; "), output


async def test_check_prints_them(tmp_path: Path) -> None:
    """All of both files, and 78."""
    (tmp_path / "proxy.yaml").write_text(PROXY.replace("ollama", "olama"))
    (tmp_path / "aliases.yaml").write_text(ALIASES.replace("gpu/m", "gqu/m"))
    code, output = await run("check", "--config", str(tmp_path / "proxy.yaml"))
    places = [line.rpartition("/")[2].rstrip(")") for line in output.splitlines()]
    assert (code, places) == (78, ["proxy.yaml:4", "aliases.yaml:4"])
