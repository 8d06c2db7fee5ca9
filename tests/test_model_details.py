"""Capabilities that an older Ollama tells of one model at a time: asked for once, in no client's time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider_errors import BadResponse, MissingModel, ProviderError
from manallm_proxy.http_client.api import KEEP_ALIVE_TIMEOUT, Address
from manallm_proxy.providers import host_client
from manallm_proxy.providers.host_client import HostClient
from manallm_proxy.routing.catalog import Catalog
from tests.proxy import proxy, settings
from tests.upstreams import Connection, answers, upstream
from tests.waiting import until

SHOWN = {"model_info": {"general.architecture": "llama", "llama.context_length": 8192}, "capabilities": ["completion"]}
NAMES = [f"m{n}" for n in range(6)]


class Older:
    """Ollama 0.12: its list has no capabilities. ``shown``: the models that it was asked about."""

    def __init__(self, answer: Any = SHOWN, status: str = "200 OK", *, hangs: bool = False) -> None:
        self.answer, self.status, self.hangs = answer, status, hangs
        self.shown: list[str] = []
        self.modified_at = "2026-11-28T03:18:12Z"

    async def script(self, connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.path == "/api/tags":
                rows = [{"name": name, "model": name, "modified_at": self.modified_at} for name in NAMES]
                await connection.reply({"models": rows})
            elif seen.path == "/v1/models":
                await connection.reply({"data": [{"id": name} for name in NAMES]})
            elif seen.path == "/api/show":
                self.shown.append(seen.json["model"])
                if self.hangs:
                    await connection.gone()
                    return
                await connection.reply(self.answer, self.status)
            elif seen.method == "GET":
                await connection.reply({})
            else:
                await answers(connection, seen)


@pytest.mark.parametrize("api", ["native", "openai"])
async def test_each_model_is_asked_for_once(api: str, tmp_path: Path) -> None:
    """Soon after the start, without traffic; again when it was changed."""
    older = Older()
    async with upstream(older.script, shows=True) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url, "api": api}}, ["gpu/m0"])
        config["health"] = {"probe_interval": 0.05}
        async with proxy(config, tmp_path) as p:
            assert sorted(older.shown) == NAMES
            lists = len(gpu.seen)
            await until(lambda: len(gpu.seen) > lists + 4)
            assert sorted(older.shown) == NAMES
            models = p.app.gateway.generation.catalog.models("gpu")
            assert {(model.capabilities, model.context_length) for model in models} == {
                (frozenset({"completion"}), 8192)
            }
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            status, body, _ = await p.chat(tools=tools)
            assert (status, body["error"]["code"]) == (400, "unsupported_capability")
            assert gpu.posts == [] or all(seen.path == "/api/show" for seen in gpu.posts)
            if api == "native":
                older.modified_at = "2026-11-29T03:18:12Z"
                await until(lambda: len(older.shown) == 2 * len(NAMES))
        # those that asked for it, too, and long before the idle ones time out
        await until(lambda: all(connection.closed.is_set() for connection in gpu.connections), KEEP_ALIVE_TIMEOUT / 2)


@pytest.mark.parametrize(
    ("answer", "status"),
    [({"capabilities": None}, "200 OK"), ("a page", "200 OK"), ({"error": "not found"}, "404 Not Found")],
)
async def test_what_is_not_told_is_not_denied(answer: Any, status: str, tmp_path: Path) -> None:
    """An Ollama too old for it, or a server that only imitates one, is not asked again and again."""
    older = Older(answer if isinstance(answer, dict) else b"<html>", status)
    async with upstream(older.script, shows=True) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url}}, ["gpu/m0"])
        config["health"] = {"probe_interval": 0.05}
        async with proxy(config, tmp_path) as p:
            lists = len(gpu.seen)
            await until(lambda: len(gpu.seen) > lists + 4)
            assert sorted(older.shown) == NAMES
            assert {model.capabilities for model in p.app.gateway.generation.catalog.models("gpu")} == {None}


async def test_who_could_not_answer_is_asked_again(tmp_path: Path) -> None:
    """A queue that is full, a reverse proxy without its Ollama, a limit: they say nothing about the model."""
    for status in ("503 Service Unavailable", "502 Bad Gateway", "504 Gateway Timeout", "429 Too Many Requests"):
        older = Older({}, status)
        async with upstream(older.script, shows=True) as gpu:
            config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url}}, ["gpu/m0"])
            config["health"] = {"probe_interval": 0.05}
            async with proxy(config, tmp_path) as p:
                older.answer, older.status = SHOWN, "200 OK"
                await until(partial(_knows_all, p.app.gateway.generation.catalog))


def _knows_all(catalog: Catalog) -> bool:
    return all(model.capabilities for model in catalog.models("gpu"))


async def test_a_server_that_hangs_delays_no_start(tmp_path: Path) -> None:
    """Its list is there all the same."""
    older = Older(hangs=True)
    async with upstream(older.script, shows=True) as gpu:
        config = settings({"gpu": {"kind": "ollama", "base_url": gpu.url}}, ["gpu/m0"])
        config["health"] = {"probe_timeout": 0.2}
        began = asyncio.get_running_loop().time()
        async with proxy(config, tmp_path) as p:
            assert asyncio.get_running_loop().time() - began < 3
            assert len(list(p.app.gateway.generation.catalog.models("gpu"))) == len(NAMES)


async def test_an_answer_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else listens there may send for ever: it is the provider's failure, and its connection is closed."""
    monkeypatch.setattr(host_client, "BODY_LIMIT", 1 << 20)

    async def endless(connection: Connection) -> None:
        await connection.request()
        await connection.head(content_type="application/json")
        while True:
            await connection.chunk(b" " * 65536)

    async with upstream(endless, shows=True) as gpu:
        client = HostClient(
            Address("gpu", gpu.url), lambda status, headers, body: MissingModel("", provider_status=404)
        )
        with pytest.raises(BadResponse, match="does not end"):
            await client.ask("GET", "api/ps", None, 5)
        await asyncio.wait_for(gpu.connections[0].closed.wait(), 5)
        await client.close()


async def test_a_refusal_holds_nothing() -> None:
    """No cycle that the collector would have to find: those of a thousand models held the loop for 20 ms."""
    told: list[weakref.ref[ProviderError]] = []

    def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        error = MissingModel("no such model", provider_status=status)
        told.append(weakref.ref(error))
        return error

    async with upstream(Older(status="404 Not Found").script, shows=True) as gpu:
        client = HostClient(Address("gpu", gpu.url), failure)
        gc.disable()
        try:
            with contextlib.suppress(MissingModel):
                await client.ask("POST", "api/show", b'{"model": "m0"}', 5)
            assert [error() for error in told] == [None]
        finally:
            gc.enable()
            await client.close()
