"""The description of our surface against the surface itself: routes, statuses, and what really comes back."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from manallm_proxy import __version__
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.routing.circuit import SkipReason
from tests.described import DOCUMENT, at, conforms, operations, resolved
from tests.proxy import Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, status, upstream

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
MESSAGE: dict[str, Any] = {**HI, "max_tokens": 10}
VERSION = {"anthropic-version": "2023-06-01"}


async def test_routes_are_described_and_served_both(tmp_path: Path) -> None:
    """Neither a route that is not described, nor a description of one that is not there; HEAD goes without saying."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        served = {(path, method.lower()) for path, method in p.app.gateway.table.served()}
    assert {(path, method) for path, method, _ in operations()} == served


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    """Also those that no answer of these tests uses."""

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                at(value["$ref"])
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    visit(DOCUMENT)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert DOCUMENT["info"]["version"] == __version__


def test_every_status_that_an_error_may_have_is_described() -> None:
    """By number where it is ours."""
    kinds: list[type[ProxyError]] = [ProxyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    described = at("#/paths/~1v1~1chat~1completions/post/responses").keys()
    ours = {str(kind.status) for kind in kinds if kind.__module__.startswith("manallm_proxy")}
    assert ours - {"405", "501"} <= described  # which a POST for a model cannot get
    assert {"4XX", "502", "504"} <= described
    assert issubclass(ProviderError, ProxyError)


async def sound(connection: Connection, seen: Seen) -> None:
    """A provider that knows legacy completions, sounds and pictures too."""
    if "audio/speech" in seen.path:
        await connection.reply(b"\xff\xf3", content_type="audio/mpeg")
        return
    if seen.path.removeprefix("/v1/") in OPAQUE:
        await connection.reply({"id": "x"})
        return
    if "prompt" not in seen.json or seen.json.get("stream"):
        await answers(connection, seen)
        return
    choice = {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    await connection.reply({**head, "choices": [choice]})


MODEL: dict[str, Any] = {"model": "mana/test"}
OPAQUE = [endpoint.path for endpoint in Endpoint if endpoint.is_opaque]
OLLAMA: list[tuple[str, str, dict[str, Any]]] = [
    *[("post", "/api/chat", {"json": {**MODEL, **HI, **more}}) for more in ({}, {"stream": False})],
    *[("post", "/api/generate", {"json": {"prompt": "x", **more}}) for more in ({}, {"stream": False})],
    *[("post", f"/api/{at}", {"json": MODEL}) for at in ("chat", "generate", "embed", "embeddings", "show")],
    *[("post", f"/api/{at}", {"data": b"{"}) for at in ("chat", "generate", "embed", "embeddings", "show")],
    ("post", "/api/embed", {"json": {**MODEL, "input": "x"}}),
    ("post", "/api/embeddings", {"json": {**MODEL, "prompt": "x"}}),
    ("post", "/api/chat", {"json": {**HI, "model": "mana/nosuch"}}),
    ("post", "/api/show", {"json": {"model": "mana/nosuch"}}),
    *[("get", f"/api/{at}", {}) for at in ("version", "tags", "ps")],
    *[("post", f"/api/{at}", {"json": MODEL}) for at in ("pull", "push", "create", "copy")],
    ("delete", "/api/delete", {"json": MODEL}),
]
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *OLLAMA,
    *[("post", f"/v1/{at}", {"json": {**MODEL, "input": "x"}}) for at in OPAQUE],
    *[("post", f"/{at}", {"data": b"{", "headers": {"Content-Type": "application/json"}}) for at in OPAQUE],
    *[("post", path, {"json": HI}) for path in ("/v1/chat/completions", "/chat/completions")],
    *[("post", path, {"json": {"prompt": "x"}}) for path in ("/v1/completions", "/completions")],
    *[("post", path, {"json": {"input": ["x", "y"]}}) for path in ("/v1/embeddings", "/embeddings")],
    *[("post", path, {"json": {"input": "x"}}) for path in ("/v1/responses", "/responses")],
    ("post", "/v1/responses", {"json": {"input": "x", "stream": True}}),
    ("post", "/v1/responses", {"json": {"input": "x", "previous_response_id": "resp_none"}}),
    ("post", "/v1/embeddings", {"json": {"input": "x", "encoding_format": "base64"}}),
    ("post", "/v1/chat/completions", {"json": {**HI, "stream": True}}),
    ("post", "/v1/completions", {"json": {"prompt": "x", "stream": True}}),
    *[("post", f"/v1/{at}", {"data": b"{"}) for at in ("chat/completions", "completions", "embeddings", "responses")],
    ("post", "/v1/chat/completions", {"json": {**HI, "model": "mana/nosuch"}}),
    ("post", "/v1/chat/completions", {"json": {**HI, "model": 3}}),
    ("post", "/v1/chat/completions", {"data": b"x" * 2000}),
    ("post", "/v1/chat/completions", {"data": b"x", "headers": {"Content-Encoding": "gzip"}}),
    ("post", "/v1/chat/completions", {"json": HI, "headers": {"Origin": "http://evil"}}),
    ("post", "/v1/chat/completions", {"json": HI, "headers": {"Expect": "x"}}),
    ("post", "/v1/chat/completions", {"json": HI, "headers": {"X": "y" * 20_000}}),
    *[("post", path, {"json": MESSAGE}) for path in ("/v1/messages", "/messages")],
    *[("post", path, {"json": HI}) for path in ("/v1/messages/count_tokens", "/messages/count_tokens")],
    ("post", "/v1/messages", {"json": {**MESSAGE, "stream": True}}),
    ("post", "/v1/messages", {"json": {**MESSAGE, "thread": {"type": "create"}}}),
    ("post", "/v1/messages", {"json": {**MESSAGE, "model": "mana/nosuch"}}),
    ("post", "/v1/messages", {"json": MESSAGE, "headers": {"Origin": "http://evil"}}),
    ("post", "/v1/messages", {"json": MESSAGE, "headers": {"Expect": "x"}}),
    ("post", "/v1/messages", {"data": b"x" * 2000}),
    ("post", "/v1/messages/count_tokens", {"data": b"{"}),
    ("post", "/v1/messages/count_tokens", {"data": b"x" * 2000}),
    ("get", "/v1/models", {"headers": VERSION}),
    *[("get", path, {}) for path in ("/v1/models", "/models", "/v1/aliases", "/aliases", "/v1/health")],
    *[("get", path, {}) for path in ("/v1/requests", "/v1/explain")],
    ("get", "/", {"headers": {"Accept": "text/html"}}),
    *[("get", path, {}) for path in ("/health", "/readyz", "/metrics", "/openapi.json", "/")],
]


@pytest.mark.parametrize("kind", ["loopback", "openai", "none"])
async def test_answers_are_as_described(tmp_path: Path, kind: str) -> None:
    """Good and bad, of a provider that we compose for, of one that we relay, and of none that could be reached."""
    async with upstream(each(sound), ["m"]) as gpu:
        providers = {
            "loopback": {"kind": "loopback"},
            "openai": openai(gpu.url),
            "none": openai("http://127.0.0.1:9"),
        }
        config = settings({kind: providers[kind]}, limits={"body": 1000})
        async with proxy(config, tmp_path) as p:
            codes = [await ask(p, method, path, path, **options) for method, path, options in REQUESTS]
            assert set(codes) >= {400, 403, 404, 413, 415, 417, 431, 503 if kind == "none" else 200}
            for method in ("get", "post"):
                assert await ask(p, method, "/api/blobs/{id}", "/api/blobs/sha256:0") == 501
            last = (await p.get("/v1/requests?limit=1"))[1]["requests"][0]["id"]
            assert await ask(p, "get", "/v1/requests/{id}", f"/v1/requests/{last}") == 200
            assert await ask(p, "get", "/page/{id}", "/page/page.css") == 200
            for path in ("/v1/models/mana/test", f"/models/{kind}/m", "/v1/models/nosuch/m"):
                prefix = "/v1" if path.startswith("/v1") else ""
                await ask(p, "get", f"{prefix}/models/{{id}}", path)
                await ask(p, "get", f"{prefix}/models/{{id}}", path, headers=VERSION)


async def ask(p: Proxy, method: str, described: str, path: str, **options: Any) -> int:
    """The status of one answer, once it conforms."""
    async with p.client.request(method, p.url + path, **options) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        conforms(described, method, response.status, headers, await response.read())
        return response.status


@pytest.mark.parametrize("line", ["400 B", "401 U", "402 P", "404 N", "422 U", "429 T", "500 I", "503 S", "302 F"])
async def test_providers_failures_are_as_described(tmp_path: Path, line: str) -> None:
    """Alone in its chain, and with a target of its own name."""
    body = {"error": {"message": "no", "type": None, "code": 7, "param": ["x"]}}
    async with upstream(each(status(line, body))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for stream in (False, True):
            assert await ask(p, "post", *["/v1/chat/completions"] * 2, json={**HI, "stream": stream}) >= 400
            assert await ask(p, "post", *["/v1/messages"] * 2, json={**MESSAGE, "stream": stream}) >= 400
        await ask(p, "get", "/v1/health", "/v1/health")


async def test_it_is_served(tmp_path: Path) -> None:
    """With a type that tools expect; HEAD as well."""

    async def refuses(connection: Connection, seen: Seen) -> None:
        raise AssertionError("nobody is asked")

    async with upstream(each(refuses)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        assert await p.get("/openapi.json") == (200, DOCUMENT)
        async with p.client.head(f"{p.url}/openapi.json") as response:
            assert (response.status, response.content_type) == (200, "application/json")


SHA = hashlib.sha256(b"test").hexdigest()
POSTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", HI),
    ("/v1/responses", {"input": "x"}),
    ("/v1/messages", MESSAGE),
    ("/api/chat", {**HI, "stream": False}),
]
"""One request of each door."""


async def test_what_a_key_gets_is_described(tmp_path: Path) -> None:
    """Refused without one, limited with one: what is left is said with each answer, and the wait with the refusal."""
    async with upstream(each(answers)) as gpu:
        keys = [{"name": "t", "sha256": SHA, "models": ["mana/*"], "requests_per_minute": 2 * len(POSTS)}]
        async with proxy(settings({"gpu": openai(gpu.url)}, auth={"keys": keys}), tmp_path) as p:
            headers = {"Authorization": "Bearer test"}
            for path, body in POSTS:
                given = {"model": "mana/test", **body}
                assert await ask(p, "post", path, path, json=given) == 401
                assert await ask(p, "post", path, path, json={**body, "model": "gpu/m"}, headers=headers) == 403
            for code in (200, 429):
                for path, body in POSTS:
                    given = {"model": "mana/test", **body}
                    assert await ask(p, "post", path, path, json=given, headers=headers) == code
            async with p.client.post(p.url + "/v1/chat/completions", json=HI, headers=headers) as response:
                assert response.headers["x-should-retry"] == "false" and int(response.headers["Retry-After"]) > 5
                assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert await ask(p, "get", "/v1/health", "/v1/health", headers=headers) == 403


@pytest.mark.parametrize(("wait", "retried"), [(4, True), (53, False)])
async def test_whose_rate_limit_it_is(wait: int, retried: bool, tmp_path: Path) -> None:
    """One named target: 429, with its wait and the attempts. An alias: 503. A wait that nobody should sleep through
    says so."""
    limited = status("429 T", {"error": {"message": "slow down"}}, extra=f"Retry-After: {wait}\r\n")
    async with upstream(each(limited)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for model, code in (("gpu/m", 429), ("mana/test", 503)):
            for path, body in POSTS:
                given = {**body, "model": model}
                assert await ask(p, "post", path, path, json=given) == code
                async with p.client.post(p.url + path, json=given) as response:
                    assert response.headers.get("x-should-retry") == (None if retried else "false")
                    assert 1 <= int(response.headers["Retry-After"]) <= wait
                    error = (await response.json())["error"]
                    assert path == "/api/chat" or error["attempts"][0]["model"] == "gpu/m"


def words(*kinds: type[ProxyError]) -> set[str]:
    """Types and codes of all classes below `kinds`, and of themselves."""
    found = {word for kind in kinds for word in (kind.type, kind.code) if word}
    below = [each for kind in kinds for each in kind.__subclasses__() if each.__module__.startswith("manallm_proxy")]
    return found | (words(*below) if below else set())


def test_every_word_of_an_error_is_described() -> None:
    """Types and codes of our own; and why a target was passed."""
    error = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]
    told = set(re.findall(r"`(\w+)`", error["type"]["description"] + error["code"]["description"]))
    assert told == words(ProxyError)
    kinds: list[type[ProviderError]] = [ProviderError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    reasons = {kind.reason for kind in kinds} | set(get_args(SkipReason))
    reason = DOCUMENT["components"]["schemas"]["Attempt"]["properties"]["reason"]["description"]
    assert [word for word in sorted(reasons) if f"`{word}`" not in reason] == []


async def test_a_web_pages_script_may_read_what_clients_act_upon(tmp_path: Path) -> None:
    """An SDK in a browser sees only what is named to the browser, and would sleep for Retry-After otherwise."""
    acted_upon = {
        name.lower()
        for _, _, operation in operations()
        for response in operation["responses"].values()
        for name in resolved(response).get("headers", {})
    }
    async with proxy(settings({"none": openai("http://127.0.0.1:9")}), tmp_path) as p:
        headers = {"Origin": "http://localhost:5173"}
        async with p.client.post(p.url + "/v1/chat/completions", json=HI, headers=headers) as response:
            named = response.headers["Access-Control-Expose-Headers"].lower().split(", ")
    assert acted_upon - set(named) == {"allow", "www-authenticate"}
