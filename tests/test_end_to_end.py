"""One request through the whole proxy, over real sockets on both sides."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, answers, chunk, completion, each, status, upstream

pytestmark = pytest.mark.usefixtures("http")


def events(body: bytes) -> list[Any]:
    """The data events of a stream, ``[DONE]`` as text."""
    rows = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [row if row == "[DONE]" else json.loads(row) for row in rows]


def text_of(body: bytes) -> str:
    chunks = [e for e in events(body) if isinstance(e, dict)]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))


async def test_a_chat_is_relayed_with_its_target_named(tmp_path: Path) -> None:
    """The provider gets the client's body but for the model; the client gets the target in body and header."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url, api_key="sk-1")}), tmp_path) as p:
        code, body, headers = await p.chat(model="mana/test", odd_field={"kept": [1]})
        assert code == 200
        assert body["choices"][0]["message"]["content"] == "Hello"
        assert body["model"] == headers["x-mana-llm-resolved"] == "gpu/m"
        assert headers["x-mana-llm-attempts"] == "1"
        seen = gpu.posts[0]
        assert (seen.path, seen.json["model"], seen.json["odd_field"]) == ("/v1/chat/completions", "m", {"kept": [1]})
        assert seen.headers["authorization"] == "Bearer sk-1"
        assert seen.headers["x-request-id"] == headers["x-request-id"]


