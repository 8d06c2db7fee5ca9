"""The last requests: what is kept of each, what is not, and how they are filtered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from attrs import define

from manallm_proxy.contract.attempts import AttemptRecord
from manallm_proxy.contract.errors import AdminOnly, UnknownRoute
from manallm_proxy.contract.events import RequestEnded
from manallm_proxy.contract.targets import Target
from manallm_proxy.observe.request_log import KEPT, RequestLog
from manallm_proxy.routing.health import Permit
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, status, upstream
from tests.waiting import until

LOOP = {"loop": {"kind": "loopback"}}


def ended(id_: str, **more: Any) -> RequestEnded:
    event = RequestEnded.refused(UnknownRoute("x"), id_, "chat/completions")
    for name, value in more.items():
        setattr(event, name, value)
    return event


def test_memory_is_bounded() -> None:
    """In number, and in what a client may put into one."""
    log = RequestLog(lambda: 0.0)
    for number in range(KEPT + 5):
        log(ended(str(number), requested="x" * 100_000))
    rows = log.rows()
    assert (len(rows), rows[0]["id"], rows[-1]["id"]) == (KEPT, str(KEPT + 4), "5")
    assert len(rows[0]["model"]) == 256


def test_what_came_to_no_door_is_not_kept() -> None:
    """A port scan, or a wrong filter of this very list, pushes nothing out."""
    log = RequestLog(lambda: 0.0)
    log(RequestEnded.refused(UnknownRoute("x"), "1"))
    log(RequestEnded.refused(UnknownRoute("x"), "2", "/v1/requests"))
    assert log.rows() == []


def test_half_a_character_can_be_shown() -> None:
    """JSON allows a client to send one."""
    log = RequestLog(lambda: 0.0)
    log(ended("1", requested="a\ud800b"))
    assert log.rows()[0]["model"] == "a?b"


def test_an_attempt_has_its_time_on_the_requests_own_line() -> None:
    """In milliseconds since the request came: one that failed, one that was skipped, and the one at which it ended."""
    log = RequestLog(lambda: 0.0)
    passed = [
        AttemptRecord("a/m", "http_5xx", 500, "status 500", 0.25, 100.5),
        AttemptRecord("b/m", "cooling", at=100.75),
    ]
    log(ended("1", log=passed, started=100.0, last=Target("c", "m"), last_at=100.875, duration=1.0, outcome="ok"))
    [row] = log.rows()
    assert row["attempts"] == [
        {"model": "a/m", "reason": "http_5xx", "detail": "status 500", "at_ms": 500.0, "ms": 250.0},
        {"model": "b/m", "reason": "cooling", "detail": None, "at_ms": 750.0, "ms": None},
        {"model": "c/m", "reason": None, "detail": None, "at_ms": 875.0, "ms": 125.0},
    ]


async def test_each_request_with_its_attempts(tmp_path: Path) -> None:
    """Which target failed, was skipped, served, and when; no prompt and no answer."""
    async with upstream(each(status("503 No", {"error": {"message": "busy"}}))) as bad, upstream(each(answers)) as good:
        providers = {"bad": openai(bad.url), "off": openai("http://127.0.0.1:9"), "good": openai(good.url)}
        async with proxy(settings(providers), tmp_path) as p:
            said = [{"role": "user", "content": "PROMPT-CANARY"}]
            for stream in (False, True):
                async with p.client.post(
                    f"{p.url}/v1/chat/completions",
                    json={"model": "mana/test", "messages": said, "stream": stream},
                    headers={"X-Request-Id": f"mine-{stream}"},
                ) as response:
                    await response.read()
            assert (await p.chat(model="mana/nosuch"))[0] == 404
            code, body = await p.get("/v1/requests")
            assert code == 200
            rows = body["requests"]
            assert [row["status"] for row in rows] == [404, 200, 200]
            assert rows[0] | {"model": "mana/nosuch", "target": None, "outcome": "error"} == rows[0]
            first = rows[2]
            assert (first["id"], first["alias"], first["target"]) == ("mine-False", "mana/test", "good/m")
            assert (first["door"], first["outcome"], first["key"]) == ("chat/completions", "ok", None)
            assert first["first_byte_ms"] <= first["ms"]
            assert first.keys() == {
                *("id", "time", "door", "model", "alias", "target", "outcome", "status", "error", "key", "stream"),
                *("ms", "first_byte_ms", "tokens", "passed", "cache", "cost_usd", "avoided_usd"),
            }
            code, one = await p.get("/v1/requests/mine-False")
            assert (code, {**one, "attempts": None}) == (200, {**first, "attempts": None})
            assert [(line["model"], line["reason"]) for line in one["attempts"]] == [
                ("bad/m", "http_5xx"),
                ("off/m", "connect_error"),
                ("good/m", None),
            ]
            assert all(0 <= line["at_ms"] <= first["ms"] for line in one["attempts"])
            assert (await p.get("/v1/requests/nosuch"))[0] == 404
            async with p.client.get(f"{p.url}/v1/requests") as response:
                text = await response.text()
                assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "CANARY" not in text
            assert "Hello" not in text


async def test_what_nobody_could_serve_shows_where_it_ended(tmp_path: Path) -> None:
    """A caller's mistake at the target that told it; an exhausted chain at none."""
    async with upstream(each(status("400 No", {"error": {"message": "bad"}}))) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
            await p.chat()
            row = (await p.get("/v1/requests"))[1]["requests"][0]
            [attempt] = (await p.get(f"/v1/requests/{row['id']}"))[1]["attempts"]
            assert (row["status"], row["target"], row["outcome"]) == (400, "gpu/m", "error")
            assert (attempt["model"], attempt["reason"]) == ("gpu/m", row["error"])


