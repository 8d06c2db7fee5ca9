"""A provider at the proxy's own address: one request would become thousands. What a newcomer does who sets OLLAMA_HOST
to the proxy for Ollama's clients, and starts the proxy in the same shell."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from manallm_proxy.cli import discovery
from manallm_proxy.cli.server_scan import scan_servers
from manallm_proxy.config.found_servers import address_of
from manallm_proxy.config.load import load
from manallm_proxy.config.model import Listen
from manallm_proxy.config.own_address import MISTAKE, is_own
from manallm_proxy.config.structure import ConfigError
from tests.command import STDOUT, start
from tests.ports import free_port
from tests.proxy import run
from tests.upstreams import Connection, upstream


@pytest.mark.parametrize(
    ("listen", "url", "wanted"),
    [
        (Listen(), "http://127.0.0.1:3025/v1", True),
        (Listen(), "http://localhost:3025", True),
        (Listen(), "http://0.0.0.0:3025", True),
        (Listen(host="localhost"), "http://[::1]:3025", True),
        (Listen(host="0.0.0.0"), "http://127.0.0.1:3025", True),
        (Listen(host="::"), "http://localhost:3025", True),
        (Listen(host="::"), "http://[::]:3025", True),
        (Listen(host="::"), "http://127.0.0.1:3025", False),
        (Listen(host="::"), "http://0.0.0.0:3025", False),
        (Listen(host="0.0.0.0"), "http://[::1]:3025", False),
        (Listen(host="0.0.0.0"), "http://127.0.0.2:3025", True),
        (Listen(host="192.168.1.5"), "http://192.168.1.5:3025/v1", True),
        (Listen(port=80), "http://127.0.0.1/v1", True),
        (Listen(host="gpu.test"), "http://GPU.test:3025/v1", True),
        (Listen(host="gpu.test"), "http://box.test:3025/v1", False),
        (Listen(), "http://127.0.0.1:port", False),
        (Listen(), "http://127.0.0.1:3026", False),
        (Listen(), "https://127.0.0.1:3025", False),
        (Listen(), "http://127.0.0.2:3025", False),
        (Listen(), "http://[::1]:3025", False),
        (Listen(), "http://192.168.1.5:3025", False),
        (Listen(host="192.168.1.5"), "http://127.0.0.1:3025", False),
        (Listen(host="0.0.0.0"), "http://192.168.1.5:3025", False),
        (Listen(unix="/run/x.sock"), "http://127.0.0.1:3025", False),
        (Listen(port=0), "http://127.0.0.1/v1", False),
    ],
)
def test_own_address(listen: Listen, url: str, wanted: bool) -> None:
    """Whatever reaches the listening socket for certain; another port, address or machine does not."""
    assert is_own(listen, url) is wanted


def test_all_addresses_of_this_machine_are_one() -> None:
    """OLLAMA_URL with the address on which Ollama listens made two providers of one server."""
    urls = ("http://0.0.0.0:11434", "http://[::]:11434/", "http://localhost:11434/v1", "http://127.0.0.1:11434")
    assert {address_of(url) for url in urls} == {"127.0.0.1:11434"}
    assert address_of("http://gpu") == address_of("http://gpu:80/v1/") != address_of("https://gpu")
    assert address_of("https://gpu/v1") == address_of("https://GPU:443/")


def test_a_provider_at_our_own_address_is_a_mistake(tmp_path: Path) -> None:
    """By ``listen``, or by the command line's port; behind a forward proxy it is another machine's loopback."""
    file = tmp_path / "proxy.yaml"
    text = "providers: {me: {kind: openai, base_url: 'http://localhost:3025/v1'}}\naliases: {mana/a: {chain: [me/x]}}\n"
    file.write_text(text)
    for port in (None, 3025):
        with pytest.raises(ConfigError) as error:
            load(file, {}, port=port)
        assert error.value.located == (f"providers.me.base_url: {MISTAKE} ({file}:1)",)
    load(file, {}, port=3026)
    load(file, {"LISTEN_FDS": "1"})  # on a socket of systemd's, wherever that is
    file.write_text(text.replace("/v1'", "/v1', proxy: 'http://10.0.0.1:3128'"))
    load(file, {})


async def test_check_knows_where_another_port_is_served(tmp_path: Path) -> None:
    """A second proxy, in front of the first one, which has the usual port: `serve --port` alone knows of its own."""
    file = tmp_path / "proxy.yaml"
    first = "{first: {kind: openai, base_url: 'http://localhost:3025/v1'}}"
    file.write_text(f"providers: {first}\naliases: {{mana/a: {{chain: [first/x]}}}}\n")
    for options, code in (([], 78), (["--port", "3026"], 0), (["--host", "127.0.0.2"], 0)):
        found, output = await run("check", "--config", str(file), *options)
        assert found == code, output
        assert (MISTAKE in output) is (code == 78)


async def other_proxy(connection: Connection) -> None:
    """As a manallm-proxy answers Ollama's clients."""
    while (seen := await connection.request()) is not None:
        if seen.path == "/api/tags":
            await connection.reply({"models": [{"name": "mana/a:latest", "model": "mana/a:latest"}]})
        else:
            await connection.reply({"object": "list", "data": [{"id": "mana/a", "owned_by": "manallm"}]})


async def test_a_proxy_in_ollama_host_is_no_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is for Ollama's clients, which may well talk to a proxy."""
    monkeypatch.setattr(discovery, "USUAL", ())
    async with upstream(other_proxy) as proxy:
        around = await scan_servers({"OLLAMA_HOST": f"127.0.0.1:{proxy.port}"})
    assert around.lines() == [f"127.0.0.1:{proxy.port} is a manallm-proxy (OLLAMA_HOST): passed over"]
    assert around.environ({}) == {}


async def test_our_own_address_in_ollama_host_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the start nothing answers there yet."""
    monkeypatch.setattr(discovery, "USUAL", ())
    around = await scan_servers({"OLLAMA_HOST": "localhost:3025"}, Listen())
    assert around.lines() == ["OLLAMA_HOST is http://localhost:3025, which is this proxy itself: passed over"]
    assert around.environ({}) == {}


async def test_serve_in_a_shell_that_is_set_up_for_clients(tmp_path: Path) -> None:
    """The quickstart starts, as it would without the variable; a configuration that names itself does not."""
    port = str(free_port())
    environ = {k: v for k, v in os.environ.items() if k not in ("JOURNAL_STREAM", "MANALLM_CONFIG", "OLLAMA_URL")}
    environ["OLLAMA_HOST"] = f"http://127.0.0.1:{port}"
    child = await start("serve", "--port", port, environ=environ, folder=tmp_path, stderr=STDOUT)
    assert child.stdout is not None
    said = ""
    async with asyncio.timeout(20):
        while "In a browser" not in said:
            line = await child.stdout.readline()
            assert line, said
            said += line.decode()
    child.kill()
    await child.communicate()
    assert "which is this proxy itself" in said
    assert f"nothing answers at http://127.0.0.1:{port}" not in said
    assert " mana/fast-text:latest" not in said
    code, output = await run("serve", "--port", port, environ={"OLLAMA_URL": environ["OLLAMA_HOST"]})
    assert code == 78
    assert f"providers.ollama.base_url: {MISTAKE}" in output
