"""A reload is all or nothing: what cannot be served changes nothing, in one process and in several."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from manallm_proxy.config.model import Config, ProviderConfig
from manallm_proxy.contract.events import Observer
from manallm_proxy.contract.provider import Provider
from manallm_proxy.gateway import opening
from manallm_proxy.gateway.client_keys import digest_of
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.http_client.aiohttp_session import Session
from manallm_proxy.process import app as process_app
from manallm_proxy.process import reload
from manallm_proxy.process.listeners import reread
from tests.proxy import Process, Proxy, openai, process, proxy, run, settings
from tests.supervised import Systemd, get, pids
from tests.upstreams import answers, each, upstream

BAD_URLS = ["http://[::1]x/v1", "http://a\\b/"]
LOOP = {"loop": {"kind": "loopback"}}
KEY = "sk-mana-0123456789"


def refuses(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    """Opening the provider `name` fails, as it would if a reader had missed something."""
    opens = opening.open_provider

    def open_provider(provider: ProviderConfig, observe: Observer) -> Provider:
        if provider.name == name:
            raise error
        return opens(provider, observe)

    monkeypatch.setattr(opening, "open_provider", open_provider)


# In one process


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (ValueError("sk-verysecret"), "providers.bad.base_url: no client can be opened for this URL (ValueError)"),
        (RuntimeError("sk-verysecret"), "providers.bad: no client can be opened for it (RuntimeError)"),
    ],
)
async def test_a_provider_that_cannot_be_opened_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: str
) -> None:
    """Not the health's policy, nor a key's rights, nor a model list; and what was opened before it is closed."""
    opened: list[Session] = []
    created = Session.__init__

    def create(self: Session, *arguments: Any) -> None:
        created(self, *arguments)
        opened.append(self)

    monkeypatch.setattr(Session, "__init__", create)
    refuses(monkeypatch, "bad", error)
    key = {"name": "alice", "sha256": digest_of(KEY)}
    async with upstream(each(answers), ["here"]) as gpu:
        config = settings({"gpu": openai(gpu.url)}, auth={"keys": [key]}, health={"failure_threshold": 2})
        async with proxy(config, tmp_path) as p:
            before = p.app.generation
            health, caller = before.registry.providers["gpu"], before.keyring.caller(KEY)
            providers = {
                "gpu": openai("http://127.0.0.1:9"),
                "fine": openai(gpu.url, proxy="http://127.0.0.1:9"),
                "bad": openai(gpu.url),
            }
            new = {"name": "bob", "sha256": digest_of(KEY), "models": ["mana/*"]}
            p.write(settings(providers, auth={"keys": [new]}, health={"failure_threshold": 9}, log={"level": "error"}))
            await p.app.reload()
            assert "reload refused" in p.log.getvalue()
            assert wanted in p.log.getvalue()
            assert "verysecret" not in p.log.getvalue()
            assert (p.app.generation, p.app.config) == (before, before.config)
            assert (health.policy.failure_threshold, before.registry.providers["gpu"]) == (2, health)
            assert (caller.key.name, caller.may_use("gpu/here")) == ("alice", True)
            assert [model.id for model in before.catalog.models("gpu")] == ["here"]
            assert [session.closed for session in opened] == [True]


async def test_a_prepared_generation_touches_nothing_until_it_is_adopted(tmp_path: Path) -> None:
    """And discarded it leaves nothing open."""
    key = {"name": "alice", "sha256": digest_of(KEY)}
    async with upstream(each(answers), ["here"]) as gpu:
        providers = {"gpu": openai(gpu.url), "kept": openai(gpu.url)}
        async with proxy(settings(providers, auth={"keys": [key]}), tmp_path) as p:
            before = p.app.generation
            providers["gpu"] = openai(gpu.url, api_key="another")
            p.write(settings(providers, auth={"keys": [{**key, "name": "bob"}]}, health={"failure_threshold": 9}))
            config = p.app.read()
            given_up = await before.prepare(config)
            await given_up.discard()
            prepared = await before.prepare(config)
            caller, health = before.keyring.caller(KEY), before.registry.providers["kept"]
            assert prepared.registry.providers["kept"] is health
            assert (health.policy.failure_threshold, caller.key.name) == (2, "alice")
            assert before.catalog.knows("gpu")
            p.app.adopt(prepared)
            assert (health.policy.failure_threshold, caller.key.name) == (9, "bob")
            assert (prepared.catalog.knows("gpu"), prepared.catalog.knows("kept")) == (False, True)


class SlowFiles:
    """Reading takes until the test lets it, as on a drive that hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.reading, self.go = threading.Event(), threading.Event()
        monkeypatch.setattr(process_app, "reread", self._reread)

    def _reread(self, *arguments: Any) -> Config:
        self.reads += 1
        self.reading.set()
        assert self.go.wait(20)
        return reread(*arguments)

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.reading.wait, 10)


