"""The live feed: its events, how it goes on after a break, and that nobody waits for a slow reader."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.simulation.virtual_time import run
from manallm_proxy.contract.errors import UnknownModel
from manallm_proxy.contract.events import Event, HealthChanged, ModelLoad, Reloaded, RequestBegun, RequestEnded
from manallm_proxy.gateway import operators
from manallm_proxy.observe import live_feed
from manallm_proxy.observe.live_feed import QUEUE, RATE, LiveFeed
from tests.feed import feed
from tests.proxy import FAST, openai, process, proxy, settings
from tests.upstreams import answers, each, status, upstream
from tests.waiting import until

LOOP = {"loop": {"kind": "loopback"}}
SICK = HealthChanged("gpu", None, "healthy", "unhealthy", "connect_error")


def ended(id_: str = "1") -> RequestEnded:
    return RequestEnded.refused(UnknownModel("x"), id_, "chat/completions")


async def test_nothing_is_done_while_nobody_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even shaped; and nothing is kept."""

    def never(event: Event) -> None:
        raise AssertionError("shaped")

    monkeypatch.setattr(live_feed, "shaped", never)
    LiveFeed(lambda: 0.0)(ended())


async def test_memory_is_given_up_after_the_last_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: a page that is loaded anew goes on where it was."""
    monkeypatch.setattr(live_feed, "LINGER", 0.0)
    followed: list[bool] = []
    told = LiveFeed(lambda: 0.0, followed.append)
    reader = told.subscribe(None, lambda: None)
    told(SICK)
    [first] = await reader.next() or []
    told.leave(reader)
    again = told.subscribe(first.id, lambda: None)
    told(SICK)
    assert [each.kind for each in await again.next() or []] == ["health"]
    told.leave(again)
    await asyncio.sleep(0.01)
    assert followed == [True, False]
    late = told.subscribe(first.id, lambda: None)
    assert [each.kind for each in await late.next() or []] == ["reset"]
    told.close()


async def test_a_slow_reader_is_dropped_and_the_others_are_not() -> None:
    """With its queue full its connection is cut; what it holds is given up."""
    dropped: list[str] = []
    told = LiveFeed(lambda: 0.0)
    told.subscribe(None, lambda: dropped.append("slow"))
    quick = told.subscribe(None, lambda: dropped.append("quick"))
    for _ in range(QUEUE + 1):
        told(SICK)
        await quick.next()
    assert dropped == ["slow"]


async def test_above_the_rate_requests_are_only_counted() -> None:
    """The rest of that second; the next one begins with their number. Health is always told."""
    now = [0.0]
    followed: list[bool] = []
    told = LiveFeed(lambda: now[0], followed.append)
    reader = told.subscribe(None, lambda: None)
    for _ in range(RATE + 20):
        told(ended())
    told(SICK)
    assert [each.kind for each in await reader.next() or []] == [*["request"] * RATE, "health"]
    assert followed == [True, False]
    now[0] = 1.0
    told(ended())
    skipped, request = await reader.next() or []
    assert (skipped.kind, json.loads(skipped.data), request.kind) == ("skipped", {"requests": 20}, "request")
    assert followed == [True, False, True]


def test_what_was_left_out_is_told_though_no_request_follows() -> None:
    """Within about a second: else whoever saw a request begin, and not its end, would take it for one that hangs."""

    async def case() -> None:
        loop = asyncio.get_running_loop()
        told = LiveFeed(loop.time)
        reader = told.subscribe(None, lambda: None)
        for burst in (20, 30):
            for _ in range(RATE + burst):
                told(ended())
            assert len(await reader.next() or []) == RATE
            began = loop.time()
            [skipped] = await reader.next() or []
            assert (skipped.kind, json.loads(skipped.data)) == ("skipped", {"requests": burst})
            assert loop.time() - began <= 1.1
        told.leave(reader)
        told.close()

    run(case())


async def test_what_was_left_out_before_is_not_told_to_who_comes_later() -> None:
    """The number is of the second before, for those who saw it."""
    now = [0.0]
    told = LiveFeed(lambda: now[0])
    told.watch_elsewhere(True)
    for _ in range(RATE + 20):
        told(ended())
    told.watch_elsewhere(False)
    now[0] = 600.0
    reader = told.subscribe(None, lambda: None)
    told(ended())
    assert [each.kind for each in await reader.next() or []] == ["request"]
    told.leave(reader)
    told.close()


@pytest.mark.parametrize("last_id", ["x", "", "-", "abc-1", "abc-99999999999999999999", "é-1", "1-²"])
async def test_an_unknown_id_begins_anew(last_id: str) -> None:
    """Whatever it is; without any there is nothing to say."""
    told = LiveFeed(lambda: 0.0)
    reader = told.subscribe(last_id, lambda: None)
    told(Reloaded())
    assert [each.kind for each in await reader.next() or []] == ["reset", "reload"][not last_id :]


def test_a_load_of_a_model_is_an_event() -> None:
    """Of a server that loads on demand."""
    told = live_feed.shaped(ModelLoad("box", "m", "begun"))
    assert told == ("load", {"provider": "box", "model": "m", "event": "begun"})


def test_what_a_client_sends_cannot_break_out() -> None:
    """A model's name with line breaks is a JSON string."""
    _, data = live_feed.shaped(RequestBegun("1", "a\n\ndata: x\ud800", None)) or ("", {})
    assert data["model"] == "a\n\ndata: x?"


