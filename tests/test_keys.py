"""Client keys over real sockets: who gets in, what they see, what a reload does to them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from manallm_proxy.contract.errors import ShuttingDown
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.gateway.client_keys import LONGEST, digest_of
from manallm_proxy.gateway.ollama_api import MANAGEMENT
from tests.proxy import Proxy, everything, openai, process, proxy, settings
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, upstream
from tests.waiting import until

ALICE, BOB, ROOT = "sk-CANARY-alice", "sk-CANARY-bob", "sk-CANARY-root"
CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def entry(name: str, secret: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest_of(secret), **more}


def keyed(*keys: dict[str, Any], url: str | None = None, **more: Any) -> dict[str, Any]:
    """A configuration with `keys`, over one provider ``gpu`` at `url` or over the built-in one under that name."""
    gpu = {"kind": "loopback"} if url is None else openai(url)
    return settings({"gpu": gpu}, auth={"keys": list(keys)}, **more)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def ask(
    p: Proxy, method: str, path: str, headers: Any = None, body: Any = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, decoded body (or text), headers in lower case."""
    async with p.client.request(method, p.url + path, headers=headers, json=body) as response:
        text = await response.text()
        told = json.loads(text) if text and response.content_type == "application/json" else text
        return response.status, told, {k.lower(): v for k, v in response.headers.items()}


async def chat(p: Proxy, secret: str, **body: Any) -> tuple[int, Any, dict[str, str]]:
    return await ask(p, "POST", CHAT, bearer(secret), {**HI, **body})


async def samples(p: Proxy, secret: str) -> dict[tuple[str, ...], float]:
    """What /metrics says of keys: name and label values of each series, and its number."""
    _, text, _ = await ask(p, "GET", "/metrics", bearer(secret))
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in found if s.name.startswith("mana_llm_key_")}


def lines(p: Proxy, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, p.log.getvalue().splitlines()) if line["event"] == event]


# Who gets in


OPEN = {"/", "/page/{id}", "/health", "/readyz", "/openapi.json"}
FOR_ADMINS = {"/metrics", "/v1/health", "/v1/requests", "/v1/requests/{id}", "/v1/explain", "/v1/events"}
UNABLE = {endpoint.path for endpoint in Endpoint if endpoint.is_opaque}
"""Passed through as bytes, which the loopback provider cannot answer."""
NOT_DONE = {path for _, path in MANAGEMENT}


async def test_every_route_but_liveness_wants_a_key(tmp_path: Path) -> None:
    """Each that there is: 401 without one, 403 for some with one that is not the operator's. A new one fails here."""
    async with proxy(keyed(entry("alice", ALICE), entry("root", ROOT, admin=True)), tmp_path) as p:
        seen = set()
        for path, method in sorted(p.app.gateway.table.served()):
            seen.add(path)
            able = 501 if path in NOT_DONE else 400 if path.removeprefix("/v1").strip("/") in UNABLE else 200
            wanted = [200] * 3 if path in OPEN else [401, 403, 200] if path in FOR_ADMINS else [401, able, able]
            if "/responses/" in path:
                wanted = [401, 404, 404]  # nothing is kept yet
            if path == "/v1/requests/{id}":
                wanted = [401, 403, 404]
            asked = path.replace("{id}", "page.css" if path in OPEN else "mana/test")
            method = "HEAD" if path == "/v1/events" else method  # a GET has no end
            body: dict[str, Any] = {**HI, "prompt": "x", "input": "x", "max_tokens": 1}
            if path.endswith("/responses"):
                body = {"input": "x"}
            got = [
                (await ask(p, method, asked, headers, body if method == "POST" else None))[0]
                for headers in ({}, bearer(ALICE), bearer(ROOT))
            ]
            assert got == wanted, (method, path)
        assert seen >= OPEN | FOR_ADMINS | {CHAT, "/v1/models", "/models/{id}", "/aliases"}


