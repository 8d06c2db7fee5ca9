"""``check --live`` of a box: what is to be kept loaded is there, and no two names lead to the same weights in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.proxy import run, settings
from tests.upstreams import Connection, upstream

BLOB = "FROM /usr/share/ollama/.ollama/models/blobs/sha256-" + "ab" * 32


async def script(connection: Connection) -> None:
    """``one`` and ``two`` are names of the same weights."""
    while (seen := await connection.request()) is not None:
        if seen.path == "/api/show":
            blob = BLOB if seen.json["model"] in ("one", "two:latest") else BLOB.replace("ab", "cd")
            info = {"general.architecture": "llama", "llama.context_length": 32_768}
            shown = {"modelfile": f'# Modelfile\n{blob}\nTEMPLATE "x"', "model_info": info}
            await connection.reply({**shown, "capabilities": ["completion"]})
        elif seen.path == "/api/ps":
            await connection.reply({"models": []})
        else:
            await connection.upstream.probe(connection)


async def checked(folder: Path, chain: list[Any], **more: Any) -> tuple[int | None, str]:
    async with upstream(script, ["one:latest", "two:latest", "three:latest"], shows=True) as gpu:
        path = folder / "proxy.yaml"
        provider = {"kind": "ollama", "base_url": gpu.url, "local": True}
        path.write_text(yaml.safe_dump(settings({"gpu": provider}, chain, **more)))
        return await run("check", "--live", "--config", str(path))


def entry(model: str, window: int) -> dict[str, Any]:
    return {"target": f"gpu/{model}", "options": {"num_ctx": window}}


async def test_two_names_of_the_same_weights(tmp_path: Path) -> None:
    """Exit code 1, both numbers and both targets; other weights may have another window."""
    code, output = await checked(tmp_path, [entry("one", 4096), entry("three", 2048), entry("two:latest", 8192)])
    assert code == 1
    (line,) = [line for line in output.splitlines() if "num_ctx" in line]
    assert line.startswith("aliases.mana/test.chain[2].options.num_ctx: 8192 for gpu/two:latest and 4096 for gpu/one")
    assert (await checked(tmp_path, [entry("one", 4096), entry("two:latest", 4096), entry("three", 2048)]))[0] == 0


async def test_a_window_that_is_larger_than_the_models(tmp_path: Path) -> None:
    """Exit code 1, with both numbers: Ollama cuts it down, and says so in its own log only."""
    code, output = await checked(tmp_path, [entry("one", 32_769), entry("three", 32_768)])
    (line,) = [line for line in output.splitlines() if "num_ctx" in line]
    assert (code, line) == (
        1,
        "aliases.mana/test.chain[0].options.num_ctx: 32769 tokens are more than gpu/one can read, which has 32768",
    )


async def test_what_is_to_be_kept_loaded_must_be_there(tmp_path: Path) -> None:
    """As an entry of a chain must."""
    code, output = await checked(tmp_path, [entry("one", 4096)], warm=["gpu/one", "gpu/gone"])
    assert (code, "warm[1]: gpu does not list a model 'gone'" in output) == (1, True)