async def test_the_loop_serves_while_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes; however many signals come meanwhile, one more reload follows, with what is there then."""
    files = SlowFiles(monkeypatch)
    async with proxy(settings(LOOP), tmp_path) as p:
        first = p.app.reload()
        await files.begun()
        assert [p.app.reload() for _ in range(5)] == [first] * 5
        assert (await p.get("/health"))[0] == 200
        assert "reloaded" not in p.log.getvalue()
        files.go.set()
        await first
        assert files.reads == 2
        assert p.log.getvalue().count('"reloaded"') == 2
        await p.app.reload()
        assert files.reads == 3


async def test_a_stop_wins_over_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the disk, and nothing is adopted any more."""
    files = SlowFiles(monkeypatch)
    async with proxy(settings(LOOP), tmp_path) as p:
        before = p.app.generation
        p.app.reload()
        p.app.reload()
        await files.begun()
    assert p.app.generation is before
    assert "stopped" in p.log.getvalue()
    assert "reloaded" not in p.log.getvalue()
    assert not files.go.is_set()
    files.go.set()


async def test_a_stop_while_the_next_generation_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been opened for it is closed, and the old one serves to the end."""
    async with proxy(settings(LOOP), tmp_path) as p:
        before = p.app.generation
        prepare = type(before).prepare
        prepared: list[Generation] = []

        async def stops(self: Generation, config: Config) -> Generation:
            prepared.append(await prepare(self, config))
            p.app.stop()
            return prepared[0]

        monkeypatch.setattr(type(before), "prepare", stops)
        p.write(settings({"new": openai("http://127.0.0.1:9")}))
        await p.app.reload()
        assert p.app.generation is before
    [client] = prepared[0].providers.values()
    assert client._connections.closed  # type: ignore[attr-defined]  # a private name of its implementation
    assert "reloaded" not in p.log.getvalue()


async def test_files_that_are_never_read_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload is refused, and the next one is not lost."""
    monkeypatch.setattr(reload, "READ_TIMEOUT", 0.05)
    files = SlowFiles(monkeypatch)
    async with proxy(settings(LOOP), tmp_path) as p:
        await p.app.reload()
        assert "the configuration could not be read within" in p.log.getvalue()
        files.go.set()
        monkeypatch.setattr(reload, "READ_TIMEOUT", 10.0)
        await p.app.reload()
        assert p.log.getvalue().count('"reloaded"') == 1


