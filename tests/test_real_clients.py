"""Whole programs as clients: Claude Code, Copilot's CLI, codex, opencode, Continue's cn, the Agents SDK, LiteLLM, Go's
clients, Open WebUI.

``make clients`` installs them and runs this; docs/clients.md says what was seen. Each runs in a home of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.native_servers import speaks_messages, speaks_responses
from tests.needs import require
from tests.open_webui import in_a_chat, open_webui, streamed
from tests.proxy import Proxy, openai, proxy, settings
from tests.real_servers import SAID, server
from tests.sdks import HERE, run
from tests.upstreams import Connection, Seen, each, upstream

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]

FOLDER = Path(os.environ.get("CLIENTS", HERE.parent / ".venv" / "clients"))
WHY = "it is installed by make clients"
NPM = FOLDER / "npm"
PROGRAMS = HERE / "clients" / "real"
SECONDS = 60.0


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Proxy]:
    """``mana/test`` answers at once, ``mana/dies`` after two that fail before a word, ``mana/cut`` breaks after one."""
    async with upstream(each(server), ["m"]) as up:
        config = settings({"p": openai(up.url)}, ["p/m"], health={"failure_threshold": 99})
        config["aliases"]["mana/dies"] = {"chain": ["p/dead", "p/mute", "p/m"]}
        config["aliases"]["mana/cut"] = {"chain": ["p/cut", "p/m"]}
        async with proxy(config, folder) as p:
            yield p


async def said(command: list[str], folder: Path, **environ: str) -> tuple[int | None, str, str]:
    """Exit code, output and errors of a program in `folder`, which is its home too."""
    env = {**os.environ, "HOME": str(folder), "PWD": str(folder), "NO_COLOR": "1"}
    env |= {"XDG_CONFIG_HOME": str(folder / ".config"), **environ}
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(child.communicate(), SECONDS)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode, out.decode(), err.decode()


def program(name: str) -> str:
    require("node", "npm's programs need Node")
    return str(require(NPM / "node_modules" / ".bin" / name, WHY))


def requests_of(p: Proxy) -> list[tuple[str, str, int]]:
    """Endpoint, outcome and attempts of each request so far."""
    rows = [json.loads(row) for row in p.log.getvalue().splitlines()]
    return [(row["endpoint"], row["outcome"], row["attempts"]) for row in rows if row["event"] == "request"]


def codex_home(p: Proxy, folder: Path) -> Path:
    """With a configuration that makes it ask once."""
    home = folder / "codex"
    home.mkdir()
    retries = "request_max_retries = 0\nstream_max_retries = 0\n"
    provider = f'[model_providers.mana]\nname = "mana"\nbase_url = "{p.url}/v1"\nwire_api = "responses"\n{retries}'
    (home / "config.toml").write_text(f'model = "mana/test"\nmodel_provider = "mana"\n{provider}')
    return home


async def test_codex(tmp_path: Path) -> None:
    """Speaks Responses alone: a word, a shell command and its output, a chain that begins badly, and a break."""
    codex = program("codex")
    async with served(tmp_path) as p:
        home = codex_home(p, tmp_path)

        async def ask(model: str, prompt: str) -> tuple[int | None, str, str]:
            command = [codex, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
            return await said([*command, "-m", model, prompt], tmp_path, CODEX_HOME=str(home))

        for model in ("mana/test", "mana/dies"):
            code, out, err = await ask(model, "say hi")
            assert (code, out.strip()) == (0, "Hello"), err
        code, out, err = await ask("mana/test", "use the tool")
        assert (code, out.strip()) == (0, f"It says {SAID}."), err
        code, out, err = await ask("mana/cut", "say hi")
        assert "stream disconnected" in err and "Hello" not in out
        assert requests_of(p) == [
            ("responses", "ok", 1),
            ("responses", "ok", 3),
            *[("responses", "ok", 1)] * 2,
            ("responses", "broken", 1),
        ]


async def test_codex_with_a_model_that_it_knows(tmp_path: Path) -> None:
    """It offers its tools in another way then, as an item; a provider of chats gets them all the same."""
    codex = program("codex")
    async with upstream(each(server), ["gpt-5.6-sol"]) as up:
        async with proxy(settings({"openai": openai(up.url)}, ["openai/m"]), tmp_path) as p:
            command = [codex, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
            command += ["-m", "openai/gpt-5.6-sol", "use the tool"]
            code, out, err = await said(command, tmp_path, CODEX_HOME=str(codex_home(p, tmp_path)))
            assert (code, out.strip()) == (0, f"It says {SAID}."), err


@pytest.mark.parametrize(
    ("package", "endpoint", "base"),
    [
        ("@ai-sdk/openai-compatible", "chat/completions", "/v1"),
        ("@ai-sdk/openai", "responses", "/v1"),
        ("@ai-sdk/anthropic", "messages", "/v1"),
    ],
)
async def test_opencode(package: str, endpoint: str, base: str, tmp_path: Path) -> None:
    """Through each door that one of its packages speaks."""
    opencode = program("opencode")
    async with served(tmp_path) as p:
        names = ("mana/test", "mana/dies", "mana/cut")
        provider = {
            "npm": package,
            "options": {"baseURL": p.url + base, "apiKey": "unused"},
            "models": {name: {"name": name} for name in names},
        }
        config = {
            "model": "m/mana/test",
            "small_model": "m/mana/test",
            "autoupdate": False,
            "provider": {"m": provider},
        }
        (tmp_path / "opencode.json").write_text(json.dumps(config))

        async def ask(model: str, prompt: str) -> tuple[int | None, str, str]:
            environ = {"XDG_DATA_HOME": str(tmp_path / ".data"), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
            return await said([opencode, "run", "-m", f"m/{model}", prompt], tmp_path, **environ)

        for model in ("mana/test", "mana/dies"):
            code, out, err = await ask(model, "say hi")
            assert (code, "Hello" in out) == (0, True), (out, err)
        code, out, err = await ask("mana/test", "use the tool")
        assert f"It says {SAID}." in out, (out, err)
        code, out, err = await ask("mana/cut", "say hi")
        assert (code, "the answer broke off" in err) == (1, True), (out, err)
        assert {name for name, _, _ in requests_of(p)} == {endpoint}


async def test_claude_code(tmp_path: Path) -> None:
    """Speaks Messages: a word, a shell command, a chain that begins badly, a break, a name and a key that are wrong."""
    claude = program("claude")
    async with served(tmp_path) as p:

        async def ask(model: str, prompt: str, url: str = p.url) -> tuple[int | None, str]:
            environ = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "sk-wrong", "DISABLE_AUTOUPDATER": "1"}
            environ |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
            code, out, err = await said(
                [claude, "-p", "--model", model, "--allowedTools", "Bash", "--", prompt], tmp_path, **environ
            )
            return code, (out + err).strip()

        assert await ask("mana/test", "say hi") == (0, "Hello")
        assert await ask("mana/dies", "say hi") == (0, "Hello")
        assert await ask("mana/test", "use the tool") == (0, f"It says {SAID}.")
        assert await ask("mana/cut", "say hi") == (0, "Hello")  # it asks for the whole, and gets the next target's
        code, told = await ask("mana/none", "say hi")
        assert (code, "issue with the selected model (mana/none)" in told) == (1, True), told
        assert requests_of(p)[-4:-2] == [("messages", "broken", 1), ("messages", "ok", 2)]
    config = settings({"loopback": {"kind": "loopback"}}, auth={"keys": [{"name": "a", "sha256": "0" * 64}]})
    async with proxy(config, tmp_path) as p:
        code, told = await ask("mana/test", "say hi", p.url)
        assert (code, "this API key is not known here" in told) == (1, True), told
        assert requests_of(p) == [("messages", "error", 0)]  # once, not eleven times in three minutes


@pytest.mark.parametrize(
    ("kind", "wire", "base", "endpoint"),
    [
        ("openai", "completions", "/v1", "chat/completions"),
        ("openai", "responses", "/v1", "responses"),
        ("azure", "completions", "", "chat/completions"),
        ("anthropic", "completions", "", "messages"),
    ],
)
async def test_copilot(kind: str, wire: str, base: str, endpoint: str, tmp_path: Path) -> None:
    """By each door that it speaks; as Azure's it adds ``/openai/v1`` to its address."""
    copilot = program("copilot")
    async with served(tmp_path) as p:

        async def ask(model: str, prompt: str) -> tuple[int | None, str]:
            provider = {"TYPE": kind, "WIRE_API": wire, "BASE_URL": p.url + base, "API_KEY": "unused"}
            environ = {f"COPILOT_PROVIDER_{name}": value for name, value in provider.items()}
            environ |= {"COPILOT_MODEL": model, "COPILOT_OFFLINE": "true", "COPILOT_AUTO_UPDATE": "false"}
            code, out, err = await said([copilot, "--allow-all-tools", "-s", "-p", prompt], tmp_path, **environ)
            return code, out + err

        for model, prompt, ends, wanted in (
            ("mana/test", "say hi", 0, "Hello"),
            ("mana/dies", "say hi", 0, "Hello"),
            ("mana/test", "use the tool", 0, f"It says {SAID}."),
            ("mana/cut", "say hi", 1, "the answer broke off"),
        ):
            code, told = await ask(model, prompt)
            assert (code, wanted in told) == (ends, True), told
        assert {name for name, _, _ in requests_of(p)} == {endpoint}