async def test_requests_health_and_reloads(tmp_path: Path) -> None:
    """As they happen, each event with an id of its own."""
    async with upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad, upstream(each(answers)) as good:
        config = settings({"bad": openai(bad.url), "good": openai(good.url)}, health={"failure_threshold": 1})
        async with proxy(config, tmp_path) as p, feed(p.url) as live:
            await p.stream(model="mana/test")
            await p.chat(model="mana/nosuch")
            await p.app.reload()
            p.write({**config, "default": "mana/nosuch"})
            await p.app.reload()
            await live.until(lambda: len(live.of("reload")) == 2)
            begun, committed, over, unknown = live.of("request")
            assert [each["phase"] for each in (begun, committed, over)] == ["begun", "committed", "ended"]
            assert len({each["id"] for each in (begun, committed, over)}) == 1
            assert (begun["model"], begun["alias"], begun["target"]) == ("mana/test", "mana/test", None)
            assert committed["target"] == over["target"] == "good/m"
            assert (over["outcome"], over["status"]) == ("ok", 200)
            assert (unknown["phase"], unknown["outcome"], unknown["status"]) == ("ended", "error", 404)
            health = live.of("health")
            assert [(each["provider"], each["model"], each["now"]) for each in health] == [("bad", "m", "unhealthy")]
            assert [each["result"] for each in live.of("reload")] == ["ok", "refused"]
            assert len({id_ for id_, _, _ in live.events}) == len(live.events)


async def test_it_goes_on_after_a_break(tmp_path: Path) -> None:
    """What happened meanwhile comes first; an id of another process begins anew and says so."""
    async with proxy(settings(LOOP), tmp_path) as p:
        async with feed(p.url) as live:
            await p.chat()
            await live.until(lambda: len(live.events) == 3)
            last_id = live.events[0][0]
        await p.chat(model="mana/nosuch")
        async with feed(p.url, last_id) as again, feed(p.url, "ffffffffffff-7") as stranger:
            await again.until(lambda: len(again.events) == 3)
            assert [data["phase"] for data in again.of("request")] == ["committed", "ended", "ended"]
            await stranger.until(lambda: stranger.events)
            assert [kind for _, kind, _ in stranger.events] == ["reset"]


async def test_it_ends_at_once_on_a_drain(tmp_path: Path) -> None:
    """A page that is open holds up no restart."""
    async with proxy(settings(LOOP), tmp_path) as p, feed(p.url) as live:
        p.app.stop()
        await asyncio.wait_for(live.ended.wait(), 0.4)


async def test_on_a_drain_it_begins_for_nobody(tmp_path: Path) -> None:
    """A page comes back at once when its feed has ended, over a connection that is still open."""
    async with proxy(settings(LOOP), tmp_path) as p:
        p.app.gateway.serving.draining = True
        async with p.client.get(f"{p.url}/v1/events") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "shutting_down")
            assert response.headers["Retry-After"] == "1"