async def test_a_stream_is_relayed_chunk_by_chunk(tmp_path: Path) -> None:
    """Each chunk arrives while the next is not yet sent; headers name the target; no usage chunk nobody asked for."""
    go = asyncio.Event()

    async def slowly(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk(role=True) + chunk("one"))
        await go.wait()
        await connection.chunk(chunk(finish="stop") + DONE)
        await connection.end()

    async with upstream(each(slowly)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        payload = {"messages": [], "stream": True}
        async with p.client.post(p.url + "/v1/chat/completions", json=payload) as response:
            first = await asyncio.wait_for(response.content.readany(), 2)
            assert b"one" in first
            assert response.headers["X-Mana-LLM-Resolved"] == "gpu/m"
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert response.headers["Cache-Control"] == "no-cache"
            go.set()
            rest = await response.read()
        assert rest.endswith(DONE)
        assert {e["model"] for e in events(first + rest) if isinstance(e, dict)} == {"gpu/m"}
        assert gpu.posts[0].json["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("asked", [True, False])
async def test_the_usage_chunk_comes_exactly_when_it_was_asked_for(tmp_path: Path, asked: bool) -> None:
    """The proxy counts it in both cases."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        more = {"stream_options": {"include_usage": True}} if asked else {}
        _, body, _ = await p.stream(**more)
        assert any(isinstance(e, dict) and e["choices"] == [] for e in events(body)) is asked
        assert text_of(body) == "Hello"
        async with p.client.get(p.url + "/metrics") as response:
            metrics = await response.text()
        assert 'mana_llm_tokens_total{model="m",provider="gpu",type="completion"} 2' in metrics


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_dead_provider_costs_nothing_that_the_client_sees(tmp_path: Path, streaming: bool) -> None:
    """Port closed: the next of the chain serves, the attempt is counted and blamed."""
    async with upstream(each(answers)) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            await gpu.stop()
            if streaming:
                code, body, headers = await p.stream()
                assert text_of(body) == "Hello"
            else:
                code, _, headers = await p.chat()
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (200, "cloud/m", "2")
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["consecutive_failures"] == 1
            assert health["providers"]["gpu"]["last_error"] == "connect_error"


async def test_when_nobody_can_answer_the_503_says_why(tmp_path: Path) -> None:
    """Entry by entry: one refused, one without its key; with the time to come back."""
    async with upstream(each(answers)) as gpu:
        providers = {"gpu": openai(gpu.url), "groq": openai("http://127.0.0.1:9", api_key="${GROQ_API_KEY}")}
        async with proxy(settings(providers), tmp_path) as p:
            await gpu.stop()
            code, body, headers = await p.chat()
            assert code == 503
            error = body["error"]
            assert (error["type"], error["code"]) == ("no_healthy_provider", "no_healthy_provider")
            assert [(a["model"], a["reason"]) for a in error["attempts"]] == [
                ("gpu/m", "connect_error"),
                ("groq/m", "unconfigured"),
            ]
            assert error["attempts"][0]["detail"] == "refused"
            assert 1 <= int(headers["retry-after"]) <= 60
            code, body, _ = await p.chat(model="gpu/m")  # by its own name: 429 is for limits alone
            assert (code, body["error"]["code"], len(body["error"]["attempts"])) == (503, "no_healthy_provider", 1)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_chain_that_has_had_its_time_is_a_503(tmp_path: Path, streaming: bool) -> None:
    """The provider under way is left and not blamed, the next one is not asked."""

    async def silent(connection: Connection, _seen: Seen) -> None:
        await connection.gone()
        left.set()

    left = asyncio.Event()
    async with upstream(each(silent)) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)})
        config["aliases"]["mana/test"]["chain_timeout"] = "200ms"
        async with proxy(config, tmp_path) as p:
            code, body, headers = await p.chat(stream=streaming)
            assert (code, headers["x-mana-llm-attempts"]) == (503, "1")
            assert [(a["model"], a["reason"]) for a in body["error"]["attempts"]] == [
                ("gpu/m", "chain_timeout"),
                ("cloud/m", "chain_timeout"),
            ]
            await asyncio.wait_for(left.wait(), 2)
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["consecutive_failures"] == 0
    assert cloud.posts == []


async def test_an_error_in_place_of_the_first_event_is_a_failed_attempt(tmp_path: Path) -> None:
    """200, role, empty content, then an error: held, dropped, and the next provider speaks alone."""

    async def stumbles(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(b": PROCESSING\n\n" + chunk(role=True))
        await connection.chunk(b'data: {"error":{"message":"boom","code":502}}\n\n')
        await connection.end()

    async with upstream(each(stumbles)) as gpu, upstream(each(answers)) as cloud:
        async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
            code, body, headers = await p.stream()
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            assert (text_of(body), b"boom" in body, b"PROCESSING" in body) == ("Hello", False, False)


@pytest.mark.parametrize("how", ["fin", "reset", "error event", "cut event"])
async def test_after_commit_nothing_is_spliced(tmp_path: Path, how: str) -> None:
    """A stream that breaks ends with an error event and no [DONE]; nobody else is asked; the provider is blamed."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        if how == "error event":
            await connection.chunk(b'data: {"error":{"message":"out of memory","code":500}}\n\n')
            await connection.end()
        elif how == "reset":
            await asyncio.wait_for(connection.upstream.go.wait(), 5)
            connection.reset()
        elif how == "cut event":
            await connection.chunk(b'data: {"choices":[{"del')
            connection.writer.close()
        else:
            connection.writer.close()

    async with upstream(each(breaks)) as gpu, upstream(each(answers)) as cloud:
        async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
            payload = {"messages": [], "stream": True}
            async with p.client.post(p.url + "/v1/chat/completions", json=payload) as response:
                body = await response.content.readany()
                gpu.go.set()
                body += await everything(response)
            assert events(body)[0]["choices"][0]["delta"]["content"] == "one"
            assert "error" in events(body)[-1]
            assert events(body)[-1]["error"]["target"] == "gpu/m"
            assert b"[DONE]" not in body
            assert cloud.posts == []
            _, health = await p.get("/v1/health")
            blamed = health["providers"]["gpu"]
            assert (
                blamed["consecutive_failures"]
                + sum(t["consecutive_failures"] for t in blamed.get("targets", {}).values())
                == 1
            )


@pytest.mark.parametrize("phase", ["before the first byte", "in the stream", "whole answer"])
async def test_a_client_that_leaves_ends_the_upstream_request(tmp_path: Path, phase: str) -> None:
    """Within a second; nobody else is asked, nobody is blamed."""
    arrived = asyncio.Event()

    async def waits(connection: Connection, seen: Seen) -> None:
        if phase == "in the stream":
            await connection.head()
            await connection.chunk(chunk("one"))
        arrived.set()
        await connection.gone()

    async with upstream(each(waits)) as gpu, upstream(each(answers)) as cloud:
        async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
            payload = {"messages": [], "stream": phase != "whole answer"}
            async with aiohttp.ClientSession() as leaving:
                request = asyncio.ensure_future(leaving.post(p.url + "/v1/chat/completions", json=payload))
                await asyncio.wait_for(arrived.wait(), 5)
                if phase == "in the stream":
                    response = await asyncio.wait_for(request, 5)
                    await response.content.readany()
                    response.close()
                else:
                    request.cancel()
                    await asyncio.gather(request, return_exceptions=True)
            held = next(c for c in gpu.connections if not c.closed.is_set() or c is gpu.connections[-1])
            await asyncio.wait_for(held.closed.wait(), 1)
            assert cloud.posts == []
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["consecutive_failures"] == 0
            assert health["providers"]["gpu"]["in_flight"] == 0
            assert '"outcome":"client_gone"' in p.log.getvalue()


async def test_a_stale_pooled_connection_is_not_the_providers_failure(tmp_path: Path) -> None:
    """Three pooled connections die at reuse: the same provider is asked again on a fresh one."""

    async def once(connection: Connection) -> None:
        seen = await connection.request()
        if seen is not None and seen.method == "POST":
            await answers(connection, seen)
            if await connection.request() is not None:
                connection.reset()
        elif seen is not None:
            await connection.upstream.probe(connection)

    async with upstream(once) as gpu, upstream(each(answers)) as cloud:
        async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
            assert {r[0] for r in await asyncio.gather(*(p.chat() for _ in range(3)))} == {200}
            code, _, headers = await p.chat()
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (200, "gpu/m", "1")
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["consecutive_failures"] == 0


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("400 Bad Request", 400, "invalid_request_error"),
        ("404 Not Found", 404, "invalid_request_error"),
        ("409 Conflict", 409, "invalid_request_error"),
        ("413 Payload Too Large", 413, "invalid_request_error"),
        ("422 Unprocessable", 422, "invalid_request_error"),
        ("401 Unauthorized", 502, "provider_auth_error"),
        ("403 Forbidden", 502, "provider_auth_error"),
        ("407 Proxy Authentication Required", 502, "provider_auth_error"),
    ],
)
async def test_what_is_the_callers_goes_to_the_caller(tmp_path: Path, line: str, code: int, kind: str) -> None:
    """Same status and message, no fallback, health left alone; our own key's rejection is a 502."""
    said = {"error": {"message": "you sent sk-key-of-the-proxy wrong", "type": None, "code": None}}
    async with upstream(each(status(line, said))) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url, api_key="sk-key-of-the-proxy"), "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            for _ in range(3):
                got, body, headers = await p.chat()
                assert (got, body["error"]["type"], body["error"]["source"]) == (code, kind, "provider")
            assert "sk-key" not in json.dumps(body)
            assert headers["x-mana-llm-resolved"] == body["error"]["target"] == "gpu/m"
            assert (headers.get("x-should-retry") == "false") == (code == 502)
            assert cloud.posts == []