async def test_without_keys_nobody_is_asked(tmp_path: Path) -> None:
    """Whatever key a client sends (SDKs insist on one), everything is open, and no header speaks of limits."""
    async with proxy(keyed(), tmp_path) as p:
        for headers in ({}, bearer("unused"), {"x-api-key": "é"}, [("api-key", "a"), ("api-key", "b")]):
            code, _, told = await ask(p, "POST", CHAT, headers, HI)
            assert (code, [name for name in told if "ratelimit" in name]) == (200, [])
        assert (await ask(p, "GET", "/metrics"))[0] == (await ask(p, "GET", "/v1/health"))[0] == 200
        assert not any("key" in line for line in lines(p, "request"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ALICE}"},
        {"authorization": f"bEARER  {ALICE}"},
        {"api-key": ALICE},
        {"X-API-Key": ALICE},
        {"Authorization": f"Bearer {ALICE}", "api-key": ALICE},
        {"Authorization": "Basic Zm9vOmJhcg==", "x-api-key": ALICE},
    ],
)
async def test_a_key_opens_under_each_of_its_names(tmp_path: Path, headers: dict[str, str]) -> None:
    """And it stays here: the provider sees its own key or none."""
    async with upstream(each(answers)) as gpu, proxy(keyed(entry("alice", ALICE), url=gpu.url), tmp_path) as p:
        assert (await ask(p, "POST", CHAT, headers, HI))[0] == 200
        assert "CANARY" not in str(gpu.posts[0].headers) + str(gpu.posts[0].body)
        [line] = lines(p, "request")
        assert line["key"] == "alice"
        assert "CANARY" not in p.log.getvalue()


REFUSED: dict[str, list[bytes]] = {
    "none": [],
    "wrong": [b"Authorization: Bearer sk-CANARY-mallory"],
    "the beginning": [b"Authorization: Bearer " + ALICE[:-1].encode()],
    "more than it": [b"Authorization: Bearer " + ALICE.encode() + b"x"],
    "its digest": [b"Authorization: Bearer " + digest_of(ALICE).encode()],
    "no scheme": [b"Authorization: " + ALICE.encode()],
    "another scheme": [b"Authorization: Basic " + ALICE.encode()],
    "empty": [b"Authorization:"],
    "scheme only": [b"Authorization: Bearer"],
    "twice": [b"Authorization: Bearer " + ALICE.encode()] * 2,
    "twice, one wrong": [b"Authorization: Bearer x", b"Authorization: Bearer " + ALICE.encode()],
    "joined": [b"Authorization: Bearer x, Bearer " + ALICE.encode()],
    "two keys": [b"Authorization: Bearer x", b"api-key: " + ALICE.encode()],
    "api-key twice": [b"api-key: " + ALICE.encode()] * 2,
    "not ASCII": [b"Authorization: Bearer " + ALICE.encode() + "é".encode()],
    "not UTF-8": [b"Authorization: Bearer " + ALICE.encode() + b"\xff\xfe"],
    "a blank inside": [b"x-api-key: sk CANARY"],
    "huge": [b"Authorization: Bearer CANARY" + b"x" * LONGEST],
    "huge as can be": [b"Authorization: Bearer CANARY" + b"x" * 15_000],
    "in a cookie": [b"Cookie: Authorization=" + ALICE.encode()],
}