async def test_filters(tmp_path: Path) -> None:
    """Each alone and together; a wrong one is named, with what is allowed."""
    async with proxy(settings({**LOOP, "off": openai("http://127.0.0.1:9")}, ["loop/m"]), tmp_path) as p:
        await p.chat()
        await p.chat(model="off/m")
        await p.chat(model="loop/x")

        async def targets(query: str) -> list[str]:
            code, body = await p.get(f"/v1/requests?{query}")
            assert code == 200
            return [row["target"] for row in body["requests"]]

        assert await targets("alias=mana/test") == ["loop/m"]
        assert await targets("target=loop/x") == ["loop/x"]
        assert await targets("outcome=ok") == ["loop/x", "loop/m"]
        assert await targets("outcome=ok&limit=1") == ["loop/x"]
        assert await targets("outcome=error&alias=mana/test") == []
        for query, param, allowed in (
            ("outcome=bad", "outcome", "client_gone"),
            ("alias=mana/nosuch", "alias", "mana/test"),
            ("target=nosuch/m", "target", "loop"),
            ("target=loop", "target", "provider/model"),
            ("key=nobody", "key", "nothing can be picked by 'key': none is configured"),
            ("limit=0", "limit", "1000"),
            ("limit=1001", "limit", "1000"),
            ("limit=x", "limit", "1000"),
            ("since=1", "since", "alias, target, outcome, key, limit"),
        ):
            code, body = await p.get(f"/v1/requests?{query}")
            assert (code, body["error"]["param"]) == (400, param), query
            assert allowed in body["error"]["message"]


async def test_explain_says_what_would_happen(tmp_path: Path) -> None:
    """Target by target, without calling one; and it takes no permit."""
    async with upstream(each(answers)) as good:
        providers = {
            "keyless": openai(good.url, api_key="${NOSUCH}"),
            "off": openai("http://127.0.0.1:9"),
            "good": openai(good.url, max_concurrent=1),
        }
        async with proxy(settings(providers, health={"failure_threshold": 1}), tmp_path) as p:
            for _ in range(3):
                code, body = await p.get("/v1/explain?model=mana/test")
                assert (code, body["model"], body["serves"]) == (200, "mana/test", "good/m")
                reasons = [(row["target"], row["usable"], row["reason"]) for row in body["chain"]]
                assert reasons == [
                    ("keyless/m", False, "unconfigured"),
                    ("off/m", False, "unhealthy"),
                    ("good/m", True, None),
                ]
            assert "NOSUCH is not set" in body["chain"][0]["detail"]
            assert "again in" in body["chain"][1]["detail"]
            assert good.posts == []
            assert (await p.chat())[0] == 200
            assert (await p.get("/v1/explain?model=mana/nosuch"))[0] == 404
            code, body = await p.get("/v1/explain?modl=x")
            assert (code, body["error"]["param"]) == (400, "modl")


async def test_explain_says_what_is_under_way(tmp_path: Path) -> None:
    """A rest that is over, the trial that another request makes, a target that has no room."""
    async with upstream(each(answers)) as good:
        providers = {"off": openai("http://127.0.0.1:9"), "good": openai(good.url, max_concurrent=1)}
        async with proxy(settings(providers, health={"failure_threshold": 1, "backoff": "1ms"}), tmp_path) as p:
            registry = p.app.gateway.generation.registry

            async def told() -> list[tuple[bool, str | None, str | None]]:
                rows = (await p.get("/v1/explain?model=mana/test"))[1]["chain"]
                return [(row["usable"], row["reason"], row["detail"]) for row in rows]

            await until(lambda: registry.refusal(Target("off", "m")) is None)
            over = "its rest is over: the next request is its trial"
            assert await told() == [(True, None, over), (True, None, None)]
            permits = [registry.admit(Target(name, "m")) for name in providers]
            assert await told() == [
                (False, "unhealthy", "connect_error: refused; another request is trying it now"),
                (False, "saturated", "1 requests in flight, max_concurrent is 1"),
            ]
            for permit in permits:
                assert isinstance(permit, Permit)
                permit.released()


