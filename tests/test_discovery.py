"""Looking around for model servers: where, what an answer says, and `serve` without any configuration."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.cli import discovery, server_scan
from manallm_proxy.cli.discovery import MODELS, TAGS, Candidate, Reply, Server, candidates, identify, url_of_host
from manallm_proxy.cli.server_scan import scan_servers
from manallm_proxy.config.load import load
from manallm_proxy.config.model import DiscoveredServer
from manallm_proxy.contract.provider import ModelInfo
from tests.cases import every
from tests.command import STDOUT, start
from tests.ports import free_port
from tests.upstreams import Connection, Seen, completion, upstream

pytestmark = pytest.mark.built_in


@every(
    [
        ("box", "http://box:11434"),
        ("box:1", "http://box:1"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:4711", "http://127.0.0.1:4711"),
        ("[::]:4711", "http://127.0.0.1:4711"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:5", "http://[::1]:5"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("http://box:11434/", "http://box:11434"),
        ("https://box/ollama", "https://box:443/ollama"),
        ("http://box:11434/v1", "http://box:11434"),
        ("http://0.0.0.0:11434/api", "http://127.0.0.1:11434"),
        (' "box" ', "http://box:11434"),
        ("box:port", "http://box:11434"),
        ("box:0", "http://box:11434"),
        ("box:70000", "http://box:11434"),
    ]
)
def test_ollama_host_in_all_its_spellings(text: str, wanted: str) -> None:
    """As Ollama itself reads it; what listens everywhere is asked on loopback."""
    assert url_of_host(text) == wanted


def test_where_to_look() -> None:
    """What the environment names first, then this machine's usual ports, and no address twice."""
    ports = ["11434", "1234", "8080", "9931", "8000"]
    assert [each.root.rpartition(":")[2] for each in candidates({})] == ports
    assert all(each.root.startswith("http://127.0.0.1:") for each in candidates({}))
    named = candidates({"OLLAMA_HOST": "0.0.0.0", "OLLAMA_URL": "http://box:1/v1"})
    assert [(each.root, each.named_by) for each in named[:2]] == [
        ("http://box:1", "OLLAMA_URL"),
        ("http://127.0.0.1:11434", "OLLAMA_HOST"),
    ]
    assert len(named) == len(ports) + 1


def reply(value: Any, status: int = 200, server: str = "") -> Reply:
    return Reply(status, server, value if isinstance(value, bytes) else json.dumps(value).encode())


TAGGED = reply({"models": [{"name": "smol", "model": "smol"}]})
NOT_FOUND = reply(b"<html>", 404)


def rows(owner: str = "", **more: Any) -> Reply:
    return reply({"object": "list", "data": [{"id": "m", "owned_by": owner}], **more})


@every(
    [
        ("ollama", {TAGS: TAGGED, MODELS: rows("library")}, "ollama"),
        ("vllm", {TAGS: TAGGED, MODELS: rows("library")}, "ollama"),
        ("ollama", {TAGS: TAGGED}, "ollama"),
        ("ollama", {TAGS: reply({"models": []}), MODELS: reply({"object": "list", "data": None})}, "ollama"),
        ("llamacpp", {TAGS: rows("llamacpp", models=[]), MODELS: rows("llamacpp", models=[])}, "llamacpp"),
        ("ollama", {TAGS: rows("llamacpp", models=[]), MODELS: rows("llamacpp", models=[])}, "llamacpp"),
        ("vllm", {TAGS: NOT_FOUND, MODELS: Reply(200, "llama.cpp", rows().body)}, "llamacpp"),
        ("llamacpp", {TAGS: NOT_FOUND, MODELS: rows("vllm")}, "vllm"),
        ("lmstudio", {TAGS: reply({"error": "Unexpected endpoint"}), MODELS: rows("organization_owner")}, "lmstudio"),
        ("vllm", {TAGS: NOT_FOUND, MODELS: rows("me")}, "vllm"),
        ("ollama", {TAGS: NOT_FOUND, MODELS: rows("me")}, "server"),
        ("vllm", {}, None),
        ("vllm", {TAGS: NOT_FOUND, MODELS: rows("manallm")}, None),
        ("vllm", {TAGS: NOT_FOUND, MODELS: Reply(401, "manallm-proxy", b"{}")}, None),
        ("vllm", {TAGS: NOT_FOUND, MODELS: reply({}, 401)}, "box:1 wants a key (401)"),
        ("vllm", {TAGS: NOT_FOUND, MODELS: NOT_FOUND}, "box:1 answers, but is no model server"),
        ("vllm", {TAGS: reply(b"\xff\xfe"), MODELS: reply([])}, "box:1 answers, but is no model server"),
        ("vllm", {MODELS: Reply(200)}, "box:1 answers without end, or too slowly"),
    ]
)
def test_servers_are_told_apart_by_what_they_answer(usual: str, replies: dict[str, Reply], wanted: str | None) -> None:
    """A port is a hint where the answer names nobody; what is no model server is said once."""
    got = identify(Candidate("http://box:1", usual), replies)
    if isinstance(got, str):
        assert wanted is not None
        assert got.startswith(wanted)
    else:
        assert (got.found.name if got is not None else None) == wanted
    if isinstance(got, Server):
        assert got.found.base_url == ("http://box:1" if wanted == "ollama" else "http://box:1/v1")


