"""Keys and prompts appear nowhere but where they are sent: canaries in, and every way out is searched."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import pkgutil
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import manallm_proxy
from manallm_proxy.cli.serve import disable_core_dumps
from tests.proxy import Proxy, everything, openai, process, proxy, run, settings
from tests.upstreams import Connection, Seen, answers, chunk, each, upstream

KEY, FILED, HEADER, TUNNEL = "sk-CANARY-key", "sk-CANARY-file", "CANARY-header", "CANARY-password"
CLIENT, PROMPT, QUERY = "sk-CANARY-client", "CANARY-prompt", "CANARY-query"
HELD = {"Authorization": f"Bearer {CLIENT}", "api-key": CLIENT, "Cookie": f"session={CLIENT}"}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "user": PROMPT}


async def faithless(connection: Connection, seen: Seen) -> None:
    """A provider that tells whatever it was told; how, the model's name says."""
    key = seen.headers["authorization"].removeprefix("Bearer ")
    said = {"error": {"message": f"Incorrect API key provided: {key}. {seen.headers}", "type": key, "code": key}}
    match seen.json["model"]:
        case "fine":
            await answers(connection, seen)
        case "waits":
            connection.upstream.go.set()
            await connection.gone()
        case "event" | "late-event":
            await connection.head()
            if seen.json["model"] == "late-event":
                await connection.chunk(chunk("one"))
            await connection.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")
            await connection.end()
        case "inside":
            await connection.reply(said)
        case "redirect":
            await connection.reply(b"", "307 Temporary Redirect", extra=f"Location: http://x/?key={key}\r\n")
        case "html":
            await connection.reply(f"<p>{key}".encode(), content_type="text/html")
        case "header":
            await connection.send(f"HTTP/1.1 200 OK\r\n{key}\x00{PROMPT}: x\r\n\r\n".encode())
        case "leaves":
            await connection.send(f"HTTP/1.1 200 OK\r\nX: {key}\r\n".encode())
            connection.reset()
        case status:
            await connection.reply(said, f"{status} Told")


MODELS = [
    "fine",
    "event",
    "late-event",
    "inside",
    "redirect",
    "html",
    "header",
    "leaves",
    "400",
    "401",
    "403",
    "404",
    "422",
    "429",
    "500",
    "503",
]


def config_for(url: str, folder: Path) -> dict[str, Any]:
    """Every place of a configuration that may hold a secret holds one."""
    (folder / "key").write_text(FILED + "\n")
    return settings(
        {
            "gpu": openai(url, api_key="${GPU_KEY}"),
            "filed": openai(url, api_key_file="key"),
            "extra": openai(url, api_key=KEY, headers={"X-Extra": HEADER}),
            "tunnel": openai(url, api_key=KEY, proxy=f"http://user:{TUNNEL}@127.0.0.1:9"),
        },
        ["tunnel/m", "gpu/fine"],
        health={"failure_threshold": 1000},
    )


async def exercise(p: Proxy) -> list[str]:
    """All that comes back to a client from a tour of the house, good and bad."""
    got: list[str] = []

    async def ask(method: str, path: str, **options: Any) -> None:
        async with p.client.request(method, p.url + path, headers=HELD, allow_redirects=False, **options) as response:
            got.append(f"{response.headers} {(await everything(response)).decode(errors='replace')}")

    for path in ("/", "/health", "/readyz", "/v1/models", "/v1/aliases", f"/v1/models/{PROMPT}", f"/{PROMPT}"):
        await ask("GET", f"{path}?key={QUERY}")
    for stream in (False, True):
        await ask("POST", f"/v1/chat/completions?key={QUERY}", json={**BODY, "stream": stream})
        for target in [f"gpu/{model}" for model in MODELS] + [
            "filed/401",
            "filed/fine",
            "extra/400",
            "extra/event",
            "tunnel/fine",
        ]:
            await ask("POST", "/v1/chat/completions", json={**BODY, "model": target, "stream": stream})
    for model in ("mana/nosuch", "nosuch/m", "gpu/a b"):
        await ask("POST", "/v1/chat/completions", json={**BODY, "model": model})
    for body in (f"{{{PROMPT}", f'["{PROMPT}"]', f'{{"messages":"{PROMPT}"}}', f'{{"x":1,"x":"{PROMPT}"}}'):
        await ask("POST", "/v1/chat/completions", data=body)
    for path in ("/v1/health", "/metrics"):
        await ask("GET", path)
    return got


def leaks(text: str, *words: str) -> list[str]:
    """Which of `words` are in `text`, each with what is around it."""
    return [text[max(0, at - 80) : at + 40] for word in words if (at := text.find(word)) >= 0]


