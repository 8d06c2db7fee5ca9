"""Generations of the configuration: what a reload keeps, and when the old one goes."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manallm_proxy.config.load import load
from manallm_proxy.contract.errors import UnknownModel
from manallm_proxy.contract.events import Crashed, Event
from manallm_proxy.contract.provider import ModelInfo
from manallm_proxy.gateway.named_chains import LIMIT
from manallm_proxy.gateway.opening import close_all
from manallm_proxy.observe.log import Logs
from manallm_proxy.process.app import App
from manallm_proxy.providers.http_provider import HttpProvider
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, chunk, each, upstream
from tests.waiting import until


def upstream_of(p: Proxy, name: str) -> HttpProvider:
    found = p.app.gateway.generation.providers[name]
    assert isinstance(found, HttpProvider)
    return found


async def closed(gone: HttpProvider) -> None:
    await until(lambda: gone._connections.closed)


async def test_what_is_unchanged_is_kept_and_what_went_is_closed(tmp_path: Path) -> None:
    """Connections, health and counters of one; the other's session ends after its last request."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await answers(connection, seen)

    async with upstream(each(answers)) as stays, upstream(each(waits)) as goes:
        config = settings({"stays": openai(stays.url), "goes": openai(goes.url)})
        async with proxy(config, tmp_path) as p:
            kept, gone = upstream_of(p, "stays"), upstream_of(p, "goes")
            health = p.app.gateway.generation.registry.providers["stays"]
            in_flight = asyncio.ensure_future(p.chat(model="goes/m"))
            await until(lambda: goes.posts)
            p.write(settings({"stays": openai(stays.url)}, health={"failure_threshold": 5}))
            await p.app.reload()
            assert upstream_of(p, "stays") is kept
            assert p.app.gateway.generation.registry.providers["stays"] is health
            assert health.policy.failure_threshold == 5
            assert not gone._connections.closed
            goes.go.set()
            assert (await in_flight)[0] == 200
            await closed(gone)
            assert (await p.chat())[0] == 200
            assert not kept._connections.closed


async def test_two_reloads_do_not_cut_what_began_before_the_first(tmp_path: Path) -> None:
    """The middle generation has no request of its own, but the provider's connections are still in use."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        await connection.upstream.go.wait()
        await connection.chunk(chunk(finish="stop") + b"data: [DONE]\n\n")
        await connection.end()

    async with upstream(each(waits)) as goes, upstream(each(answers)) as stays:
        config = settings({"goes": openai(goes.url), "stays": openai(stays.url)})
        async with proxy(config, tmp_path) as p:
            gone = upstream_of(p, "goes")
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                assert b"one" in await response.content.readany()
                await p.app.reload()
                p.write(settings({"stays": openai(stays.url)}))
                await p.app.reload()
                await asyncio.sleep(0)
                assert not gone._connections.closed
                goes.go.set()
                assert (await asyncio.wait_for(response.read(), 3)).endswith(b"data: [DONE]\n\n")
            await closed(gone)


async def test_one_line_for_one_change_across_generations(tmp_path: Path) -> None:
    """A request of the old generation sees the failure that the new one has reported already."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        connection.reset()

    async with upstream(each(waits)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, health={"failure_threshold": 1})
        async with proxy(config, tmp_path) as p:
            old = asyncio.ensure_future(p.chat())
            await until(lambda: gpu.posts)
            await p.app.reload()
            new = asyncio.ensure_future(p.chat())
            await until(lambda: len(gpu.posts) >= 2)
            gpu.go.set()
            await asyncio.gather(old, new)
            assert p.log.getvalue().count('"now":"unhealthy"') == 1


@pytest.mark.parametrize("how", ["removed", "moved"])
async def test_what_the_last_requests_of_a_provider_find_concerns_nobody(how: str, tmp_path: Path) -> None:
    """A reload has removed it, or the name means another server by now: neither log nor other processes get a word."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        connection.reset()

    sent: list[object] = []
    async with upstream(each(waits)) as gpu, upstream(each(answers)) as other:
        before = settings({"gpu": openai(gpu.url), "other": openai(other.url)}, health={"failure_threshold": 1})
        async with proxy(before, tmp_path) as p:
            p.app.gateway.generation.registry.broadcast = lambda *found: sent.append(found)
            last = asyncio.ensure_future(p.chat())
            await until(lambda: gpu.posts)
            for _ in range(2):  # it may be several generations old
                moved = {"gpu": openai(other.url)} if how == "moved" else {}
                p.write({**settings({**moved, "other": openai(other.url)}), "health": before["health"]})
                await p.app.reload()
            gpu.go.set()
            status, _, headers = await last
            assert (status, headers["x-mana-llm-resolved"]) == (200, "other/m")
            assert (sent, '"now":"unhealthy"' in p.log.getvalue()) == ([], False)
            states = {name: row["status"] for name, row in (await p.get("/v1/health"))[1]["providers"].items()}
            assert states == dict.fromkeys(["gpu", "other"] if how == "moved" else ["other"], "healthy")


async def test_a_reload_takes_the_logs_level(tmp_path: Path) -> None:
    """At once, for the line of the reload itself."""
    async with proxy(settings({"l": {"kind": "loopback"}}, log={"level": "error"}), tmp_path) as p:
        assert "started" not in p.log.getvalue()
        p.write(settings({"l": {"kind": "loopback"}}, log={"level": "debug", "format": "human"}))
        await p.app.reload()
        assert re.search(r" info +reloaded ", p.log.getvalue())


async def test_a_moved_provider_forgets_its_models(tmp_path: Path) -> None:
    """The new server is not judged by the old one's list."""
    async with upstream(each(answers), ["old"]) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        assert "gpu/old" in str(await p.get("/v1/models"))
        p.write(settings({"gpu": openai("http://127.0.0.1:9")}))
        await p.app.reload()
        assert "gpu/old" not in str(await p.get("/v1/models"))


