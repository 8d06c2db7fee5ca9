"""Proxies that ask each other: a chain of them is served, a circle ends after a few rounds and not after thousands."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from manallm_proxy.gateway.hops import HEADER, MOST, hops_of
from tests.cases import every
from tests.ports import free_port
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream


@every(
    [
        ({}, 0),
        ({"User-Agent": "curl/8"}, 0),
        ({"User-Agent": "manallm-proxy/0.1.0"}, 1),
        ({"User-Agent": "manallm-proxy/0.1.0", HEADER: "3"}, 4),
        ({"User-Agent": "front/1", HEADER: "3"}, 4),
        ({HEADER: "x"}, 0),
        ({HEADER: "-1"}, 0),
        ({HEADER: "9" * 400}, 0),
        ({HEADER: "٣"}, 0),
    ]
)
def test_how_many_proxies_a_request_has_passed(headers: dict[str, str], wanted: int) -> None:
    """The first one is known by its name; what is no number counts as none."""
    assert hops_of(CIMultiDictProxy(CIMultiDict(headers))) == wanted


async def test_two_that_fall_back_to_each_other(tmp_path: Path) -> None:
    """Both boxes are off: the client learns that nobody serves, and each proxy has seen a handful of requests."""
    here, there = free_port(), free_port()
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.mkdir()
    chain = ["box/m", "other/mana/test"]
    configs = [
        settings({"box": openai("http://127.0.0.1:9"), "other": openai(f"http://127.0.0.1:{port}")}, chain)
        for port in (there, here)
    ]
    for config, port in zip(configs, (here, there), strict=True):
        config["listen"] = {"port": port}
    async with proxy(configs[0], paths[0]) as one, proxy(configs[1], paths[1]) as other:
        status, answer, _ = await one.chat()
        assert (status, answer["error"]["code"]) == (503, "no_healthy_provider")
        ended = [
            line
            for log in (one.log, other.log)
            for line in map(json.loads, log.getvalue().splitlines())
            if line["event"] == "request"
        ]
        assert len(ended) == MOST + 2
        assert [line.get("error") for line in ended if line["status"] == 502] == ["loop_detected"]
        await one.chat()
        assert one.log.getvalue().count('"loop_detected"') + other.log.getvalue().count('"loop_detected"') == 1


async def test_a_client_sends_no_count_to_a_provider(tmp_path: Path) -> None:
    """Only what another proxy has sent is counted on; a provider learns nothing about plain requests."""
    async with upstream(each(answers)) as cloud, proxy(settings({"cloud": openai(cloud.url)}), tmp_path) as p:
        await p.chat()
        assert HEADER.lower() not in cloud.posts[-1].headers
        body: dict[str, object] = {"messages": []}
        status, _, _ = await p.post("/v1/chat/completions", body, headers={"User-Agent": "manallm-proxy/9"})
        assert (status, cloud.posts[-1].headers[HEADER.lower()]) == (200, "1")
        status, answer, headers = await p.post("/v1/chat/completions", body, headers={HEADER: str(MOST)})
        assert (status, answer["error"]["code"], headers["x-should-retry"]) == (502, "loop_detected", "false")


async def test_a_client_that_sends_the_count_takes_no_proxy_from_others(tmp_path: Path) -> None:
    """The next proxy refuses its requests, or has nobody left for them. Two of those opened that one's circuit."""
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.mkdir()
    async with upstream(each(answers)) as cloud, proxy(settings({"c": openai(cloud.url)}, ["c/m"]), paths[0]) as back:
        async with proxy(settings({"b": openai(back.url)}, ["b/mana/test"]), paths[1]) as front:
            for _ in range(3):
                status, answer, _ = await front.post(
                    "/v1/chat/completions", {"messages": []}, headers={HEADER: str(MOST - 1)}
                )
                assert (status, answer["error"]["attempts"][0]["reason"]) == (503, "http_5xx")
            assert (await front.chat())[0] == 200


async def test_a_circle_that_counts_tokens(tmp_path: Path) -> None:
    """Through a server in front. It walks no chain, and asks the first target: that went on until a time-out."""
    async with aiohttp.ClientSession() as session:

        async def front(connection: Connection, seen: Seen) -> None:
            passed = {name: value for name, value in seen.headers.items() if name in (HEADER.lower(), "user-agent")}
            url = f"http://127.0.0.1:{port}{seen.path}"
            async with session.post(url, data=seen.body, headers=passed) as response:
                await connection.reply(await response.json())

        async with upstream(each(front)) as up:
            config = settings({"front": openai(up.url, speaks=["messages"])}, ["front/mana/test"])
            async with proxy(config, tmp_path) as p:
                port = p.port
                asked = {"model": "mana/test", "messages": [{"role": "user", "content": "hi"}]}
                status, answer, _ = await p.post("/v1/messages/count_tokens", asked)
                assert (status, answer["input_tokens"] > 0) == (200, True)
                assert len(up.posts) == MOST + 1