async def test_no_way_out_shows_a_secret(tmp_path: Path) -> None:
    """Answers and their headers, log at its most talkative, metrics, health, refused reloads."""
    async with upstream(each(faithless), MODELS) as gpu:
        config = config_for(gpu.url, tmp_path)
        async with proxy(config, tmp_path, {"GPU_KEY": KEY}) as p:
            got = await exercise(p)
            p.write(
                {**config, "providers": {**config["providers"], "gpu": openai(gpu.url, api_key=[KEY], verify_tls=KEY)}}
            )
            await p.app.reload()
            p.write({**config, "log": {"level": KEY}, "cors": {"origins": TUNNEL}})
            await p.app.reload()
            assert "reload refused" in p.log.getvalue()
            assert len([seen for seen in gpu.posts if PROMPT.encode() in seen.body]) > 20
            assert {KEY, FILED} <= {seen.headers["authorization"][7:] for seen in gpu.posts}
            for text in [*got, p.log.getvalue()]:
                assert leaks(text, KEY, FILED, HEADER, TUNNEL, CLIENT, PROMPT, QUERY) == []


@pytest.fixture
def all_objects() -> Iterator[None]:
    """What was made by imports is looked at, too; by no later test's collections, of which each would take 0.3 s."""
    gc.unfreeze()
    yield
    gc.freeze()


async def test_no_object_of_ours_shows_a_secret(tmp_path: Path, all_objects: None) -> None:
    """`repr` of every one that is alive, and of every task: a debugger's view, an assertion's, an error report's."""
    gc.collect()  # what other tests left behind is not looked at again
    async with upstream(each(faithless), ["waits"]) as gpu:
        async with proxy(config_for(gpu.url, tmp_path), tmp_path, {"GPU_KEY": KEY}) as p:
            asked = asyncio.ensure_future(p.post("/v1/chat/completions", {**BODY, "model": "gpu/waits"}, headers=HELD))
            await asyncio.wait_for(gpu.go.wait(), 5)
            ours = [one for one in gc.get_objects() if str(type(one).__module__).startswith("manallm_proxy")]
            assert len(ours) > 50
            for one in [*ours, *asyncio.all_tasks()]:
                if one is not asked:
                    assert leaks(repr(one), KEY, FILED, HEADER, TUNNEL, CLIENT, PROMPT) == [], type(one)
            asked.cancel()


def command_line(pid: int) -> bytes:
    """What `ps` shows to everybody."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


SPOKEN = {"content", "reasoning", "arguments", "contents", "config", "extra", "logprobs", "headers", "api_key", "proxy"}
NO_SECRET = {
    *(
        "Frame.event",
        "EventRelay._model",
        "_Descriptor._rest",
        "Logs._waiting",
        "StreamWriter.headers",
        "ComposedSink.headers",
    ),
    *("Generation.config", "App.config", "Supervisor.config"),
}
"""Names, log lines, our own answer's headers, and what holds secrets hidden in its turn."""


def kinds_of_ours() -> Iterator[type]:
    """Every attrs class of the package."""
    for module in pkgutil.walk_packages(manallm_proxy.__path__, "manallm_proxy."):
        if not module.name.endswith("__main__"):
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and attrs.has(kind) and kind.__module__ == module.name:
                    yield kind


def test_what_is_said_and_sent_stays_out_of_repr() -> None:
    """Bytes are of clients or providers, and so is what a field of such a name holds; a new class is held to it."""
    shown = [
        f"{kind.__name__}.{each.name}"
        for kind in kinds_of_ours()
        for each in attrs.fields(kind)
        if each.repr and (re.match(r"(list\[)?byte", str(each.type)) or (each.name in SPOKEN and each.type != "int"))
    ]
    assert set(shown) - NO_SECRET == set()


async def test_a_process_shows_none_to_its_neighbours(tmp_path: Path) -> None:
    """Its command line is free of them, and it leaves no core, be it a file or a handler's, when it is killed."""
    async with upstream(each(answers)) as gpu:
        async with process(config_for(gpu.url, tmp_path), tmp_path, {"GPU_KEY": KEY}, anew=True) as running:
            line = command_line(running.pid)
            assert b"manallm_proxy" in line
            assert leaks(line.decode(), KEY, FILED, HEADER, TUNNEL) == []
            assert resource.prlimit(running.pid, resource.RLIMIT_CORE)[0] <= 1
            assert leaks("".join(running.output), KEY, FILED, HEADER, TUNNEL) == []


@pytest.mark.parametrize("allowed", [0, resource.RLIM_INFINITY])
def test_no_core_is_left(tmp_path: Path, allowed: int) -> None:
    """The kernel says so itself, also where an operator's shell allows cores."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = hard if allowed == resource.RLIM_INFINITY else allowed
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(tmp_path)
            signal.signal(signal.SIGABRT, signal.SIG_DFL)  # pytest would print a stack
            resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
            disable_core_dumps()
            os.kill(os.getpid(), signal.SIGABRT)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)


async def test_a_mistake_in_the_configuration_shows_no_value(tmp_path: Path) -> None:
    """Neither on the terminal nor in a traceback: a key in the wrong place is still a key."""
    config = settings({"gpu": {"kind": "openai", "base_url": f"http://u:{KEY}@x/v1", "api_key": [KEY], "proxy": KEY}})
    config["limits"] = {"body": KEY, KEY: 1}
    (tmp_path / "bad.yaml").write_text(json.dumps(config))
    code, said = await run("serve", "--config", str(tmp_path / "bad.yaml"))
    assert code == 78
    assert "Traceback" not in said
    assert leaks(said.replace(f"limits.{KEY}", ""), KEY) == []