async def test_a_bug_costs_one_reload_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged with its traceback, systemd hears READY again, and the next reload works."""
    systemd = Systemd(tmp_path)
    async with proxy(settings(LOOP), tmp_path, {"NOTIFY_SOCKET": systemd.environ["NOTIFY_SOCKET"]}) as p:
        await systemd.hears("READY=1")

        def breaks(*arguments: Any) -> Config:
            raise ZeroDivisionError

        monkeypatch.setattr(process_app, "reread", breaks)
        await p.app.reload()
        await systemd.hears("RELOADING=1")
        assert "reload refused: an error of ours (ZeroDivisionError)" in await systemd.hears("READY=1")
        assert "internal error" in p.log.getvalue()
        monkeypatch.setattr(process_app, "reread", reread)
        await p.app.reload()
        assert "serving 1 aliases" in await systemd.hears("READY=1")
    systemd.heard.close()


# In a worker, told step by step


async def test_a_worker_prepares_adopts_and_abandons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is prepared can be adopted, only once; what is given up is closed, also while it is being opened."""
    replies: list[tuple[int, tuple[str, ...]]] = []

    def prepare(p: Proxy, number: int, config: bytes) -> None:
        p.app.prepare_pickled(number, config, lambda mistakes: replies.append((number, mistakes)))

    async def settled(p: Proxy) -> None:
        while p.app._reloader._tasks:
            await asyncio.wait(p.app._reloader._tasks)
            await asyncio.sleep(0)

    async with proxy(settings(LOOP), tmp_path) as p:
        before = p.app.generation
        p.write(settings({"new": openai("http://127.0.0.1:9"), "other": openai("http://127.0.0.1:9")}))
        config = pickle.dumps(p.app.read())
        p.app.adopt_prepared(1)
        prepare(p, 1, config)
        p.app.adopt_prepared(1)
        assert p.app.generation is before
        p.app.abandon_prepared(1)
        await settled(p)
        prepare(p, 2, config)
        await settled(p)
        p.app.abandon_prepared(2)
        p.app.adopt_prepared(2)
        assert (p.app.generation, replies) == (before, [(2, ())])
        prepare(p, 3, b"no pickle")
        await settled(p)
        refuses(monkeypatch, "other", ValueError())
        prepare(p, 4, config)
        await settled(p)
        assert [number for number, mistakes in replies if mistakes] == [3, 4]
        monkeypatch.undo()
        prepare(p, 5, config)
        await settled(p)
        p.app.adopt_prepared(5)
        assert list(p.app.generation.providers) == ["new", "other"]
        prepare(p, 6, config)
        await settled(p)  # and ends with it


# The real process


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_bad_url_is_named_before_anything_begins(tmp_path: Path, url: str) -> None:
    """By check and by serve, whatever the number of processes: 78, the path, no traceback."""
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"gpu": {"kind": "openai", "base_url": url}})))
    for command in (["check"], ["serve"], ["serve", "--workers", "2"]):
        code, output = await run(*command, "--config", str(path))
        assert (code, output.count("\n")) == (78, 1)
        assert output.startswith("providers.gpu.base_url: ")


PATCH = """
import asyncio, os
def a_worker_takes(flag):
    if "uvloop" not in str(type(asyncio.get_running_loop())):
        return False  # whoever only tries it needs no fast loop
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
import manallm_proxy.gateway.opening as opening
opens = opening.open_provider
def open_provider(provider, *others):
    if provider.name == "bad" and {condition}:
        raise ValueError("sk-verysecret")
    return opens(provider, *others)
opening.open_provider = open_provider
import sys
from manallm_proxy.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def patched(folder: Path, condition: str) -> Path:
    """A program that is our command, but that opening the provider ``bad`` fails where `condition` holds."""
    path = folder / "patched.py"
    path.write_text(PATCH.format(condition=condition))
    return path


@pytest.mark.parametrize("command", [["check"], ["check", "--live"], ["serve"], ["serve", "--workers", "2"]])
async def test_what_no_reader_knows_of_is_a_mistake_too(tmp_path: Path, command: list[str]) -> None:
    """Whatever opening a provider raises: 78 and its path."""
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(settings({"bad": openai("http://127.0.0.1:9"), **LOOP})))
    code, output = await run(*command, "--config", str(path), program=patched(tmp_path, "True"))
    assert code == 78
    place = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if "base_url" in line)
    assert output == f"providers.bad.base_url: no client can be opened for this URL (ValueError) ({path}:{place})\n"


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("url", BAD_URLS)
async def test_sighup_with_a_bad_url(tmp_path: Path, url: str, number: int) -> None:
    """Refused by its path; READY follows RELOADING; the same processes serve on, and take the next reload."""
    systemd = Systemd(tmp_path)
    path = tmp_path / "proxy.yaml"
    arguments = ("--workers", "2") if number > 1 else ()
    async with process(settings(LOOP), tmp_path, systemd.environ, *arguments) as running:
        await systemd.hears("READY=1")
        before = await pids(running.url) if number > 1 else {}
        path.write_text(yaml.safe_dump(settings({"gpu": {"kind": "openai", "base_url": url}})))
        os.kill(running.pid, signal.SIGHUP)
        await systemd.hears("RELOADING=1")
        assert "STATUS=reload refused: providers.gpu.base_url" in await systemd.hears("READY=1")
        await running.logs("providers.gpu.base_url")
        place = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if "base_url" in line)
        assert f"({path}:{place})" in "".join(running.output)
        path.write_text(yaml.safe_dump(settings(LOOP, ["loop/other"])))
        os.kill(running.pid, signal.SIGHUP)
        await running.logs('"reloaded"')
        assert "loop/other" in (await get(running.url, "/v1/aliases"))[1]
        assert (await pids(running.url) if number > 1 else {}) == before
        assert "Traceback" not in "".join(running.output)
    systemd.heard.close()


async def test_what_one_worker_refuses_all_leave(tmp_path: Path) -> None:
    """The supervisor's own try went well, the other worker's too: none adopts it, and none is another process."""
    flag = tmp_path / "flag"
    program = patched(tmp_path, f"a_worker_takes({str(flag)!r})")
    path = tmp_path / "proxy.yaml"
    bad = settings({"bad": openai("http://127.0.0.1:9"), **LOOP}, ["loop/other"])

    async def chains(url: str) -> set[str]:
        return {(await get(url, "/v1/aliases"))[1].partition('"chain":["')[2][:10] for _ in range(20)}

    config = settings(LOOP, ["loop/echo1"])
    async with process(config, tmp_path, None, "--workers", "2", program=program) as running:
        before = await pids(running.url)
        path.write_text(yaml.safe_dump(bad))
        os.kill(running.pid, signal.SIGHUP)
        await running.logs("providers.bad.base_url: no client can be opened")
        assert flag.exists()
        assert await chains(running.url) == {"loop/echo1"}
        os.kill(running.pid, signal.SIGHUP)
        await running.logs('"reloaded"')
        assert await chains(running.url) == {"loop/other"}
        assert await pids(running.url) == before
        assert "verysecret" not in "".join(running.output)


SLOW_DISK = """
import os, sys
def waits(event, arguments):
    if event == "open" and arguments[0] == {credential!r} and os.path.exists({gate!r}):
        open({gate!r}).read()
