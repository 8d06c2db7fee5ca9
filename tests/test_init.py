"""``manallm-proxy init``: what it writes from what is there, and what it never overwrites."""

from __future__ import annotations

from pathlib import Path

import pytest

from manallm_proxy.cli.discovery import Server
from manallm_proxy.cli.init import written
from manallm_proxy.cli.server_scan import ScanResult
from manallm_proxy.config.load import QUICKSTART, load
from manallm_proxy.config.model import Config, DiscoveredServer
from manallm_proxy.contract.provider import ModelInfo
from tests.proxy import run
from tests.upstreams import Connection, upstream

pytestmark = pytest.mark.built_in

CLOUDS = ["groq/llama-3.1-8b-instant", "openrouter/anthropic/claude-3-haiku"]
"""Of mana/fast-text: skipped until their keys are set."""


def server(name: str, port: int, *models: str) -> Server:
    kind, end = ("ollama", "") if name == "ollama" else ("openai", "/v1")
    # a text that stands for a literal
    found = DiscoveredServer(name, kind, f"http://127.0.0.1:{port}{end}")  # type: ignore[arg-type]
    return Server(found, tuple(ModelInfo(model) for model in models))


def made(folder: Path, *servers: Server, **environ: str) -> Config:
    """The configuration that is written where these servers are found, as it is read again."""
    texts = written(ScanResult(servers), load(QUICKSTART, environ))
    for name, text in zip(("proxy.yaml", "aliases.yaml"), texts, strict=True):
        (folder / name).write_text(text)
    return load(folder / "proxy.yaml", environ)


def chains(config: Config) -> dict[str, list[str]]:
    return {name: [str(entry.target) for entry in chain] for name, chain in config.aliases.items()}


def test_each_model_is_where_it_belongs(tmp_path: Path) -> None:
    """Chat models in the chats, the embedding model in mana/embed alone; no vision without a model that sees."""
    config = made(tmp_path, server("ollama", 1, "nomic-embed-text", "smol", 'o"dd: #model'), GROQ_API_KEY="gsk-1")
    found = chains(config)
    assert found["mana/fast-text"] == ["ollama/smol", *CLOUDS]
    assert found["mana/embed"] == ["ollama/nomic-embed-text"]
    assert all(not target.startswith("ollama/") for target in found["mana/vision"])
    assert [name for name, chain in found.items() if "ollama/nomic-embed-text" in chain] == ["mana/embed"]
    assert config.providers["groq"].configured
    assert config.default_provider == "ollama"
    assert made(tmp_path, server("ollama", 1, "smol"), OLLAMA_URL="http://x").providers["ollama"].base_url == "http://x"


def test_two_servers_are_two_providers(tmp_path: Path) -> None:
    """With a name each, and both in the chains; vectors come from one only."""
    config = made(tmp_path, server("llamacpp", 8080, "m.gguf", "bge-m3"), server("llamacpp", 9931, "m.gguf", "bge-m3"))
    assert [name for name in config.providers if name.startswith("llama")] == ["llamacpp", "llamacpp-2"]
    assert chains(config)["mana/fast-text"] == ["llamacpp/m.gguf", "llamacpp-2/m.gguf", *CLOUDS]
    assert chains(config)["mana/embed"] == ["llamacpp/bge-m3"]
    assert config.default_provider == "llamacpp"
    assert "ollama" not in config.providers  # which did not answer


@pytest.mark.parametrize("models", [[], ["nomic-embed-text"], ["${X}", "a b", "ü", "x" * 300], ["a:", "- b", "true"]])
def test_whatever_is_found_is_written_soundly(tmp_path: Path, models: list[str]) -> None:
    """Nothing, nothing that chats, names that YAML or a request could not hold: it loads."""
    config = made(tmp_path, server("ollama", 1, *models))
    assert config.default in config.aliases
    assert chains(made(tmp_path))["mana/fast-text"] == ["ollama/*", *CLOUDS]


async def fake_ollama(connection: Connection) -> None:
    while await connection.request() is not None:
        await connection.reply({"models": [{"name": name, "model": name} for name in ("smol:latest", "embed:x")]})


async def test_init_writes_what_check_accepts_and_keeps_what_was_there(tmp_path: Path) -> None:
    """Files that exist: exit 1 and nothing changed; with --force a copy of them stays."""
    async with upstream(fake_ollama) as box:
        environ = {"OLLAMA_URL": box.url, "OLLAMA_HOST": ""}
        folder = tmp_path / "my config"
        code, output = await run("init", str(folder), environ=environ)
        assert (code, f"found Ollama at {box.url}: smol:latest, embed:x" in output) == (0, True), output
        assert sorted(path.name for path in folder.iterdir()) == ["aliases.yaml", "proxy.yaml"]
        code, output = await run("check", "--config", str(folder / "proxy.yaml"), environ=environ)
        assert code == 0, output
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        (folder / "proxy.yaml").unlink()
        code, output = await run("init", str(folder), environ=environ)
        assert (code, "aliases.yaml" in output, "--force" in output) == (1, True, True)
        assert [path.name for path in folder.iterdir()] == ["aliases.yaml"]
        (folder / "aliases.yaml").write_text("mine")
        code, output = await run("init", str(folder), "--force", environ=environ)
        assert code == 0, output
        assert (folder / "aliases.yaml.bak").read_text() == "mine"
        assert (folder / "aliases.yaml").read_bytes() == before["aliases.yaml"]
        (folder / "proxy.yaml").write_text("# my key")
        (folder / "proxy.yaml").chmod(0o600)
        there = {path.name: path.read_bytes() for path in folder.iterdir()}
        (folder / "aliases.yaml.new").mkdir()  # which cannot be written
        code, output = await run("init", str(folder), "--force", environ=environ)
        assert (code, "aliases.yaml.new: cannot be written" in output) == (1, True), output
        (folder / "aliases.yaml.new").rmdir()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == there
        code, output = await run("init", str(folder), "--force", environ=environ)
        assert (code, (folder / "proxy.yaml.bak").read_text()) == (0, "# my key")
        assert {(folder / name).stat().st_mode & 0o777 for name in ("proxy.yaml", "proxy.yaml.bak")} == {0o600}
        (tmp_path / "file").touch()
        code, output = await run("init", str(tmp_path / "file"), environ=environ)
        assert (code, "cannot be written" in output, "Traceback" in output) == (1, True, False)
