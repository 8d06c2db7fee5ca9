"""The real process where something is missing or odd: it works all the same, and says what is odd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command import STDOUT, start
from tests.newcomer import answer, ollama, started
from tests.upstreams import Connection, upstream

pytestmark = pytest.mark.built_in


@pytest.mark.parametrize(
    "environ",
    [{}, {"LANG": "C", "HOME": "/nonexistent"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["nothing", "LANG=C and no such home", "ASCII"],
)
async def test_no_home_no_terminal_no_language(tmp_path: Path, environ: dict[str, str]) -> None:
    """From a folder with blanks and an umlaut in its name; a model's name that is no ASCII ends nothing."""
    folder = tmp_path / "a path with blänks"
    folder.mkdir()
    async with upstream(ollama("smöl", "I am smöl.")) as box:
        async with started(folder, {**environ, "OLLAMA_URL": box.url}) as (_, said):
            assert await answer(said) == ("ollama/smöl", "I am smöl.")
        text = "".join(said)
        assert f"found Ollama at {box.url}: sm" in text
        assert ("It runs as root" in text) == (os.geteuid() == 0)
        assert "\033[" not in text


async def test_a_configuration_in_an_odd_place(tmp_path: Path) -> None:
    """`init` writes it there, `check` and `serve` read it there."""
    folder = tmp_path / "a path with blänks"
    folder.mkdir()
    async with upstream(ollama("smol", "Hello")) as box:
        environ = {"LANG": "C", "OLLAMA_URL": box.url}
        check = ["check", "--live", "--config", "my files/proxy.yaml"]
        for command in (["init", "my files"], check):
            child = await start(
                *command, environ={"PATH": os.defpath, "OLLAMA_URL": box.url}, folder=folder, stderr=STDOUT
            )
            output, _ = await child.communicate()
            assert child.returncode == 0, output
        async with started(folder, environ, "--config", "my files/proxy.yaml") as (_, said):
            assert await answer(said) == ("ollama/smol", "Hello")


async def test_two_servers_with_the_same_models(tmp_path: Path) -> None:
    """Both become entries; when the first is gone, the second answers, and nobody had to be told."""
    async with upstream(ollama("smol", "the second")) as second:
        async with upstream(ollama("smol", "the first")) as first:
            environ = {"OLLAMA_URL": first.url, "OLLAMA_HOST": second.url}
            async with started(tmp_path, environ) as (_, said):
                assert await answer(said) == ("ollama/smol", "the first")
                text = "".join(said)
                assert "mana/fast-text   -> ollama/smol (found)" in text
                assert "then ollama-2/smol" in text
                await first.stop()
                assert await answer(said) == ("ollama-2/smol", "the second")


async def test_a_port_that_answers_nonsense(tmp_path: Path) -> None:
    """Said once; the start goes on, within a second or so, and loopback says what is wrong.

    Where this machine has a model server of its own at a usual port, that one is found and answers.
    """

    async def nonsense(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"\x00\xffSSH-2.0-\r\n\r\n")
        await connection.gone()

    async with upstream(nonsense) as box:
        async with started(tmp_path, {"OLLAMA_HOST": box.url}) as (_, said):
            elsewhere = any(line.startswith("found ") for line in said)
            assert elsewhere or (await answer(said))[0] == "loopback/echo"
    told = [line for line in said if line.startswith(f"127.0.0.1:{box.port} answers")]
    assert len(told) == 1
