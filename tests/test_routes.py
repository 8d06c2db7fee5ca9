"""The table of routes: what is served, by which methods, and which slips of a URL are forgiven."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from manallm_proxy.gateway.route_table import RouteTable, base_url_advice
from tests.cases import every
from tests.proxy import proxy, settings


async def nothing(request: web.BaseRequest, rest: str) -> web.Response:
    return web.Response()


NOT = "this address is not served here"
TABLE = RouteTable()
TABLE.add("POST", "/v1/chat/completions", nothing)
TABLE.add("GET", "/v1/models", nothing)
TABLE.add("GET", "/v1/models/{id}", nothing)
TABLE.add("GET", "/metrics", nothing, forgiving=False)
TABLE.add("GET", "/v1/health", nothing, forgiving=False)
TABLE.add("GET", "/health", nothing, forgiving=False)


@every(
    [
        ("/v1/chat/completions", "/v1/chat/completions", ""),
        ("/chat/completions", "/chat/completions", ""),
        ("//v1/chat/completions", "/v1/chat/completions", ""),
        ("/v1//chat///completions", "/v1/chat/completions", ""),
        ("/v1/v1/chat/completions", "/v1/chat/completions", ""),
        ("/v1/v1/v1//chat/completions/", "/v1/chat/completions", ""),
        ("/chat/completions/", "/chat/completions", ""),
        ("/v1/models/", "/v1/models", ""),
        ("/v1/models/openrouter/a/b", "/v1/models/{id}", "openrouter/a/b"),
        ("/models/a//b", "/models/{id}", "a//b"),
        ("/v1/v1/models/a", "/v1/models/{id}", "a"),
        ("/v1/models/a/b/", "/v1/models/{id}", "a/b"),
        ("/v1/models//a/b", "/v1/models/{id}", "a/b"),
        ("/v1/models//", "/v1/models", ""),
        ("/openai/v1/chat/completions", "/v1/chat/completions", ""),
        ("/v1/openai/v1/chat/completions", "/v1/chat/completions", ""),
        ("//v1/openai/v1/v1/models/a/", "/v1/models/{id}", "a"),
        ("/v1/models/openai/v1/a", "/v1/models/{id}", "openai/v1/a"),
        ("/metrics", "/metrics", ""),
    ]
)
def test_a_slip_is_served_as_meant(path: str, name: str, rest: str) -> None:
    """Slashes, a doubled prefix, one at the end, and what Groq's and Azure's clients add to any base URL."""
    match = TABLE.find(path)
    assert match is not None
    assert (match.route.name, match.rest) == (name, rest)


@pytest.mark.parametrize(
    "path",
    [
        *("//metrics", "/metrics/", "/v1/metrics", "//health", "/v1//health", "/v1/v1/health", "/", "", "/v2/models"),
        *("/v1", "/openai/v1/health", "/openai/v1/metrics", "/openai/models", "/openai/v1", "/a/openai/v1/models"),
    ],
)
def test_an_operators_route_has_one_name(path: str) -> None:
    """Whoever hides it behind nginx hides it by its exact path."""
    assert TABLE.find(path) is None


OPERATORS = (
    *("/v1/requests", "/v1/requests/x", "/v1/explain", "/v1/events", "/v1/health"),
    *("/metrics", "/readyz", "/openapi.json", "/page/main.js"),
)


async def test_so_has_each_of_ours(tmp_path: Path) -> None:
    """No slip leads to it: neither slashes, nor a prefix that is missing or doubled."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        for path in OPERATORS:
            slips = {path.replace("/", "//"), f"/v1{path}", f"{path}/", f"/{path}", path.removeprefix("/v1")}
            for slip in slips - {path, "/health", "/v1/requests/x/", "/page/main.js/"}:  # /health is another one
                async with p.client.get(URL(p.url + slip, encoded=True)) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_url"), slip


@every(
    [
        ("/v1/chat/completions/chat/completions", "OpenAI's clients take a base URL that ends in /v1"),
        ("/v1/embeddings/embeddings/", "OpenAI's clients take a base URL that ends in /v1"),
        ("/api/chat/completions", "OpenAI's clients take a base URL that ends in /v1"),
        ("/api/v1/chat/completions", "OpenAI's clients take a base URL that ends in /v1"),
        ("/v1/messages/v1/messages", "Anthropic's clients take a base URL without a path"),
        ("/v1/api/chat", "Ollama's clients take an address without a path"),
        ("/api/api/tags", "Ollama's clients take an address without a path"),
        (
            "/openai/deployments/mana/fast-text/chat/completions",
            "of Azure's API version 'v1' is served, with addresses that begin with /openai/v1",
        ),
        ("/v1/files", ""),
        ("/v2/chat/completions", ""),
        ("/" + "/chat/completions" * 10_000 + "x", ""),
        ("/v1/models/" + "a:streamG" * 10_000, ""),
    ]
)
def test_a_base_url_with_too_much_is_recognised(path: str, wanted: str) -> None:
    """What the settings of an IDE take is not what they show."""
    assert base_url_advice(path) == wanted