async def test_it_has_so_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told when to come again, and has a place once another has left."""
    monkeypatch.setattr(operators, "READERS_LIMIT", 1)
    async with proxy(settings(LOOP), tmp_path) as p:
        async with feed(p.url), p.client.get(f"{p.url}/v1/events") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert (await response.json())["error"]["type"] == "overloaded_error"
        await until(lambda: not p.app.feed.readers)
        async with feed(p.url):
            assert len(p.app.feed.readers) == 1


async def test_a_reader_that_reads_nothing_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a real socket with small buffers: requests go on, and its place is free again."""
    async with proxy(settings(LOOP), tmp_path) as p:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", p.port))
            await loop.sock_sendall(client, b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(5):
                while not p.app.feed.readers:
                    await asyncio.sleep(0.01)
            filler = HealthChanged("gpu", "m" * 5000, "healthy", "unhealthy", None)
            async with asyncio.timeout(20):
                while p.app.feed.readers:
                    for _ in range(200):
                        p.app.observe(filler)
                    assert (await p.chat())[0] == 200
                    await asyncio.sleep(0.01)


def keyed(**keys: bool) -> dict[str, Any]:
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "admin": admin}
        for name, admin in keys.items()
    ]
    return settings(LOOP, auth={"keys": entries})


async def test_with_keys_it_wants_an_admins(tmp_path: Path) -> None:
    """401 without one, 403 for another; and a reader whose key is revoked is shown out."""
    async with proxy(keyed(root=True, alice=False), tmp_path) as p:
        for path in ("/v1/events", "/v1/requests", "/v1/requests/x", "/v1/explain"):
            for key, wanted in ((None, 401), ("nobody", 401), ("alice", 403)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                async with p.client.get(p.url + path, headers=headers) as response:
                    assert response.status == wanted, path
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
        async with feed(p.url, Authorization="Bearer root") as live:
            await p.chat()
            await live.until(lambda: live.events)
            p.write(keyed(other=True))
            await p.app.reload()
            await asyncio.wait_for(live.ended.wait(), 2)
            assert live.of("reload") == []


async def test_head(tmp_path: Path) -> None:
    """It answers at once, and holds nothing open."""
    async with proxy(settings(LOOP), tmp_path) as p:
        async with p.client.head(f"{p.url}/v1/events") as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert not p.app.feed.readers


async def test_several_workers_are_one_feed(tmp_path: Path) -> None:
    """Whichever worker serves it: each request once, a reload once; and one list of requests."""
    async with process({**FAST, **settings(LOOP)}, tmp_path, None, "--workers", "2") as running:
        async with feed(running.url) as live:
            await asyncio.sleep(0.2)  # the tempo of a person; the others learn within milliseconds that one looks on
            chats = await asyncio.gather(*(chat(running.url) for _ in range(30)))
            assert set(chats) == {200}

            def over() -> set[str]:
                return {data["id"] for data in live.of("request") if data["phase"] == "ended"}

            await live.until(lambda: len(over()) == 30)
            os.kill(running.pid, signal.SIGHUP)
            await live.until(lambda: live.of("reload"))
            assert live.of("reload") == [{"result": "ok"}]
            first = live.events[0][0]
            for _ in range(6):  # at whichever worker it comes back
                async with feed(running.url, first) as again:
                    await again.until(lambda: again.of("reload"))
                    assert again.of("reset") == []
                    assert {id_ for id_, _, _ in again.events} == {id_ for id_, _, _ in live.events[1:]}
            for _ in range(4):
                listed = await get(f"{running.url}/v1/requests")
                assert {row["id"] for row in listed["requests"]} == over()
                one = await get(f"{running.url}/v1/requests/{listed['requests'][-1]['id']}")
                assert [line["model"] for line in one["attempts"]] == ["loop/m"]


async def chat(url: str) -> int:

    async with aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json={"messages": []}) as response:
            return response.status


async def get(url: str) -> Any:

    async with aiohttp.ClientSession() as client, client.get(url) as response:
        assert response.status == 200
        return await response.json()
