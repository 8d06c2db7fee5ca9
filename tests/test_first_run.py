"""What a newcomer reads: the start screen, loopback's answer, the 503 and ``check --live`` say what really happened."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.cli.check import check, judged
from manallm_proxy.cli.start_screen import start_screen
from manallm_proxy.config.changes import changes
from manallm_proxy.config.load import load
from manallm_proxy.config.model import ProviderConfig
from manallm_proxy.contract.provider import ModelInfo, ModelList
from tests.command import PIPE, start
from tests.ports import free_port
from tests.proxy import openai, proxy, run, settings, written
from tests.redis_server import redis_server
from tests.upstreams import Connection, answers, each, status, upstream

pytestmark = pytest.mark.built_in


def ollama(url: str) -> dict[str, Any]:
    return {"kind": "ollama", "base_url": url}


def tags(*names: str) -> Callable[[Connection], Awaitable[None]]:
    """A server that speaks of Ollama's API the list only."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/api/tags":
                await connection.reply({"models": [{"name": name, "model": name} for name in names]})
            else:
                await connection.reply({"error": "model 'x' not found"}, "404 Not Found")

    return script


refuses = status("404 Not Found", {"error": {"message": "no such model", "code": "model_not_found"}})


def said(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"])


async def test_loopback_says_why_no_model_answered(tmp_path: Path) -> None:
    """The address that was tried, the models that are there instead, the keys that are not set."""
    off = free_port()
    providers = {"ollama": ollama(f"http://127.0.0.1:{off}"), "groq": openai("http://x", api_key="${NO_KEY}")}
    providers |= {"loop": {"kind": "loopback"}}
    async with proxy(settings(providers, ["ollama/m", "groq/m", "loop/echo"]), tmp_path) as p:
        text = said((await p.chat())[1])
        assert f"nothing answers at http://127.0.0.1:{off} (refused): 'ollama serve' starts it" in text
        assert text.endswith("Not set: NO_KEY.")
        assert "Start Ollama" not in text
        opened = {
            **settings(providers, ["ollama/*", "loop/echo"]),
            "health": {"failure_threshold": 3, "probe_interval": 60},
        }
        p.write(opened)
        await p.app.reload()
        assert f"nothing answers at http://127.0.0.1:{off} (refused)" in said((await p.chat())[1])
        assert "Start Ollama" in said((await p.chat(model="loop/echo"))[1])
        _, stream, _ = await p.stream()
        assert b"nothing answers at" in stream
    async with upstream(tags("nomic-embed-text")) as box:
        providers["ollama"] = ollama(box.url)
        chain = [{"target": "ollama/*", "prefer": ["qwen2.5:7b"]}, "loop/echo"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            text = said((await p.chat())[1])
            assert "nothing for chat in its list: nomic-embed-text; 'ollama pull qwen2.5:7b' gets one." in text
    async with upstream(tags("smol", "other")) as box:
        providers["ollama"] = ollama(box.url)
        chain = [{"target": "ollama/gone", "fallback_on": ["missing_model"]}, "loop/echo"]
        async with proxy(settings(providers, chain), tmp_path) as p:
            text = said((await p.chat())[1])
            assert "gone is not installed: ollama pull gone (it has smol, other)." in text
    async with upstream(each(refuses), ["smol"]) as cloud:
        providers["ollama"] = openai(cloud.url)
        async with proxy(settings(providers, chain), tmp_path) as p:
            assert "ollama: gone is not in its list (it has smol)." in said((await p.chat())[1])


async def test_the_503_says_it_to_the_operator_only(tmp_path: Path) -> None:
    """Whoever has a key of their own gets the reasons, and no address of ours."""
    off = free_port()
    config = settings({"gpu": openai(f"http://127.0.0.1:{off}")})
    async with proxy(config, tmp_path) as p:
        for _ in range(3):
            message = (await p.chat())[1]["error"]["message"]
            assert f"nothing answers at http://127.0.0.1:{off}/v1" in message
    config["auth"] = {"keys": [{"name": "a", "sha256": hashlib.sha256(b"sk-right").hexdigest()}]}
    async with proxy(config, tmp_path) as p:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        _, answer, _ = await p.post("/v1/chat/completions", body, headers={"Authorization": "Bearer sk-right"})
        assert "connect_error" in json.dumps(answer)
        assert str(off) not in json.dumps(answer)


async def test_the_start_screen_names_who_would_answer(tmp_path: Path) -> None:
    """What was found in place of what was wished for, and how to get that; 80 columns; a command that works."""
    async with upstream(tags("smol", *(f"model-{n}" for n in range(30)))) as box:
        providers = {"ollama": ollama(box.url), "groq": openai("http://x", api_key="${NO_KEY}")}
        providers |= {"loop": {"kind": "loopback"}}
        config = settings(providers, [{"target": "ollama/*", "prefer": ["qwen2.5:7b", "smol"]}, "groq/m", "loop/echo"])
        config["aliases"]["mana/embed"] = {"chain": ["ollama/nomic-embed-text"]}
        config["default"] = "mana/embed"
        async with proxy(config, tmp_path) as p:
            screen = start_screen(p.app).splitlines()
            assert all(len(line) < 80 for line in screen if "curl" not in line), screen
            at = screen.index("  mana/test        -> ollama/smol (found)")
            assert screen[at + 1].strip() == "qwen2.5:7b is not installed: ollama pull qwen2.5:7b"
            assert screen[at + 2].strip() == "then loop/echo"
            assert screen[at + 3 : at + 5] == [
                "  mana/embed       -> nobody",
                "      nomic-embed-text is not installed: ollama pull nomic-embed-text",
            ]
            assert "  not set:     NO_KEY" in screen
            assert f"In a browser:  {p.url}/" in screen
            assert '"model": "mana/test"' in screen[-1]  # the default one cannot chat


async def test_a_named_model_that_is_not_installed_ends_the_request(tmp_path: Path) -> None:
    """Its 404 goes to the caller, so the next entry is not who would answer, unless fallback_on says so."""
    async with upstream(tags("smol")) as box:
        chain = ["ollama/gone", "ollama/smol", "loop/echo"]
        config = settings({"ollama": ollama(box.url), "loop": {"kind": "loopback"}}, chain)
        config["aliases"]["mana/goes-on"] = {"chain": chain, "fallback_on": ["missing_model"]}
        config["aliases"]["mana/late"] = {"chain": ["ollama/smol", "ollama/gone", "loop/echo"]}
        async with proxy(config, tmp_path) as p:
            screen = start_screen(p.app).splitlines()
            at = screen.index("  mana/test        -> nobody")
            assert screen[at + 1 : at + 11] == [
                "      gone is not installed: ollama pull gone",
                "      a request ends there: fallback_on: [missing_model] would go on to",
                "      ollama/smol, loop/echo",
                "  mana/goes-on     -> ollama/smol",
                "      gone is not installed: ollama pull gone",
                "      then loop/echo",
                "  mana/late        -> ollama/smol",
                "      gone is not installed: ollama pull gone",
                "      a request ends there: fallback_on: [missing_model] would go on to",
                "      loop/echo",
            ]
            assert '"model": "mana/goes-on"' in screen[-1]
            assert (await p.chat())[0] == 404
            _, explained = await p.get("/v1/explain?model=mana/test")
            assert explained["chain"][0]["detail"] == "ollama does not list it: a 404 goes to the caller (fallback_on)"
            _, explained = await p.get("/v1/explain?model=mana/goes-on")
            assert explained["chain"][0]["detail"] == "ollama does not list it: a 404 leads to the next entry"


async def test_the_line_to_try_fits_the_configuration(tmp_path: Path) -> None:
    """The header where keys are set, the socket where there is one, a model that exists where there is no alias."""
    async with upstream(each(answers), ["nomic-embed-text", "smol"]) as gpu:
        bare = {**settings({"gpu": openai(gpu.url)}), "aliases": {}}
        del bare["default"]
        async with proxy(bare, tmp_path) as p:
            line = start_screen(p.app).splitlines()[-1].strip()
            assert '"model": "gpu/smol"' in line
            shell = await asyncio.create_subprocess_shell(f"{line} -s", stdout=asyncio.subprocess.PIPE)
            assert json.loads((await shell.communicate())[0])["model"] == "gpu/smol"
        config = settings({"gpu": openai(gpu.url)}, ["gpu/smol"])
        config["listen"] = {"unix": str(tmp_path / "a socket")}
        config["auth"] = {"keys": [{"name": "a", "sha256": hashlib.sha256(b"sk-right").hexdigest()}]}
        async with proxy(config, tmp_path) as p:
            line = start_screen(p.app).splitlines()[-1].strip()
            shell = await asyncio.create_subprocess_shell(
                f"{line} -s",
                stdout=asyncio.subprocess.PIPE,
                env={"MANALLM_API_KEY": "sk-right", "PATH": "/usr/bin:/bin"},
            )
            assert json.loads((await shell.communicate())[0])["model"] == "gpu/smol"


def of(kind: str, url: str, api_key: str | None = None) -> ProviderConfig:
    return ProviderConfig("p", kind, url, api_key)  # type: ignore[arg-type]  # a text that stands for a literal


@pytest.mark.parametrize(
    ("provider", "answer", "state", "words"),
    [
        (of("ollama", "http://x"), ModelList((ModelInfo("m"),)), "alive", "alive"),
        (of("ollama", "http://x"), ModelList(), "alive", "alive"),
        (of("openai", "http://x/v1"), ModelList((ModelInfo("m"),), "it has rows"), "alive", "it has rows"),
        (of("openai", "http://x"), ModelList(status=404), "wrong", "base_url should most likely be http://x/v1"),
        (of("openai", "http://x/v1/v1"), ModelList(status=404), "wrong", "base_url should most likely be http://x/v1"),
        (of("openai", "http://x/v1"), ModelList(status=404), "wrong", "what stands before /chat/completions"),
        (of("openai", "http://x/v1"), ModelList(fault="it is no list of models"), "wrong", "no list of models"),
        (of("ollama", "http://x"), ModelList(status=404), "wrong", "kind: openai"),
        (of("openai", "http://x/v1", "k"), ModelList(status=401), "wrong", "refuses its key (401)"),
        (of("openai", "http://x/v1"), ModelList(status=401), "wrong", "wants a key (api_key) (401)"),
    ],
)
def test_what_answers_is_not_yet_alive(provider: ProviderConfig, answer: ModelList, state: str, words: str) -> None:
    """A web server is no provider."""
    verdict = judged(provider, answer)
    assert (verdict.state, words in verdict.text) == (state, True), verdict


async def test_a_forward_proxy_of_the_environment_is_said_not_to_be_read(tmp_path: Path) -> None:
    """In a company's network it is set for all programs, and pip has used it."""
    port = free_port()
    providers = {"near": openai(f"http://127.0.0.1:{port}"), "far": openai("https://nobody.invalid")}
    (tmp_path / "proxy.yaml").write_text(written(settings(providers)))
    path = str(tmp_path / "proxy.yaml")
    for name in ("HTTPS_PROXY", "https_proxy"):
        code, output = await run("check", "--live", "--config", path, environ={name: "http://user:s3cret@127.0.0.1:9"})
        assert code == 1
        [near] = [line for line in output.splitlines() if line.startswith("providers.near:")]
        [far] = [line for line in output.splitlines() if line.startswith("providers.far:")]
        assert "is not read" not in near
        assert far.endswith(f" ({name} of the environment is not read: a forward proxy is the provider's `proxy`)")
        assert "s3cret" not in output


async def test_check_live_is_honest(tmp_path: Path) -> None:
    """Unreachable: 1 unless that is accepted; a wrong address: 1 and the mend; a path of Ollama's APIs is left out."""
    path, off = tmp_path / "proxy.yaml", free_port()

    async def checked(config: dict[str, Any], *more: str) -> tuple[int | None, str]:
        path.write_text(written(config))
        return await run("check", "--live", "--config", str(path), *more)

    away = settings({"gpu": openai(f"http://127.0.0.1:{off}")})
    code, output = await checked(away)
    line = f"providers.gpu: nothing answers at http://127.0.0.1:{off}/v1 (refused): start it, or correct base_url\n"
    assert (code, output) == (1, line)
    assert (await checked(away, "--offline-ok"))[0] == 0
    async with upstream(tags("smol", "other")) as box:
        code, output = await checked(settings({"box": ollama(f"{box.url}/v1")}, ["box/smol", "box/*"]))
        assert (code, "providers.box.base_url: '/v1' at its end is left out" in output) == (0, True)
        code, output = await checked(settings({"box": ollama(f"{box.url}/api")}, ["box/gone"]))
        assert (code, "box does not list a model 'gone'; it has smol, other" in output) == (1, True)
        code, output = await checked(settings({"box": {"kind": "openai", "base_url": box.url}}, ["box/smol"]))
        assert (code, f"base_url should most likely be {box.url}/v1" in output) == (1, True)
    async with upstream(tags("nomic-embed-text")) as box:
        code, output = await checked(settings({"box": ollama(box.url)}, ["box/*"]))
        assert (code, "chain[0]: box has no model for this entry: nothing for chat" in output) == (1, True)


async def test_check_reads_keys_as_systemd_passes_them(tmp_path: Path) -> None:
    """--credentials DIR; no such folder is a mistake."""
    (tmp_path / "GROQ_API_KEY").write_text("gsk-1\n")
    path = tmp_path / "proxy.yaml"
    path.write_text(written(settings({"groq": openai("http://127.0.0.1:9", api_key="${GROQ_API_KEY}")})))
    code, output = await run("check", "--live", "--config", str(path), "--credentials", str(tmp_path))
    assert (code, "nothing answers" in output) == (1, True)
    code, output = await run("check", "--live", "--config", str(path))
    assert (code, "unconfigured: GROQ_API_KEY is not set" in output) == (0, True)
    assert (await run("check", "--config", str(path), "--credentials", str(tmp_path / "none")))[0] == 78


def test_a_path_of_ollamas_apis_is_left_out(tmp_path: Path) -> None:
    """Whichever of them, for either api."""
    for end in ("", "/", "/v1", "/v1/", "/api"):
        path = tmp_path / "proxy.yaml"
        path.write_text(f"providers: {{o: {{kind: ollama, base_url: 'http://x{end}'}}}}\naliases: {{}}\n")
        config = load(path, {})
        assert (config.providers["o"].base_url, len(config.notes)) == ("http://x", int(len(end) > 1))


def test_loopback_serves_whatever_it_is_asked_for(tmp_path: Path) -> None:
    """It lists one name, and lacks none."""
    path = tmp_path / "proxy.yaml"
    path.write_text("providers: {lo: {kind: loopback}}\naliases: {mana/x: {chain: [lo/any]}}\n")
    assert check(str(path), True, {}) == 0


def test_what_follows_from_a_change_is_not_said(tmp_path: Path) -> None:
    """An alias's window is no setting of its own."""
    path, configs = tmp_path / "proxy.yaml", []
    for window in (4096, 8192):
        entry = f"{{target: o/m, options: {{num_ctx: {window}}}}}"
        aliases = f"aliases: {{mana/x: {{chain: [{entry}]}}}}"
        path.write_text(f"providers: {{o: {{kind: ollama, local: true}}}}\n{aliases}\n")
        configs.append(load(path, {}))
    assert changes(*configs) == "1 alias changed"


async def test_what_a_reload_changed_is_said(tmp_path: Path) -> None:
    """In numbers and names, never a value; nothing, if so; a refused one names only what cannot be changed."""
    config = settings({"a": {"kind": "loopback"}}, listen={"port": free_port()})
    async with proxy(config, tmp_path) as p:
        await p.app.reload()
        more = settings(
            {"a": {"kind": "loopback"}, "b": {"kind": "loopback"}}, limits={"drain": 5}, listen=config["listen"]
        )
        p.write(more)
        await p.app.reload()
        more["auth"] = {"open": True}
        p.write(more)
        await p.app.reload()
        more["listen"] = {"port": free_port()}
        p.write(more)
        await p.app.reload()
    lines = [json.loads(line) for line in p.log.getvalue().splitlines()]
    told = [line["changes"] for line in lines if line["event"] == "reloaded"]
    assert told == ["nothing changed", "1 alias changed, 1 provider added, limits changed", "auth.open changed"]
    [refused] = [line["mistakes"] for line in lines if line["event"].startswith("reload refused")]
    assert refused == [f"listen.port: cannot be changed by a reload; restart to change it ({tmp_path}/proxy.yaml:2)"]
    [drained] = [line["detail"] for line in lines if line["event"] == "draining"]
    assert drained == "0 answers, at most 5 s; Ctrl-C again ends now"


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one process", "workers"])
async def test_an_address_in_use_is_reported_with_the_next_step(tmp_path: Path, workers: list[str]) -> None:
    """In the same words with and without workers."""
    async with upstream(each(answers)) as other:
        path = tmp_path / "proxy.yaml"
        path.write_text(written(settings({"a": {"kind": "loopback"}}, listen={"port": other.port})))
        code, output = await run("serve", "--config", str(path), *workers)
    lines = [line for line in output.splitlines() if line.startswith("listen")]
    wanted = f"listen: 127.0.0.1:{other.port} is in use by another program: end that, or choose another port (--port); "
    assert (code, lines) == (78, [wanted + "'manallm-proxy status' tells whether it is a proxy"])


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one process", "workers"])
async def test_what_is_no_socket_is_reported_in_words(tmp_path: Path, workers: list[str]) -> None:
    """A file or a folder in a socket's place is no program that could be ended, and stays there."""
    (tmp_path / "file").write_text("mine")
    why = "something that is no socket is there: move it, or choose another unix"
    for place in (tmp_path / "file", tmp_path):
        config = settings({"a": {"kind": "loopback"}}, listen={"unix": str(place)})
        (tmp_path / "proxy.yaml").write_text(written(config))
        code, output = await run("serve", "--config", str(tmp_path / "proxy.yaml"), *workers)
        assert (code, output) == (78, f"listen: cannot listen on {place}: {why}\n")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["one process", "workers"])
async def test_a_greeting_that_nobody_reads_ends_no_proxy(tmp_path: Path, workers: list[str]) -> None:
    """Notes and the start screen, into a pipe whose reader has left (`serve | head -1`) and onto a full disk."""
    noted = {"kind": "ollama", "base_url": f"http://127.0.0.1:{free_port()}/v1"}
    config = settings({"a": noted}, ["a/m"], listen={"port": free_port()})
    (tmp_path / "proxy.yaml").write_text(written(config))
    command = ("serve", "--config", str(tmp_path / "proxy.yaml"), *workers)
    for full in (False, True):
        reads, output = os.pipe()
        os.close(reads)
        if full:
            os.close(output)
            output = os.open("/dev/full", os.O_WRONLY)
        child = await start(*command, environ=os.environ, stdout=output, stderr=PIPE)
        os.close(output)
        assert child.stderr is not None
        async with asyncio.timeout(40):
            while b"listening on" not in (line := await child.stderr.readline()):  # the greeting comes right after it
                assert line, "it has ended"
            child.terminate()
            _, rest = await child.communicate()
        assert (child.returncode, full) == (0, full), rest
        assert b"stopped" in rest
        assert b"listen:" not in rest
        assert b"Traceback" not in rest


async def test_a_variable_that_names_no_file_is_a_mistake(tmp_path: Path) -> None:
    """Nothing else is served in its place."""
    for command in ("serve", "check"):
        code, output = await run(command, environ={"MANALLM_CONFIG": str(tmp_path / "none.yaml")})
        assert (code, output) == (78, f"MANALLM_CONFIG names {tmp_path}/none.yaml, and there is no such file\n")


async def test_the_start_screen_notes_who_lists_nothing(tmp_path: Path) -> None:
    """It is alive, and most likely has a wrong base_url or key; a kind that has no list is not noted."""

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply({"detail": "Not Found"}, "404 Not Found")

    async with upstream(script) as wrong, upstream(each(answers), ["m"]) as right:
        google = {"kind": "google", "api_key": "a", "base_url": wrong.url}
        config = settings({"wrong": openai(wrong.url), "right": openai(right.url), "google": google}, ["right/m"])
        async with proxy(config, tmp_path) as p:
            screen = " ".join(start_screen(p.app).split())
    lists_nothing = "healthy, but lists no models: 'manallm-proxy check --live' says why"
    assert f"wrong {lists_nothing} right healthy: m google healthy Aliases" in screen


async def test_explain_notes_a_model_that_is_not_listed(tmp_path: Path) -> None:
    """It would be asked for all the same, since lists may lack what is there; but nobody should take it for well."""
    async with upstream(tags("smol")) as box:
        async with proxy(settings({"box": ollama(box.url)}, ["box/gone", "box/smol"]), tmp_path) as p:
            rows = (await p.get("/v1/explain"))[1]["chain"]
    assert [(row["usable"], row["detail"]) for row in rows] == [
        (True, "box does not list it: a 404 goes to the caller (fallback_on)"),
        (True, None),
    ]


async def test_a_missing_model_speaks_against_no_provider(tmp_path: Path) -> None:
    """Where the walk may pass it over, the provider is as healthy as before."""
    async with upstream(tags("smol")) as box:
        chain = [{"target": "box/gone", "fallback_on": ["missing_model"]}, "loop/echo"]
        async with proxy(settings({"box": ollama(box.url), "loop": {"kind": "loopback"}}, chain), tmp_path) as p:
            for _ in range(3):
                assert (await p.chat())[0] == 200
            health = (await p.get("/v1/health"))[1]
            assert (health["status"], health["providers"]["box"]["status"]) == ("healthy", "healthy")
            assert health["providers"]["box"]["targets"]["gone"]["status"] == "unhealthy"


def test_a_live_check_asks_shared_state_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests go on without it, so nothing else says before they come that limits are each process's own."""
    path = tmp_path / "proxy.yaml"

    def checked(url: str, *, offline_ok: bool = False) -> tuple[int, str]:
        path.write_text(written(settings({"a": {"kind": "loopback"}}, ["a/m"], state=url)))
        code = check(str(path), True, {}, offline_ok=offline_ok)
        return code, capsys.readouterr().out.splitlines()[-1].replace(str(tmp_path), "")

    with redis_server(tmp_path, "word") as redis:
        assert checked(redis.url) == (0, "state: unix:///redis.sock: alive")
        refused = "state: unix:///redis.sock: refuses the user or the password; until it is there, nothing is shared"
        assert checked(redis.url_with("wrong")) == (1, refused)
        assert checked(redis.url_with("wrong"), offline_ok=True) == (0, refused)
        redis.kill()
        assert checked(redis.url) == (1, refused.replace("refuses the user or the password", "cannot be reached"))