def test_a_found_server_is_one_line() -> None:
    """Address and models, as many as fit into 80 columns."""
    found = DiscoveredServer("ollama", "ollama", "http://127.0.0.1:11434")
    assert Server(found).line() == "Ollama at http://127.0.0.1:11434: no models yet"
    assert Server(found, (ModelInfo("a"), ModelInfo("b"))).line() == "Ollama at http://127.0.0.1:11434: a, b"
    line = Server(found, tuple(ModelInfo(f"model-{n}") for n in range(99))).line()
    assert len(line) < 80
    assert line.endswith(" more")


def test_what_was_found_joins_the_open_chains(tmp_path: Path) -> None:
    """Beside the first open entry, with its settings; this machine's servers before a remote one; known ones not."""
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "providers: {ollama: {kind: ollama, base_url: '${OLLAMA_URL}'}, vllm: {kind: openai, base_url: http://x/v1}}\n"
        "aliases:\n  mana/a: {chain: [{target: ollama/*, prefer: [x]}, vllm/m]}\n  mana/b: {chain: [vllm/m]}\n"
    )
    found = [
        DiscoveredServer("ollama", "ollama", "http://localhost:1"),
        DiscoveredServer("vllm", "openai", "http://127.0.0.1:8000/v1"),
    ]
    near = load(path, {"OLLAMA_URL": "http://127.0.0.1:1"}, found=found)
    assert list(near.providers) == ["ollama", "vllm", "vllm-2"]
    assert [str(entry.target) for entry in near.aliases["mana/a"]] == ["ollama/*", "vllm-2/*", "vllm/m"]
    assert near.aliases["mana/a"].entries[1].prefer == ("x",)
    assert [str(entry.target) for entry in near.aliases["mana/b"]] == ["vllm/m"]
    far = load(path, {"OLLAMA_URL": "http://box:1"}, found=found)
    assert [str(e.target) for e in far.aliases["mana/a"]] == ["ollama-2/*", "vllm-2/*", "ollama/*", "vllm/m"]


async def fake_ollama(connection: Connection) -> None:
    """Speaks as much of Ollama as is needed, with models that nobody has heard of."""
    while (seen := await connection.request()) is not None:
        if seen.path == "/api/tags":
            names = ("nomic-embed", "smol:latest")
            await connection.reply({"models": [{"name": name, "model": name} for name in names]})
        elif seen.path == "/api/chat" and seen.json["model"] == "smol:latest":
            await _chat(connection, seen)
        else:
            await connection.reply({"error": "not found"}, "404 Not Found")


async def _chat(connection: Connection, seen: Seen) -> None:
    message = {"role": "assistant", "content": "I am smol."}
    await connection.reply({"model": "smol", "message": message, "done": True, "done_reason": "stop"})


async def llama_server(connection: Connection) -> None:
    while (seen := await connection.request()) is not None:
        if seen.path == "/v1/models":
            await connection.reply({"object": "list", "data": [{"id": "smollm2-135m.gguf", "owned_by": "llamacpp"}]})
        elif seen.method == "POST":
            await connection.reply(completion("I am llama."))
        else:
            await connection.reply({"error": {"code": 404}}, "404 Not Found")


async def silent(connection: Connection) -> None:
    await connection.gone()


async def flood(connection: Connection) -> None:
    await connection.request()
    await connection.head(content_type="application/json")
    while not connection.writer.is_closing():
        await connection.chunk(b" " * 100_000)


async def nonsense(connection: Connection) -> None:
    await connection.request()
    await connection.send(b"\x00\xffSSH-2.0-\r\n\r\n")


async def slow(connection: Connection) -> None:
    await connection.request()
    await connection.head(content_type="application/json")
    while not connection.writer.is_closing():
        await connection.chunk(b" ")
        await asyncio.sleep(0.1)


async def a_million_models(connection: Connection) -> None:
    await connection.request()
    await connection.reply(b'{"object":"list","data":[' + b'{"id":"m"},' * 999_999 + b'{"id":"m"}]}')