async def raw(p: Proxy, head: list[bytes], path: str = CHAT) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body for a request of raw bytes."""
    body = json.dumps(HI).encode()
    head = [f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close".encode(), *head]
    reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
    writer.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    first, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = first.decode().split("\r\n")
    told = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
    return int(status.split()[1]), told, json.loads(rest)


@pytest.mark.parametrize("what", REFUSED)
async def test_a_client_without_a_key_is_refused(tmp_path: Path, what: str) -> None:
    """401 in OpenAI's shape, one line without what was sent, no provider touched, no series of its own."""
    async with upstream(each(answers)) as gpu:
        config = keyed(entry("alice", ALICE), entry("root", ROOT, admin=True), url=gpu.url)
        async with proxy(config, tmp_path) as p:
            before = set(await samples(p, ROOT))
            path = f"{CHAT}?api_key={ALICE}&key={ALICE}"
            code, headers, body = await raw(p, REFUSED[what], path)
            assert code == 401
            assert (headers["www-authenticate"], headers["x-should-retry"]) == ("Bearer", "false")
            assert headers["x-request-id"]
            assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", "invalid_api_key")
            assert body["error"]["source"] == "manallm-proxy"
            assert gpu.posts == []
            [line] = lines(p, "request")
            assert (line["status"], line["error"], line["level"], "key" in line) == (
                401,
                "invalid_api_key",
                "info",
                False,
            )
            assert "CANARY" not in p.log.getvalue() + json.dumps(body) + str(headers)
            assert set(await samples(p, ROOT)) - before == {("mana_llm_key_refusals_total", "invalid_api_key")}
            assert len(list(p.app.gateway.generation.keyring)) == 2


async def test_a_wrong_key_tells_nothing_by_its_answer(tmp_path: Path) -> None:
    """Close to the right one or far from it: the same body."""
    async with proxy(keyed(entry("alice", ALICE)), tmp_path) as p:
        told = {json.dumps((await chat(p, wrong))[1]) for wrong in ("x", ALICE[:-1], ALICE + "x", digest_of(ALICE))}
        assert len(told) == 1