async def test_continue(tmp_path: Path) -> None:
    """Its cn, on provider openai."""
    cn = program("cn")
    async with served(tmp_path) as p:
        for model, prompt, ends, wanted in (
            ("mana/test", "say hi", 0, "Hello"),
            ("mana/dies", "say hi", 0, "Hello"),
            ("mana/test", "use the tool", 0, f"It says {SAID}."),
            ("mana/cut", "say hi", 1, "the answer broke off"),
        ):
            row = {"name": "t", "provider": "openai", "model": model, "apiBase": f"{p.url}/v1", "apiKey": "unused"}
            config = {"name": "t", "version": "0.0.1", "schema": "v1", "models": [{**row, "roles": ["chat"]}]}
            (tmp_path / "config.yaml").write_text(json.dumps(config))
            command = [cn, "-p", prompt, "--config", str(tmp_path / "config.yaml"), "--allow", "Bash"]
            code, out, err = await said(command, tmp_path, CONTINUE_CLI_ENABLE_TELEMETRY="0")
            assert (code, wanted in (err if ends else out)) == (ends, True), (out, err)
        assert {name for name, _, _ in requests_of(p)} == {"chat/completions"}


async def test_the_agents_sdk_for_javascript(tmp_path: Path) -> None:
    """Whole and streamed, with a tool."""
    node = require("node", "npm's SDK needs Node")
    require(NPM / "node_modules" / "@openai" / "agents", WHY)
    async with served(tmp_path) as p:
        saw = await run(str(node), str(PROGRAMS / "agents.mjs"), str(NPM), p.url)
        assert {name for name, _, _ in requests_of(p)} == {"responses"}
    assert saw.pop("cut")[0] == "raised"
    tool = f"It says {SAID}."
    assert saw == {"plain": "Hello", "streamed": "Hello", "tool": tool, "streamedTool": tool, "dies": "Hello"}