async def test_odd_servers_cost_a_second_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What speaks no HTTP, what drips, what lists a million models: named once each; those beside them are found."""
    async with upstream(nonsense) as odd, upstream(slow) as drip, upstream(a_million_models) as many:
        async with upstream(llama_server) as fine:
            usual = [(odd.port, "lmstudio"), (drip.port, "llamacpp"), (many.port, "vllm"), (fine.port, "llamacpp")]
            monkeypatch.setattr(discovery, "USUAL", usual)
            monkeypatch.setattr(server_scan, "LONGEST", 3.0)  # beside 20 MB that are made, sent and read in this loop
            began = asyncio.get_running_loop().time()
            around = await scan_servers({"OLLAMA_HOST": f"127.0.0.1:{free_port()}"})
            assert asyncio.get_running_loop().time() - began < 10
    assert [server.found.base_url for server in around.servers] == [f"http://127.0.0.1:{fine.port}/v1"]
    assert around.remarks[1:] == (
        f"127.0.0.1:{odd.port} answers, but is no model server that is known here: passed over",
        f"127.0.0.1:{drip.port} answers without end, or too slowly: passed over",
        f"127.0.0.1:{many.port} answers without end, or too slowly: passed over",
    )


async def test_what_is_no_address_is_not_asked_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a password, or what a terminal takes for a command; the configuration would refuse it, too."""
    monkeypatch.setattr(discovery, "USUAL", ())
    for text in ("http://me:s3cret@127.0.0.1:1", "http://a b", "\x1b[31m", "http://x:99999"):
        around = await scan_servers({"OLLAMA_URL": text})
        [remark] = around.remarks
        assert remark.startswith("OLLAMA_URL: "), remark
        assert remark.isprintable() and "s3cret" not in remark


async def test_all_are_asked_at_once_and_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is silent and one that floods cost a second together; nothing is sent but GETs without a key."""
    async with upstream(fake_ollama) as box, upstream(llama_server) as llama, upstream(silent) as mute:
        async with upstream(flood) as wild:
            usual = [(llama.port, "vllm"), (mute.port, "lmstudio"), (wild.port, "llamacpp"), (free_port(), "vllm")]
            monkeypatch.setattr(discovery, "USUAL", usual)
            began = asyncio.get_running_loop().time()
            around = await scan_servers({"OLLAMA_HOST": f"0.0.0.0:{box.port}", "OPENAI_API_KEY": "sk-secret"})
            assert asyncio.get_running_loop().time() - began < 2
        assert [(server.found.name, len(server.models)) for server in around.servers] == [
            ("ollama", 2),
            ("llamacpp", 1),
        ]
        assert around.lines() == [
            f"found Ollama at http://127.0.0.1:{box.port}: nomic-embed, smol:latest",
            f"found llama.cpp at http://127.0.0.1:{llama.port}/v1: smollm2-135m.gguf",
            f"127.0.0.1:{mute.port} takes connections, but says nothing: passed over",
            f"127.0.0.1:{wild.port} answers without end, or too slowly: passed over",
        ]
        assert around.environ({})["OLLAMA_URL"] == box.url
        assert {(seen.method, "authorization" in seen.headers) for seen in box.seen + llama.seen} == {("GET", False)}


async def test_serve_without_a_configuration_uses_what_is_there(tmp_path: Path) -> None:
    """The built-in quickstart finds Ollama by OLLAMA_HOST, and mana/fast-text is answered by the model that it has."""
    async with upstream(fake_ollama) as box:
        port = free_port()
        environ = {
            **{k: v for k, v in os.environ.items() if k not in ("JOURNAL_STREAM", "MANALLM_CONFIG", "OLLAMA_URL")},
            "OLLAMA_HOST": f"0.0.0.0:{box.port}",
        }
        child = await start("serve", "--port", str(port), environ=environ, folder=tmp_path, stderr=STDOUT)
        assert child.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(20):
            while not (lines and lines[-1].lstrip().startswith("curl")):
                line = await child.stdout.readline()
                assert line, "".join(lines)
                lines.append(line.decode())
        shell = await asyncio.create_subprocess_shell(f"{lines[-1].strip()} -s", stdout=asyncio.subprocess.PIPE)
        answer = json.loads((await shell.communicate())[0])
        child.kill()
        await child.communicate()
    assert answer["choices"][0]["message"]["content"] == "I am smol."
    assert answer["model"] == "ollama/smol:latest"
    assert "the built-in quickstart" in lines[0]
    shown = [line.rstrip() for line in lines[:-1] if not line.startswith("{")]  # but for the log, and what is copied
    assert [line for line in shown if len(line) > 80] == []
    said = "".join(lines)
    assert "built-in quickstart" in said
    assert f"found Ollama at {box.url}: nomic-embed, smol:latest" in said