async def test_fallback_on_moves_on_and_says_so(tmp_path: Path) -> None:
    """An operator who prefers an answer to an alarm gets one, and a warning each time."""
    async with upstream(each(status("401 Unauthorized"))) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)})
        config["aliases"]["mana/test"]["fallback_on"] = ["auth"]
        async with proxy(config, tmp_path) as p:
            code, _, headers = await p.chat()
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            assert '"level":"warning"' in p.log.getvalue()


async def test_429_cools_the_target_and_is_no_failure(tmp_path: Path) -> None:
    """The next request skips it until its Retry-After. Who named it gets the 429, who named an alias a 503."""
    async with (
        upstream(each(status("429 Too Many", extra="Retry-After: 7\r\n"))) as gpu,
        upstream(each(answers)) as cloud,
    ):
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)})
        config["aliases"]["mana/alone"] = {"chain": ["gpu/m"]}
        async with proxy(config, tmp_path) as p:
            assert [(await p.chat())[2]["x-mana-llm-attempts"] for _ in range(2)] == ["2", "1"]
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["status"] == "cooling"
            assert health["providers"]["gpu"]["targets"]["m"]["cooling_until"]
            assert health["providers"]["gpu"]["consecutive_failures"] == 0
            code, body, headers = await p.chat(model="gpu/m")
            assert (code, body["error"]["attempts"][0]["reason"]) == (429, "cooling")
            assert 1 <= int(headers["retry-after"]) <= 7
            code, body, headers = await p.chat(model="mana/alone")
            assert (code, body["error"]["attempts"][0]["reason"]) == (503, "cooling")
            assert 1 <= int(headers["retry-after"]) <= 7


async def test_a_provider_switched_off_in_the_middle_of_a_load(tmp_path: Path) -> None:
    """100 requests over a chain of two: no client sees an error; metrics, log and health tell the story."""
    async with upstream(each(answers)) as gpu, upstream(each(answers)) as cloud:
        async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
            results: list[tuple[int, str]] = []
            lanes = asyncio.Semaphore(10)

            async def one(number: int) -> None:
                async with lanes:
                    if number == 50:
                        await gpu.stop()
                    if number % 2:
                        code, body, headers = await p.stream()
                        assert text_of(body) == "Hello", body
                    else:
                        code, answer, headers = await p.chat()
                        assert code == 200, answer
                    results.append((code, headers["x-mana-llm-resolved"]))

            await asyncio.gather(*(one(n) for n in range(100)))
            assert {code for code, _ in results} == {200}
            assert {target for _, target in results} == {"gpu/m", "cloud/m"}
            _, health = await p.get("/v1/health")
            assert (health["status"], health["providers"]["gpu"]["status"]) == ("degraded", "unhealthy")
            async with p.client.get(p.url + "/metrics") as response:
                metrics = await response.text()
            assert 'mana_llm_provider_healthy{provider="gpu"} 0' in metrics
            assert 'mana_llm_fallback_total{from_model="gpu/m"' in metrics
            lines = [json.loads(line) for line in p.log.getvalue().splitlines()]
            assert sum(1 for line in lines if "unhealthy" in json.dumps(line) and "request_id" not in line) == 1


async def test_a_stream_asked_of_a_server_that_answers_whole(tmp_path: Path) -> None:
    """A JSON completion becomes the chunks that the client asked for."""

    async def whole(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("all at once"))

    async with upstream(each(whole)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        _, body, _ = await p.stream()
        assert text_of(body) == "all at once"
        assert body.endswith(DONE)