async def test_a_404_says_what_is_wrong_with_the_base_url(tmp_path: Path) -> None:
    """Before the list of all that is served."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        status, answer, _ = await p.post("/v1/chat/completions/chat/completions", {"messages": []})
        assert status == 404
        assert answer["error"]["message"].startswith(
            f"{NOT}: OpenAI's clients take a base URL that ends in /v1. Served: POST"
        )
        status, answer, _ = await p.post("/v1/api/chat", {"messages": []})
        assert status == 404
        assert f"{NOT}: Ollama's clients take an address without a path. Served: POST" in str(answer)
        status, answer, _ = await p.post("/v1/files", {})
        assert answer["error"]["message"].startswith(f"{NOT}. Served: POST")


async def test_what_geminis_clients_ask_is_said_to_be_served_otherwise(tmp_path: Path) -> None:
    """google-genai's base URL may be set to the proxy; 'takes GET, HEAD only' says nothing to its user."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        for path in (
            "/v1/models/m:generateContent",
            "/v1beta/models/mana/a:streamGenerateContent",
            "/models/m:embedContent",
        ):
            status, answer, _ = await p.post(path, {})
            assert status == 404
            assert answer["error"]["message"].startswith(
                f"{NOT}: it is of Gemini's own API, and Gemini's models are served by OpenAI's. Served: POST"
            )


async def test_methods(tmp_path: Path) -> None:
    """HEAD as GET, without the body; a wrong method is 405 with those that are right."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        async with p.client.head(f"{p.url}/v1/models") as response:
            assert (response.status, await response.read()) == (200, b"")
            assert int(response.headers["Content-Length"]) > 0
        for method, path, allowed in (("DELETE", "/v1/models", "GET, HEAD"), ("GET", "/chat/completions", "POST")):
            async with p.client.request(method, p.url + path) as response:
                assert (response.status, response.headers["Allow"]) == (405, allowed)
        async with p.client.post(f"{p.url}//v1/v1/chat/completions/", json={"messages": []}) as response:
            assert response.status == 200
        for path in ("/v1/chat/completions?api-version=1", "/openai/v1/chat/completions?api-version=v1"):
            async with p.client.post(p.url + path, json={"messages": []}) as response:
                assert (response.status, response.headers["X-Mana-LLM-Resolved"]) == (200, "loopback/m"), path


@pytest.mark.parametrize(
    ("path", "said"), [("compact", "compacted"), ("input_tokens", "counted"), ("resp_1/cancel", "cancel")]
)
async def test_what_openai_serves_below_responses_and_we_do_not_is_named(tmp_path: Path, path: str, said: str) -> None:
    """404, in each spelling: a 405 would say that the address is there. A POST to an id has that still."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        for spelt in (f"/v1/responses/{path}", f"/responses/{path}", f"//v1/v1/responses//{path}/"):
            code, body, _ = await p.post(spelt, {"model": "loopback/m", "input": "hi"})
            assert (code, body["error"]["code"], said in body["error"]["message"]) == (404, "unknown_url", True), spelt
        for taken in ("resp_1", "resp_1/input_items", f"{path}/x", "cancel"):
            async with p.client.post(f"{p.url}/v1/responses/{taken}", json={}) as response:
                assert (response.status, response.headers["Allow"][-9:]) == (405, "GET, HEAD"), taken


async def test_what_is_not_served_below_api_is_said_as_ollama_says_it(tmp_path: Path) -> None:
    """A string, which every Ollama client shows; elsewhere OpenAI's envelope. A slip in the URL changes neither."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        for path in ("/api/nosuch", "//api/nosuch", "/api//nosuch", "///api/chat/x/", "/api/", "/api", "//api"):
            code, body = await p.get(path)
            assert (code, type(body["error"])) == (404, str), path
        for path in ("/v1/api/nosuch", "/v1//api/tags", "/v1/v1/api/tags"):  # a base URL with /v1 in an Ollama client
            code, body = await p.get(path)
            assert (code, type(body["error"])) == (404, str), path
        for path in ("/v1/nosuch", "/apis", "/v1/apix/tags", "/nosuch/api/tags", "//v1//nosuch", "/v1/v1", "//"):
            code, body = await p.get(path)
            assert (code, body["error"]["code"]) == (404, "unknown_url"), path
        for path in ("/v1/messages/batches", "//v1/messages/batches", "/v1//messages/batches", "/messages/x/"):
            code, body = await p.get(path)
            assert (code, body["type"], body["error"]["type"]) == (404, "error", "not_found_error"), path