@pytest.mark.parametrize("status_page", [False, True])
async def test_elsewhere_without_keys(tmp_path: Path, status_page: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches it from another machine sees it only where the operator says so."""
    monkeypatch.setattr("manallm_proxy.gateway.operator_access._is_on_this_machine", lambda request: False)
    async with proxy(settings(LOOP, status_page=status_page), tmp_path) as p:
        for path in ("/v1/requests", "/v1/explain?model=mana/test"):
            code, body = await p.get(path)
            assert code == (200 if status_page else 403)
            assert status_page or "status_page" in body["error"]["message"]


async def test_elsewhere_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it does not matter where a connection comes from: the page opens, and its data to an admin's key."""
    monkeypatch.setattr("manallm_proxy.gateway.operator_access._is_on_this_machine", lambda request: False)
    root = {"name": "root", "sha256": hashlib.sha256(b"root").hexdigest(), "admin": True}
    async with proxy(settings(LOOP, auth={"keys": [root]}), tmp_path) as p:
        async with p.client.get(p.url, headers={"Accept": "text/html"}) as response:
            assert (response.status, response.content_type) == (200, "text/html")
        for path in ("/v1/requests", "/v1/explain?model=mana/test"):
            async with p.client.get(p.url + path, headers={"Authorization": "Bearer root"}) as response:
                assert response.status == 200


async def test_other_origins_may_not_look(tmp_path: Path) -> None:
    """A page of a stranger in the operator's browser; one of this machine may."""
    async with proxy(settings(LOOP), tmp_path) as p:
        for origin, wanted in (("https://evil.example", 403), ("http://localhost:5173", 200)):
            async with p.client.get(f"{p.url}/v1/requests", headers={"Origin": origin}) as response:
                assert response.status == wanted


async def test_a_public_name_that_leads_here_is_no_way_in(tmp_path: Path) -> None:
    """A stranger's page may let its own name point to 127.0.0.1: then it is of the same origin as the answer."""
    async with proxy(settings(LOOP), tmp_path) as p:
        for host, wanted in (
            ("evil.example", 403),
            ("evil.example:3025", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost:3025", 200),
            ("x.localhost", 200),
            ("box", 200),
            ("[::1]:3025", 200),
            ("127.0.0.1", 200),
        ):
            async with p.client.get(f"{p.url}/v1/requests", headers={"Host": host}) as response:
                assert response.status == wanted, host


async def test_a_name_of_ours_is_no_way_in_either(tmp_path: Path) -> None:
    """nginx's, under which clients may call: who reaches that may be anybody."""
    async with proxy(settings(LOOP, cors={"hosts": ["llm.example.org"]}), tmp_path) as p:
        named = {"Host": "llm.example.org"}
        async with p.client.get(f"{p.url}/v1/models", headers=named) as response:
            assert response.status == 200
        for path in ("/v1/requests", "/v1/explain", "/v1/events"):
            async with p.client.get(p.url + path, headers=named) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (403, "admin_only")


@define
class At(asyncio.Transport):
    """A connection's own end."""

    name: object

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.name if name == "sockname" else default


async def test_which_connections_are_of_this_machine(tmp_path: Path) -> None:
    """Those over loopback, under a name of this machine, and over a unix socket; none at an address of a network."""
    async with proxy(settings(LOOP), tmp_path) as p:
        access = p.app.gateway.operators.access
        for name, host, is_local in (
            (("127.0.0.1", 3025), "localhost:3025", True),
            (("::1", 3025, 0, 0), "[::1]:3025", True),
            ("/run/manallm/proxy.sock", "llm.example.org", True),
            (("127.0.0.1", 3025), "llm.example.org", False),
            (("192.0.2.7", 3025), "192.0.2.7:3025", False),
            (("192.0.2.7", 3025), "localhost", False),
            (("fd00::7", 3025, 0, 0), "box", False),
        ):
            request = make_mocked_request("GET", "/", {"Host": host}, transport=At(name))
            with contextlib.nullcontext() if is_local else pytest.raises(AdminOnly):
                access.check_place(request)


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    """Whoever may open it may look."""
    path = tmp_path / "proxy.sock"
    async with proxy(settings(LOOP, listen={"unix": str(path)}), tmp_path):
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client:
            async with client.get("http://proxy.example/v1/requests") as response:
                assert response.status == 200