async def test_no_body_is_read_for_a_client_without_a_key(tmp_path: Path) -> None:
    """The answer is there although not a byte of the promised body has come."""
    async with proxy(keyed(entry("alice", ALICE)), tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_refusals_outside_the_pipeline_are_logged(tmp_path: Path) -> None:
    """One line with the route as we wrote it, and the name of a key that is known; nothing of the client's path."""
    async with proxy(keyed(entry("alice", ALICE), entry("root", ROOT, admin=True)), tmp_path) as p:
        assert (await ask(p, "GET", "/v1/models/CANARY?key=CANARY", bearer("sk-CANARY-x")))[0] == 401
        code, body, _ = await ask(p, "GET", "/metrics", bearer(ALICE))
        assert (code, body["error"]["code"], body["error"]["type"]) == (403, "admin_only", "permission_error")
        first, second = [each for each in lines(p, "request") if each["endpoint"].startswith("/")]
        assert (first["endpoint"], first["status"], first["error"]) == ("/v1/models/{id}", 401, "invalid_api_key")
        assert "key" not in first
        assert (second["endpoint"], second["error"], second["key"]) == ("/metrics", "admin_only", "alice")
        assert "CANARY" not in p.log.getvalue()
        counted = await samples(p, ROOT)
        assert counted["mana_llm_key_refusals_total", "invalid_api_key"] == 1
        assert counted["mana_llm_key_refusals_total", "admin_only"] == 1


async def test_a_preflight_needs_no_key_and_its_refusal_can_be_read(tmp_path: Path) -> None:
    """Browsers send none with it; and without CORS headers on the 401 a page would see a network error."""
    home = {"Origin": "http://home", "Access-Control-Request-Method": "POST"}
    limited = entry("alice", ALICE, requests_per_minute=5)
    async with proxy(keyed(limited, cors={"origins": ["http://home"]}), tmp_path) as p:
        asked = {**home, "Access-Control-Request-Headers": "api-key"}
        code, _, headers = await ask(p, "OPTIONS", CHAT, asked)
        assert (code, headers["access-control-allow-headers"]) == (204, "api-key")
        code, _, headers = await ask(p, "POST", CHAT, {"Origin": "http://home"}, HI)
        assert (code, headers["access-control-allow-origin"]) == (401, "http://home")
        code, _, headers = await ask(p, "POST", CHAT, {"Origin": "http://home", **bearer(ALICE)}, HI)
        exposed = {name.strip() for name in headers["access-control-expose-headers"].split(",")}
        assert {name for name in headers if "ratelimit" in name} <= exposed


# What they may use, and see


TWO = {"mana/one": {"chain": ["gpu/m"]}, "mana/two": {"chain": ["gpu/m"]}}


async def test_a_key_uses_its_own_models_only(tmp_path: Path) -> None:
    """Aliases by their name, whatever stands in their chain; models by provider/model, also where asked for barely."""
    async with upstream(each(answers), ["m", "n"]) as gpu:
        keys = (
            entry("alice", ALICE, models=["mana/one"]),
            entry("bob", BOB, models=["gpu/m*", "mana/two"]),
            entry("root", ROOT, models=[], admin=True),
        )
        config = keyed(*keys, url=gpu.url, default_provider="gpu") | {"aliases": TWO, "default": "mana/one"}
        async with proxy(config, tmp_path) as p:
            got = {
                (name, model): (await chat(p, secret, model=model))[0]
                for name, secret in (("alice", ALICE), ("bob", BOB), ("root", ROOT))
                for model in ("", "mana/one", "mana/two", "gpu/m", "m", "gpu/n", "n", "gpu/mm")
            }
            allowed = {pair for pair, code in got.items() if code == 200}
            assert set(got.values()) == {200, 403}
            assert allowed == {("alice", ""), ("alice", "mana/one")} | {
                ("bob", model) for model in ("mana/two", "gpu/m", "m", "gpu/mm")
            }
            served = len(gpu.posts)
            code, body, headers = await chat(p, ALICE, model="mana/two")
            assert (code, body["error"]["code"], body["error"]["param"]) == (403, "model_not_allowed", "model")
            assert "mana/one" in body["error"]["message"]
            assert len(gpu.posts) == served
            assert "www-authenticate" not in headers
            assert lines(p, "request")[-1]["key"] == "alice"


async def test_lists_show_what_a_key_may_use(tmp_path: Path) -> None:
    """Models, aliases, the default, and the hints of a refusal; what is not listed is not found either."""
    async with upstream(each(answers), ["m", "n"]) as gpu:
        keys = (entry("alice", ALICE, models=["mana/two", "gpu/n"]), entry("bob", BOB))
        config = keyed(*keys, url=gpu.url) | {"aliases": TWO, "default": "mana/one"}
        async with proxy(config, tmp_path) as p:

            async def listed(secret: str) -> list[str]:
                return [row["id"] for row in (await ask(p, "GET", "/v1/models", bearer(secret)))[1]["data"]]

            assert await listed(ALICE) == ["mana/two", "gpu/n"]
            assert await listed(BOB) == ["mana/one", "mana/two", "gpu/m", "gpu/n"]
            _, body, _ = await ask(p, "GET", "/v1/aliases", bearer(ALICE))
            assert (body["default"], [row["name"] for row in body["aliases"]]) == (None, ["mana/two"])
            _, body, _ = await ask(p, "GET", "/v1/aliases", bearer(BOB))
            assert (body["default"], len(body["aliases"])) == ("mana/one", 2)
            for model, code in (("mana/two", 200), ("gpu/n", 200), ("mana/one", 404), ("gpu/m", 404), ("gpu/x", 404)):
                assert (await ask(p, "GET", f"/v1/models/{model}", bearer(ALICE)))[0] == code, model
            answers_ = [await chat(p, ALICE, model=model) for model in ("mana/onf", "mana/one", "nobody/x")]
            assert {(code, body["error"]["code"]) for code, body, _ in answers_} == {(403, "model_not_allowed")}
            assert len({body["error"]["message"] for _, body, _ in answers_}) == 1, "it learns of no name"
            assert "mana/two" in answers_[0][1]["error"]["message"]
            assert "mana/one" not in answers_[0][1]["error"]["message"]


async def test_a_model_of_a_provider_that_lists_nothing(tmp_path: Path) -> None:
    """It may have the model: a key that may use it finds it, another does not."""
    async with upstream(each(answers)) as gpu:
        keys = (entry("alice", ALICE, models=["gpu/a"]), entry("bob", BOB, models=["mana/*"]))
        async with proxy(keyed(*keys, url=gpu.url), tmp_path) as p:
            got = [(await ask(p, "GET", "/v1/models/gpu/a", bearer(secret)))[0] for secret in (ALICE, BOB)]
            assert got == [200, 404]


# How much


async def test_so_many_a_minute(tmp_path: Path) -> None:
    """Each answer says how many are left, streams and errors included; the next is 429 and touches no provider."""
    async with upstream(each(answers)) as gpu:
        config = keyed(entry("alice", ALICE, requests_per_minute=3), entry("bob", BOB), url=gpu.url)
        async with proxy(config, tmp_path) as p:
            left = []
            for body in ({}, {"stream": True}, {"model": "mana/nosuch"}):
                _, _, headers = await chat(p, ALICE, **body)
                assert headers["x-ratelimit-limit-requests"] == "3"
                assert re.fullmatch(r"5\d(\.\d+)?s|1m0s", headers["x-ratelimit-reset-requests"])
                left.append(headers["x-ratelimit-remaining-requests"])
            assert left == ["2", "1", "0"]
            code, body, headers = await chat(p, ALICE)
            assert (code, body["error"]["type"]) == (429, "rate_limit_error")
            assert (body["error"]["code"], headers["x-ratelimit-remaining-requests"]) == ("rate_limit_exceeded", "0")
            assert 1 <= int(headers["retry-after"]) <= 60
            assert re.fullmatch(r"[\d.]+s|1m0s", headers["x-ratelimit-reset-requests"])
            assert len(gpu.posts) == 2
            assert (lines(p, "request")[-1]["status"], lines(p, "request")[-1]["key"]) == (429, "alice")
            code, _, headers = await chat(p, BOB)
            assert (code, "x-ratelimit-limit-requests" in headers) == (200, False)
            assert (await ask(p, "GET", "/v1/models", bearer(ALICE)))[0] == 200  # lists are free


async def test_so_many_tokens_a_minute(tmp_path: Path) -> None:
    """What a request may take is reserved, `max_tokens` and its prompt; what it took is settled, streams at the end."""
    async with upstream(each(answers)) as gpu:  # each answer takes 5
        config = keyed(entry("alice", ALICE, tokens_per_minute=200), entry("bob", BOB), url=gpu.url)
        async with proxy(config, tmp_path) as p:
            code, _, headers = await chat(p, ALICE, max_tokens=100)
            assert (code, headers["x-ratelimit-limit-tokens"]) == (200, "200")
            assert headers["x-ratelimit-remaining-tokens"] == "195"
            assert re.fullmatch(r"5\d(\.\d+)?s|1m0s", headers["x-ratelimit-reset-tokens"])
            _, _, headers = await chat(p, ALICE, stream=True, max_completion_tokens=100)
            assert 70 <= int(headers["x-ratelimit-remaining-tokens"]) <= 80, "the prompt's are estimated"
            code, _, headers = await chat(p, ALICE, max_tokens=10)
            assert (code, headers["x-ratelimit-remaining-tokens"]) == (200, "185")
            for much in (
                {"max_tokens": 190},
                {"max_tokens": 50, "n": 4},
                {"messages": [{"role": "user", "content": "a" * 900}]},
            ):
                code, body, headers = await chat(p, ALICE, **much)
                assert (code, body["error"]["code"]) == (429, "rate_limit_exceeded")
                assert (headers["x-ratelimit-remaining-tokens"], headers["x-ratelimit-limit-tokens"]) == ("185", "200")
            assert len(gpu.posts) == 3
            assert "retry-after" not in headers and headers["x-should-retry"] == "false", "it never fits"
            assert "ask for less" in body["error"]["message"]
            code, body, headers = await chat(p, ALICE, max_tokens=170)
            assert (code, 1 <= int(headers["retry-after"]) <= 60) == (429, True)
            code, _, headers = await chat(p, BOB)
            assert (code, "x-ratelimit-limit-tokens" in headers) == (200, False)


async def held(connection: Connection, seen: Seen) -> None:
    """One word of a stream, or nothing of a whole answer, until the test says go."""
    if seen.json.get("stream"):
        await connection.head()
        await connection.chunk(chunk("one"))
    waits = [asyncio.ensure_future(connection.upstream.go.wait()), asyncio.ensure_future(connection.gone())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for waiting in waits:
        waiting.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    if not seen.json.get("stream"):
        await connection.reply(completion())
        return
    await connection.chunk(chunk(finish="stop") + b"data: [DONE]\n\n")
    await connection.end()


async def test_so_many_at_once(tmp_path: Path) -> None:
    """A second one is 429 while the first runs, and served after it; also where the first one's client left."""
    async with upstream(each(held)) as gpu:
        keys = (entry("alice", ALICE, concurrent_requests=1), entry("root", ROOT, admin=True))
        async with proxy(keyed(*keys, url=gpu.url), tmp_path) as p:
            for leaves in (False, True):
                async with p.client.post(p.url + CHAT, json={**HI, "stream": True}, headers=bearer(ALICE)) as response:
                    assert b"one" in await response.content.readany()
                    code, body, headers = await chat(p, ALICE)
                    assert (code, headers["retry-after"]) == (429, "1")
                    assert "1 requests in flight" in body["error"]["message"]
                    assert (await samples(p, ROOT))["mana_llm_key_requests_in_flight", "alice"] == 1
                    if leaves:
                        response.close()
                    else:
                        gpu.go.set()
                        assert (await response.read()).endswith(b"data: [DONE]\n\n")
                async with asyncio.timeout(5):
                    while (await samples(p, ROOT))["mana_llm_key_requests_in_flight", "alice"]:
                        await asyncio.sleep(0.01)
                gpu.go.clear()
            gpu.go.set()
            assert (await chat(p, ALICE))[0] == 200


async def test_usage_by_key(tmp_path: Path) -> None:
    """Requests by status, and tokens, under the key's name."""
    async with upstream(each(answers)) as gpu:
        keys = (entry("alice", ALICE, models=["mana/*"]), entry("bob", BOB), entry("root", ROOT, admin=True))
        async with proxy(keyed(*keys, url=gpu.url), tmp_path) as p:
            await chat(p, ALICE)
            await chat(p, ALICE, stream=True)
            await chat(p, ALICE, model="gpu/m")
            await chat(p, BOB)
            assert await samples(p, ROOT) == {
                ("mana_llm_key_requests_total", "alice", "200"): 2,
                ("mana_llm_key_requests_total", "alice", "403"): 1,
                ("mana_llm_key_requests_total", "bob", "200"): 1,
                ("mana_llm_key_tokens_total", "alice", "prompt"): 6,
                ("mana_llm_key_tokens_total", "alice", "completion"): 4,
                ("mana_llm_key_tokens_total", "bob", "prompt"): 3,
                ("mana_llm_key_tokens_total", "bob", "completion"): 2,
                ("mana_llm_key_refusals_total", "model_not_allowed"): 1,
                ("mana_llm_key_requests_in_flight", "alice"): 0,
                ("mana_llm_key_requests_in_flight", "bob"): 0,
                ("mana_llm_key_requests_in_flight", "root"): 0,
            }


async def test_what_is_shed_is_not_counted(tmp_path: Path) -> None:
    """503 because the proxy is full costs the key nothing of its minute."""
    async with upstream(each(held)) as gpu:
        keys = (entry("alice", ALICE, requests_per_minute=2), entry("bob", BOB))
        async with proxy(keyed(*keys, url=gpu.url, limits={"concurrent_requests": 1}), tmp_path) as p:
            first = asyncio.ensure_future(chat(p, BOB))
            await until(lambda: gpu.posts)
            code, _, headers = await chat(p, ALICE)
            assert (code, headers["x-ratelimit-remaining-requests"]) == (503, "2")
            assert (await chat(p, "sk-wrong"))[0] == 401
            gpu.go.set()
            assert (await first)[0] == 200


# What a reload does


@pytest.mark.parametrize("how", ["taken out", "exchanged"])
async def test_a_revoked_key_ends_its_streams(tmp_path: Path, how: str) -> None:
    """An error event and no [DONE], its provider is left; a whole answer is 401; another key's stream goes on."""
    async with upstream(each(held)) as gpu:
        config = keyed(entry("alice", ALICE), entry("bob", BOB), url=gpu.url)
        async with proxy(config, tmp_path) as p:
            payload = {**HI, "stream": True}
            async with (
                p.client.post(p.url + CHAT, json=payload, headers=bearer(ALICE)) as hers,
                p.client.post(p.url + CHAT, json=payload, headers=bearer(BOB)) as his,
            ):
                for response in (hers, his):
                    assert b"one" in await response.content.readany()
                whole = asyncio.ensure_future(chat(p, ALICE))
                await until(lambda: len(gpu.posts) >= 3)
                new = [] if how == "taken out" else [entry("alice", "sk-CANARY-new")]
                p.write(keyed(*new, entry("bob", BOB), url=gpu.url))
                reading = asyncio.ensure_future(everything(hers))  # what is unread at a break, aiohttp drops
                await p.app.reload()
                rest = await asyncio.wait_for(reading, 20)
                [event] = [line for line in rest.decode().splitlines() if line.startswith("data: ")]
                assert json.loads(event[6:])["error"]["code"] == "api_key_revoked"
                code, body, headers = await asyncio.wait_for(whole, 5)
                assert (code, body["error"]["code"]) == (401, "api_key_revoked")
                assert (headers["www-authenticate"], headers["x-should-retry"]) == ("Bearer", "false")
                alices, bobs, other = [each for each in gpu.connections if each.answering]
                for connection in (alices, other):
                    await asyncio.wait_for(connection.closed.wait(), 5)
                assert not bobs.closed.is_set()
                assert (await chat(p, ALICE))[0] == 401
                gpu.go.set()
                assert (await asyncio.wait_for(his.read(), 5)).endswith(b"data: [DONE]\n\n")
            ended = [(line["key"], line["outcome"]) for line in lines(p, "request") if "key" in line]
            assert sorted(ended) == [("alice", "broken"), ("alice", "error"), ("bob", "ok")]
            assert not lines(p, "internal error")
            assert p.app.gateway.generation.registry.providers["gpu"].in_flight == 0
            assert not p.app.gateway.generation.registry.providers["gpu"].provider.failures


async def test_a_key_revoked_before_its_body_came(tmp_path: Path) -> None:
    """The client gets its 401 at once, and no provider is asked."""
    async with upstream(each(answers)) as gpu, proxy(keyed(entry("alice", ALICE), url=gpu.url), tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nx-api-key: {ALICE}\r\nContent-Length: 50\r\n\r\n"
        writer.write(head.encode())
        await until(lambda: p.app.gateway.pipeline.exchanges)
        p.write(keyed(url=gpu.url))
        await p.app.reload()
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 401 ")
        writer.close()
        assert gpu.posts == []


async def test_a_client_gets_one_reason_only(tmp_path: Path) -> None:
    """A key revoked at the very end of a drain: the first reason is the one that the client reads."""
    async with upstream(each(held)) as gpu, proxy(keyed(entry("alice", ALICE), url=gpu.url), tmp_path) as p:
        async with p.client.post(p.url + CHAT, json={**HI, "stream": True}, headers=bearer(ALICE)) as response:
            assert b"one" in await response.content.readany()
            [exchange] = p.app.gateway.pipeline.exchanges
            p.write(keyed(url=gpu.url))
            reading = asyncio.ensure_future(everything(response))  # what is unread at a break, aiohttp drops
            await p.app.reload()
            exchange.interrupt(ShuttingDown("the proxy is shutting down"))
            rest = await asyncio.wait_for(reading, 20)
        assert (b"api_key_revoked" in rest, b"shutting_down" in rest) == (True, False)


async def test_the_first_keys_cut_nobody(tmp_path: Path) -> None:
    """What began while nobody was asked for a key goes on; the next one is asked."""
    async with upstream(each(held)) as gpu, proxy(keyed(url=gpu.url), tmp_path) as p:
        async with p.client.post(p.url + CHAT, json={**HI, "stream": True}) as response:
            assert b"one" in await response.content.readany()
            p.write(keyed(entry("alice", ALICE), url=gpu.url))
            await p.app.reload()
            assert (await ask(p, "POST", CHAT, {}, HI))[0] == 401
            gpu.go.set()
            assert (await asyncio.wait_for(response.read(), 5)).endswith(b"data: [DONE]\n\n")


async def test_a_reload_is_no_way_to_a_fresh_minute(tmp_path: Path) -> None:
    """What is used stays used, whether the entry is the same or has changed; new models hold at once."""
    config = keyed(entry("alice", ALICE, requests_per_minute=2))
    async with proxy(config, tmp_path) as p:
        assert (await chat(p, ALICE))[2]["x-ratelimit-remaining-requests"] == "1"
        await p.app.reload()
        assert (await chat(p, ALICE))[2]["x-ratelimit-remaining-requests"] == "0"
        p.write(keyed(entry("alicia", ALICE, requests_per_minute=3, models=["mana/*"])))
        await p.app.reload()
        code, _, headers = await chat(p, ALICE, model="gpu/m")
        assert (code, headers["x-ratelimit-remaining-requests"]) == (403, "0")
        assert (await chat(p, ALICE))[0] == 429
        assert lines(p, "request")[-1]["key"] == "alicia"


async def test_a_mistake_in_a_key_changes_nothing(tmp_path: Path) -> None:
    """The old keys go on; the log names the place and not the value."""
    async with proxy(keyed(entry("alice", ALICE)), tmp_path) as p:
        p.write(keyed({"name": "alice", "sha256": "sk-CANARY"}, entry("bob", BOB)))
        await p.app.reload()
        assert ((await chat(p, ALICE))[0], (await chat(p, BOB))[0]) == (200, 401)
        assert "auth.keys[0].sha256: expected 64 hex digits" in p.log.getvalue()
        assert "CANARY" not in p.log.getvalue()


async def test_the_real_process_revokes_on_sighup(tmp_path: Path) -> None:
    """With the signal, on the loop that runs in production; and nothing of the keys is in its output."""
    async with upstream(each(held)) as gpu:
        config = keyed(entry("alice", ALICE), entry("bob", BOB), url=gpu.url)
        async with process(config, tmp_path) as running, aiohttp.ClientSession() as client:
            payload = {**HI, "stream": True}
            async with client.post(running.url + CHAT, json=payload, headers=bearer(ALICE)) as response:
                assert b"one" in await response.content.readany()
                revoked = keyed(entry("bob", BOB), url=gpu.url)
                (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(revoked, sort_keys=False))
                os.kill(running.pid, signal.SIGHUP)
                rest = await asyncio.wait_for(everything(response), 20)
                assert b'"api_key_revoked"' in rest
                assert b"[DONE]" not in rest
            assert "CANARY" not in "".join(running.output)
