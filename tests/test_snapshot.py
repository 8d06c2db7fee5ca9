"""Generations of the configuration: what a reload keeps, and when the old one goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from manallm_proxy.client import HttpUpstream
from manallm_proxy.errors import UnknownModel
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream


def upstream_of(p: Proxy, name: str) -> HttpUpstream:
    found = p.app.web.snapshot.upstreams[name]
    assert isinstance(found, HttpUpstream)
    return found


async def closed(gone: HttpUpstream) -> None:
    async with asyncio.timeout(2):
        while not gone._session.closed:
            await asyncio.sleep(0.01)


async def test_what_is_unchanged_is_kept_and_what_went_is_closed(tmp_path: Path) -> None:
    """Connections, health and counters of one; the other's session ends behind its last request."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await answers(connection, seen)

    async with upstream(each(answers)) as stays, upstream(each(waits)) as goes:
        config = settings({"stays": openai(stays.url), "goes": openai(goes.url)})
        async with proxy(config, tmp_path) as p:
            kept, gone = upstream_of(p, "stays"), upstream_of(p, "goes")
            health = p.app.web.snapshot.board.providers["stays"]
            in_flight = asyncio.ensure_future(p.chat(model="goes/m"))
            async with asyncio.timeout(2):
                while not goes.posts:
                    await asyncio.sleep(0.01)
            p.write(settings({"stays": openai(stays.url)}, health={"failure_threshold": 5}))
            p.app.reload()
            assert upstream_of(p, "stays") is kept
            assert p.app.web.snapshot.board.providers["stays"] is health
            assert health.policy.failure_threshold == 5
            assert not gone._session.closed
            goes.go.set()
            assert (await in_flight)[0] == 200
            await closed(gone)
            assert (await p.chat())[0] == 200
            assert not kept._session.closed


async def test_a_changed_provider_begins_anew(tmp_path: Path) -> None:
    """Another key is another provider."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url, api_key="a")}), tmp_path) as p:
        before = upstream_of(p, "gpu")
        p.write(settings({"gpu": openai(gpu.url, api_key="b")}))
        p.app.reload()
        await p.chat()
        assert gpu.posts[0].headers["authorization"] == "Bearer b"
        await closed(before)


async def test_listen_cannot_be_reloaded(tmp_path: Path) -> None:
    """Refused loudly, and nothing else of that file is taken either."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        p.write(settings({"other": openai(gpu.url)}, listen={"port": 1}))
        p.app.reload()
        assert list(p.app.web.snapshot.upstreams) == ["gpu"]
        assert "restart to change" in p.log.getvalue()


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
    """Contract, section 4.1: an alias, provider/model, a bare name, or nobody's."""
    config = settings({"gpu": openai("http://127.0.0.1:9"), "cloud": openai("http://127.0.0.1:9")})
    async with proxy({**config, "default_provider": "cloud"}, tmp_path) as p:
        snapshot = p.app.web.snapshot
        if target is not None:
            assert str(snapshot.resolve(asked).entries[0].target) == target
            return
        with pytest.raises(UnknownModel) as told:
            snapshot.resolve(asked)
        if asked.startswith("mana/"):
            assert "Did you mean mana/test?" in told.value.message