async def test_a_reload_in_the_first_round_is_probed_too(tmp_path: Path) -> None:
    """The providers that it brought do not wait for a whole interval."""

    async def hangs(connection: Connection) -> None:
        await connection.gone()

    async with upstream(hangs) as slow, upstream(each(answers), ["new"]) as other:
        path = tmp_path / "proxy.yaml"
        path.write_text(yaml.safe_dump(settings({"slow": openai(slow.url)}), sort_keys=False))
        app = App(load(path, {}), {}, Logs.open("debug", "json", io.StringIO()))
        running = asyncio.ensure_future(app.run())
        await until(lambda: slow.connections)
        path.write_text(yaml.safe_dump(settings({"other": openai(other.url)}), sort_keys=False))
        await app.reload()
        await app.ready(running)
        assert [m.id for m in app.gateway.generation.catalog.models("other")] == ["new"]
        app.stop()
        app.reload()  # nothing any more
        assert app._stop.is_set()
        app.stop()
        await asyncio.wait_for(running, 5)


async def test_a_changed_provider_begins_anew(tmp_path: Path) -> None:
    """Another key is another provider."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url, api_key="a")}), tmp_path) as p:
        before = upstream_of(p, "gpu")
        p.write(settings({"gpu": openai(gpu.url, api_key="b")}))
        await p.app.reload()
        await p.chat()
        assert gpu.posts[0].headers["authorization"] == "Bearer b"
        await closed(before)


async def test_what_is_read_at_the_start_only_cannot_be_reloaded(tmp_path: Path) -> None:
    """Refused loudly, each by its name, and nothing else of that file is taken either."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        p.write(settings({"other": openai(gpu.url)}, listen={"port": 1}, limits={"header": "8KiB"}))
        await p.app.reload()
        assert list(p.app.generation.providers) == ["gpu"]
        for key in ("listen.port", "limits.header"):
            assert f"{key}: cannot be changed by a reload; restart to change it" in p.log.getvalue()


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("", "gpu/m"),
        ("mana/test", "gpu/m"),
        ("gpu/org/m:7b", "gpu/org/m:7b"),
        ("gemma3:4b", "cloud/gemma3:4b"),
        ("mana/tset", None),
        ("nosuch/m", None),
        ("gpu/", None),
        ("/m", None),
        ("a b", None),
        ("gpu/m\u2028", None),
    ],
)
async def test_what_a_name_means(tmp_path: Path, asked: str, target: str | None) -> None:
    """An alias, provider/model, a bare name of the default provider, or unknown."""
    config = settings({"gpu": openai("http://127.0.0.1:9"), "cloud": openai("http://127.0.0.1:9")})
    async with proxy({**config, "default_provider": "cloud"}, tmp_path) as p:
        generation = p.app.gateway.generation
        if target is not None:
            first = generation.resolve(asked)
            assert str(first.entries[0].target) == target
            assert generation.resolve(asked) is first
            return
        with pytest.raises(UnknownModel) as told:
            generation.resolve(asked)
        if asked.startswith("mana/"):
            assert "Did you mean mana/test?" in told.value.message


async def test_without_defaults_a_whole_name_is_needed(tmp_path: Path) -> None:
    """Neither a default alias nor a default provider: no name and a bare one are 404, an answer and no bug of ours."""
    config = settings({"gpu": openai("http://127.0.0.1:9")})
    del config["default"]
    async with proxy(config, tmp_path) as p:
        for asked in ("", "gemma3:4b"):
            code, body, _ = await p.chat(model=asked)
            assert (code, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


async def test_what_a_name_means_is_remembered_within_bounds_and_not_where_lists_decide(tmp_path: Path) -> None:
    """A thousand names are made once each; one with Ollama's tag is looked up in the provider's list every time."""
    async with proxy(settings({"gpu": openai("http://127.0.0.1:9")}), tmp_path) as p:
        generation = p.app.gateway.generation
        first = generation.resolve("gpu/m0")
        for number in range(1, LIMIT):
            generation.resolve(f"gpu/m{number}")
        assert generation.resolve("gpu/m0") is first
        generation.resolve(f"gpu/m{LIMIT}")
        again = generation.resolve("gpu/m0")
        assert again is not first
        assert again == first
        assert str(generation.resolve("gpu/m:latest").entries[0].target) == "gpu/m:latest"
        generation.catalog.learn("gpu", (ModelInfo("m"),))
        assert str(generation.resolve("gpu/m:latest").entries[0].target) == "gpu/m"


class Closing:
    """A provider whose `close` fails, hangs for a moment, or works."""

    def __init__(self, error: Exception | None = None, waits: bool = False) -> None:
        self.error, self.waits, self.closed = error, waits, False

    async def close(self) -> None:
        if self.waits:
            await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        self.closed = True


async def test_one_failing_close_keeps_no_other_open() -> None:
    """All are closed, and each failure is reported."""
    events: list[Event] = []
    first, second = ValueError("one"), OSError("two")
    providers: list[Any] = [Closing(first), Closing(), Closing(second, waits=True), Closing(waits=True)]
    await close_all(providers, events.append)
    assert [provider.closed for provider in providers] == [False, True, False, True]
    assert events == [Crashed("closing a provider", first), Crashed("closing a provider", second)]