async def test_litellm(tmp_path: Path) -> None:
    """By each of four ways: chat, Responses, Messages and Ollama's."""
    python = require(FOLDER / "litellm" / "bin" / "python", WHY)
    async with served(tmp_path) as p:
        environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        saw = await run(str(python), str(PROGRAMS / "litellm_client.py"), p.url, env=environ)
        endpoints = {name for name, _, _ in requests_of(p)}
    assert endpoints == {"chat/completions", "responses", "messages", "api/chat"}
    for way, row in saw.items():
        cut = row.pop("cut")
        assert cut[0] == "raised" or (way, cut) == ("responses", ["answered", "Hello"]), way  # that asks for it whole
        assert row == {"plain": "Hello", "streamed": "Hello", "tool": ["say", {"city": "Bergen"}], "dies": "Hello"}, way


async def test_go(tmp_path: Path) -> None:
    """go-openai, and the client that Ollama's own command line uses."""
    clients = require(FOLDER / "go" / "clients", WHY)
    async with served(tmp_path) as p:
        saw = await run(str(clients), p.url)
    told = {"plain": "Hello", "streamed": "Hello", "dies": "Hello", "cut": ["one", True]}
    assert saw["go-openai"] == {**told, "tool": "say", "models": True}
    asked = ("heartbeat", "version", "list", "show", "ps", "embed")
    assert saw["ollama"] == {**told, "tool": f"It says {SAID}.", "generate": "Hello", **dict.fromkeys(asked, True)}