sys.addaudithook(waits)
from manallm_proxy.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""Our command on a disk that hangs: who opens the credential waits until a writer of the FIFO `gate` came and went."""


@asynccontextmanager
async def stuck(folder: Path, *arguments: str) -> AsyncIterator[tuple[Process, Path, Path]]:
    """A process whose disk hangs by now; the credential that names its chain; the gate, which a writer opens once."""
    path, gate, program = folder / "CHAIN", folder / "gate", folder / "slow_disk.py"
    path.write_text("loop/m")
    program.write_text(SLOW_DISK.format(credential=str(path), gate=str(gate)))
    environ = {"CREDENTIALS_DIRECTORY": str(folder)}
    async with process(settings(LOOP, ["${CHAIN}"]), folder, environ, *arguments, program=program) as running:
        os.mkfifo(gate)
        yield running, path, gate


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one", "two"])
async def test_a_stuck_file_stops_nobody(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """While it is read all serve; a signal meanwhile means that it is read once more."""
    async with stuck(tmp_path, *arguments) as (running, path, gate):
        os.kill(running.pid, signal.SIGHUP)
        for number, chain in enumerate(["loop/one", "loop/two"], 1):
            with await asyncio.to_thread(gate.open, "w"):  # returns once somebody waits for the disk
                if number == 1:
                    os.kill(running.pid, signal.SIGHUP)
                assert (await get(running.url, "/health"))[0] == 200
                path.write_text(chain)
            await running.logs('"reloaded"', number)
        assert "loop/two" in (await get(running.url, "/v1/aliases"))[1]


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one", "two"])
async def test_a_stuck_file_delays_no_stop(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """SIGTERM while a reload waits for the disk: exit code 0, and nobody is left."""
    async with stuck(tmp_path, *arguments) as (running, *_):
        os.kill(running.pid, signal.SIGHUP)
        os.kill(running.pid, signal.SIGHUP)
        assert (await get(running.url, "/health"))[0] == 200
        os.kill(running.pid, signal.SIGTERM)
        assert await asyncio.wait_for(running.child.wait(), 40) == 0
        assert '"stopped"' in "".join(running.output)