@pytest.mark.timeout(400)
async def test_open_webui(tmp_path: Path) -> None:
    """Its server, with both connections, OpenAI's and Ollama's: what its API streams, and chats as a page has them."""
    program_ = require(FOLDER / "open-webui" / "bin" / "open-webui", WHY)
    async with served(tmp_path) as p, open_webui(program_, tmp_path, p.url) as session:
        async with session.get("/api/models") as response:
            models = {row["id"]: row["owned_by"] for row in (await response.json())["data"]}
        assert (models["mana/test"], models["mana/test:latest"]) == ("openai", "ollama")
        for ending in ("", ":latest"):
            for name in ("test", "dies"):
                assert await streamed(session, f"mana/{name}{ending}", "say hi") == ("Hello", "")
            assert "failed" in (await streamed(session, f"mana/cut{ending}", "say hi"))[1]
            told = await in_a_chat(session, f"mana/test{ending}", "use the tool")
            assert (told["content"], told.get("error")) == (f"It says {SAID}.", None)
            assert (await in_a_chat(session, f"mana/cut{ending}", "say hi"))["error"]
        used = {name for name, _, _ in requests_of(p)}
    assert used == {"chat/completions", "api/chat"}


async def test_on_a_native_provider(tmp_path: Path) -> None:
    """codex, whose own search passes; opencode in two turns, whole history each."""
    codex, opencode = program("codex"), program("opencode")

    async def native(connection: Connection, seen: Seen) -> None:
        await (speaks_responses if seen.path.endswith("/responses") else speaks_messages)(connection, seen)

    async with upstream(each(native)) as up:
        config = settings({"p": openai(up.url, speaks=["responses", "messages"])})
        async with proxy(config, tmp_path) as p:
            command = [codex, "exec", "--skip-git-repo-check", "say hi"]
            code, out, err = await said(command, tmp_path, CODEX_HOME=str(codex_home(p, tmp_path)))
            assert (code, out.strip()) == (0, "Hello"), err
            assert "web_search" in [tool["type"] for tool in up.posts[-1].json["tools"]]
            environ = {"XDG_DATA_HOME": str(tmp_path / ".data"), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
            for package in ("@ai-sdk/openai", "@ai-sdk/anthropic"):
                options = {"baseURL": f"{p.url}/v1", "apiKey": "unused"}
                provider = {"npm": package, "options": options, "models": {"mana/test": {"name": "x"}}}
                model = {"model": "m/mana/test", "small_model": "m/mana/test", "autoupdate": False}
                (tmp_path / "opencode.json").write_text(json.dumps({**model, "provider": {"m": provider}}))
                for words in (["say hi"], ["--continue", "again"]):
                    code, out, err = await said([opencode, "run", "-m", "m/mana/test", *words], tmp_path, **environ)
                    assert (code, "Hello" in out) == (0, True), (out, err)
            assert {post.path for post in up.posts} == {"/v1/responses", "/v1/messages"}
