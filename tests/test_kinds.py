"""The kinds of provider behind one surface: the same requests, the same rules, each over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.native_servers import speaks_messages
from tests.proxy import HI, everything, openai, proxy, settings
from tests.servers import gemini, gemini_server, line, ollama_server
from tests.upstreams import DONE, Connection, Seen, Upstream, answers, chunk, completion, each, status, upstream
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("http")

Answer = Callable[[Connection, Seen], Awaitable[None]]


async def hangs(connection: Connection, seen: Seen) -> None:
    """Takes the request and says nothing."""
    await connection.gone()


async def hangs_after_ollama(connection: Connection, seen: Seen) -> None:
    await connection.head(content_type="application/x-ndjson")
    await connection.chunk(line("Hel"))
    await connection.gone()


async def hangs_after_gemini(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(b"data: " + gemini("Hel") + b"\r\n\r\n")
    await connection.gone()


async def hangs_after_openai(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk("Hel"))
    await connection.gone()


def configured(kind: str, server: Upstream) -> dict[str, Any]:
    match kind:
        case "ollama":
            return {"kind": "ollama", "base_url": server.url}
        case "ollama, api: openai":
            return {"kind": "ollama", "base_url": server.url, "api": "openai"}
        case "google":
            return {"kind": "google", "base_url": server.url, "api_key": "AIza-key-of-the-proxy"}
        case _:
            return openai(server.url)


SERVERS: dict[str, tuple[Answer, Answer]] = {
    "openai": (answers, hangs_after_openai),
    "ollama": (ollama_server, hangs_after_ollama),
    "ollama, api: openai": (answers, hangs_after_openai),
    "google": (gemini_server, hangs_after_gemini),
}


async def speaks_both(connection: Connection, seen: Seen) -> None:
    await (speaks_messages if seen.path.endswith("/messages") else answers)(connection, seen)


def text_of(body: bytes) -> str:
    rows = [json.loads(row[6:]) for row in body.splitlines() if row.startswith(b"data: {")]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in rows if c.get("choices"))


@pytest.mark.parametrize("kind", SERVERS)
async def test_every_kind_answers_every_endpoint(tmp_path: Path, kind: str) -> None:
    """Chat streamed and not, embeddings both ways, usage counted, the target named."""
    async with upstream(each(SERVERS[kind][0])) as server:
        async with proxy(settings({"p": configured(kind, server)}), tmp_path) as p:
            code, body, headers = await p.chat()
            assert (code, body["choices"][0]["message"]["content"]) == (200, "Hello")
            assert body["choices"][0]["finish_reason"] == "stop"
            assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 2)
            assert body["model"] == headers["x-mana-llm-resolved"] == "p/m"
            code, raw, headers = await p.stream(stream_options={"include_usage": True})
            assert (code, text_of(raw), headers["x-mana-llm-resolved"]) == (200, "Hello", "p/m")
            assert raw.endswith(DONE)
            assert raw.count(b'"usage":{') + raw.count(b'"usage": {') == 1
            one = "hi" if "openai" in kind else ["hi"]
            code, body, _ = await p.post("/v1/embeddings", {"input": one})
            assert (code, body["data"][0]["embedding"]) == (200, [0.5, -0.25])
            code, body, _ = await p.post("/v1/embeddings", {"input": one, "encoding_format": "base64"})
            assert (code, body["data"][0]["embedding"]) == (200, "AAAAPwAAgL4=")


@pytest.mark.parametrize("kind", [*SERVERS, "loopback", "native"])
async def test_legal_json_that_our_decoder_refuses_is_never_our_failure(tmp_path: Path, kind: str) -> None:
    """Half of a surrogate pair, a byte order mark, a number beyond all: served, or refused as the caller's mistake."""
    odd = [b'"\\ud800"', b'["\\ud800"]', b"[1e999]", b"[1, 1e999]", b'"a", "x": "\\ud800", "y": 1e999']
    embeddings = [b'%b{"input": %b}' % (mark, value) for value in odd for mark in (b"", b"\xef\xbb\xbf")]
    chat = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true, "stream_options": {"x": "\\ud800"}}'
    block = b'{"type": "thinking", "thinking": "t", "signature": "", "x": 1e999}'
    messages = b'{"max_tokens": 5, "messages": [{"role": "assistant", "content": [%b]}]}' % block
    async with upstream(each(SERVERS.get(kind, (speaks_both, speaks_both))[0])) as server:
        provider = {"kind": "loopback"} if kind == "loopback" else configured(kind, server)
        provider |= {"speaks": ["chat", "messages"]} if kind == "native" else {}
        async with proxy(settings({"p": provider}), tmp_path) as p:
            sent = [("embeddings", body) for body in embeddings] + [("chat/completions", chat), ("messages", messages)]
            for path, body in sent:
                async with p.client.post(f"{p.url}/v1/{path}", data=body) as response:
                    assert response.status in (200, 400), (body, await response.text())
                    await response.read()
            assert '"internal error"' not in p.log.getvalue()


@pytest.mark.parametrize("phase", ["before the first byte", "whole answer", "in the stream"])
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_client_that_leaves_ends_the_upstream_request(tmp_path: Path, kind: str, phase: str) -> None:
    """Within a second, before and after commit; nobody else is asked, nobody is blamed."""
    answer = SERVERS[kind][1] if phase == "in the stream" else hangs
    async with upstream(each(answer)) as server, upstream(each(answers)) as cloud:
        config = settings({"p": configured(kind, server), "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p, aiohttp.ClientSession() as leaving:
            payload = {"messages": [{"role": "user", "content": "hi"}], "stream": phase != "whole answer"}
            request = asyncio.ensure_future(leaving.post(f"{p.url}/v1/chat/completions", json=payload))
            await until(lambda: server.posts)
            if phase == "in the stream":
                response = await asyncio.wait_for(request, 5)
                await response.content.readany()
                response.close()
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            asked = next(c for c in server.connections if c.answering)
            await asyncio.wait_for(asked.closed.wait(), 1)
            assert cloud.posts == []
            await until(lambda: "client_gone" in p.log.getvalue(), 1)
            _, health = await p.get("/v1/health")
            assert (health["providers"]["p"]["consecutive_failures"], health["providers"]["p"]["in_flight"]) == (0, 0)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_dead_provider_of_every_kind_is_passed(tmp_path: Path, kind: str, streaming: bool) -> None:
    """Switched off: refused, blamed, and the next of the chain answers."""
    async with upstream(each(answers)) as server, upstream(each(answers)) as cloud:
        config = settings({"p": configured(kind, server), "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            await server.stop()
            code, _, headers = await (p.stream() if streaming else p.chat())
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            _, health = await p.get("/v1/health")
            assert health["providers"]["p"]["last_error"] == "connect_error"


async def test_ollamas_mid_stream_error_is_seen(tmp_path: Path) -> None:
    """A line {"error"} at status 200: its own OpenAI endpoint would swallow it."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head(content_type="application/x-ndjson")
        await connection.chunk(line("Hel"))
        await connection.chunk(b'{"error":"model runner has unexpectedly stopped"}\n')
        await connection.end()

    async with upstream(each(breaks)) as gpu:
        async with proxy(settings({"p": configured("ollama", gpu)}), tmp_path) as p:
            _, raw, _ = await p.stream()
            assert b'"error":{' in raw
            assert b"[DONE]" not in raw


async def test_a_capability_that_the_listing_denies_is_refused_before_the_call(tmp_path: Path) -> None:
    """Tools on a model without: 400, and the next of the alias is not tried; fallback_on lets it pass."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply({"models": [{"name": "m", "model": "m", "capabilities": ["completion"]}]})
            else:
                await ollama_server(connection, seen)

    async with upstream(script) as gpu, upstream(each(answers)) as cloud:
        config = settings({"p": configured("ollama", gpu), "cloud": openai(cloud.url)})
        config["aliases"]["mana/wide"] = {"chain": ["p/m", "cloud/m"], "fallback_on": ["capability"]}
        async with proxy(config, tmp_path) as p:
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            code, body, _ = await p.chat(tools=tools)
            assert (code, body["error"]["code"]) == (400, "unsupported_capability")
            assert gpu.posts == cloud.posts == []
            code, _, headers = await p.chat(tools=tools, model="mana/wide")
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            assert (await p.chat())[2]["x-mana-llm-resolved"] == "p/m"


async def test_a_server_that_refuses_stream_options_is_asked_without(tmp_path: Path) -> None:
    """Mistral's validation: refused once, that target is never asked again, not after a reload either; logged once."""

    async def strict(connection: Connection, seen: Seen) -> None:
        if "stream_options" in seen.json and seen.json["model"] == "m":
            await connection.reply({"object": "error", "message": "extra_forbidden: stream_options"}, "422 No")
        else:
            await answers(connection, seen)

    async with upstream(each(strict)) as cloud, proxy(settings({"p": openai(cloud.url)}), tmp_path) as p:
        for _ in range(2):
            code, raw, _ = await p.stream()
            assert (code, text_of(raw)) == (200, "Hello")
        assert ["stream_options" in seen.json for seen in cloud.posts] == [True, False, False]
        assert (await p.stream(model="p/other"))[0] == 200
        assert "stream_options" in cloud.posts[-1].json
        p.write(settings({"p": openai(cloud.url)}, log={"level": "info"}))
        p.app.reload()
        assert (await p.stream())[0] == 200
        assert "stream_options" not in cloud.posts[-1].json
        assert p.log.getvalue().count('"stream_options refused"') == 1


async def test_an_unreadable_answer_falls_back(tmp_path: Path) -> None:
    """200 with HTML, an empty body, an error inside: never handed on as success."""
    for body in (b"<html>login</html>", b"", b'{"error":{"message":"no","code":503}}', json.dumps({"id": 1}).encode()):

        async def odd(connection: Connection, seen: Seen, body: bytes = body) -> None:
            await connection.reply(body)

        async with upstream(each(odd)) as gpu, upstream(each(answers)) as cloud:
            async with proxy(settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)}), tmp_path) as p:
                code, answer, headers = await p.chat()
                assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
                assert answer["choices"][0]["message"]["content"] == completion()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("kind", ["ollama", "google"])
async def test_broken_arguments_in_a_history_are_in_the_log(kind: str, tmp_path: Path) -> None:
    """What a model once wrote does not end the conversation; that it went as ``{}`` is said, without its words."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "not-json secret-words"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    async with (
        upstream(each(SERVERS[kind][0])) as server,
        proxy(settings({"p": configured(kind, server)}), tmp_path) as p,
    ):
        assert (await p.chat(messages=messages))[0] == 200
        rows = [json.loads(row) for row in p.log.getvalue().splitlines()]
        note = "sent as {}: tool arguments in the history that are no JSON object"
        assert [row["notes"] for row in rows if "notes" in row] == [[note]]
        assert "secret-words" not in p.log.getvalue()


ADVICE: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**HI, "reasoning_effort": "medium"}),
    "chat, with null": ("/v1/chat/completions", {**HI, "reasoning_effort": "medium", "think": None}),
    "chat, as OpenRouter has it": ("/v1/chat/completions", {**HI, "reasoning": {"effort": "medium"}}),
    "completions": ("/v1/completions", {"prompt": "hi", "reasoning_effort": "medium"}),
    "responses": ("/v1/responses", {"input": "hi", "reasoning": {"effort": "medium"}}),
    "messages": (
        "/v1/messages",
        {**HI, "max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 10_000}, "temperature": 0.5},
    ),
    "messages, by effort": ("/v1/messages", {**HI, "max_tokens": 9, "output_config": {"effort": "medium"}}),
}
"""By door: a request whose client wants an effort of every model alike."""
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**HI, "think": True}),
    "Ollama's chat": ("/api/chat", {**HI, "think": True}),
    "Ollama's chat, how much": ("/api/chat", {**HI, "think": "high"}),
    "Ollama's generate": ("/api/generate", {"prompt": "hi", "think": True}),
}
"""Requests that name Ollama's own ``think``."""


async def thinks_not(connection: Connection, seen: Seen) -> None:
    """An Ollama that does not list what its models can do."""
    if seen.json.get("think"):
        await connection.reply({"error": '"m" does not support thinking'}, "400 Bad Request")
    else:
        await ollama_server(connection, seen)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("door", ADVICE)
async def test_a_model_that_does_not_think_is_asked_without_it(door: str, stream: bool, tmp_path: Path) -> None:
    """An effort is a client's setting for all models; the server's refusal says as much as its list would have."""
    path, body = ADVICE[door]
    async with upstream(each(thinks_not)) as box:
        async with proxy(settings({"box": configured("ollama", box)}), tmp_path) as p:
            async with p.client.post(p.url + path, json={**body, "stream": stream}) as response:
                answer = await everything(response)
                assert (response.status, response.headers["X-Mana-LLM-Attempts"]) == (200, "1"), answer
            assert b"error" not in answer or b'"error":null' in answer
            first, again = (seen.json for seen in box.posts)
            assert first == {**again, "think": "medium"}
            assert (await p.get("/v1/health"))[1]["providers"]["box"].get("targets", {}) == {}


@pytest.mark.parametrize("door", ["chat", "messages"])
async def test_a_refusal_of_thinking_that_was_not_asked_for_is_the_servers(door: str, tmp_path: Path) -> None:
    """Its list says that the model does not think, so it was asked without: no caller could mend such a request."""

    async def confused(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply({"models": [{"name": "m", "model": "m", "capabilities": ["completion"]}]})
            else:
                assert "think" not in seen.json
                await connection.reply({"error": '"m" does not support thinking'}, "400 Bad Request")

    path, body = ADVICE[door]
    async with upstream(confused) as box, upstream(each(answers)) as cloud:
        providers = {"box": configured("ollama", box), "cloud": configured("openai", cloud)}
        async with proxy(settings(providers), tmp_path) as p:
            code, answer, headers = await p.post(path, {"model": "mana/test", **body, "stream": False})
            assert (code, headers["x-mana-llm-resolved"], len(box.posts)) == (200, "cloud/m", 1), answer
            assert "bad_response" in p.log.getvalue()


@pytest.mark.parametrize("door", ASKED)
async def test_who_asks_an_ollama_to_think_means_it(door: str, tmp_path: Path) -> None:
    """As there, it is the caller's mistake; and a refusal of something else is not answered with another request."""
    path, body = ASKED[door]
    async with upstream(each(thinks_not)) as box:
        async with proxy(settings({"box": configured("ollama", box)}), tmp_path) as p:
            code, answer, _ = await p.post(path, {"model": "mana/test", **body, "stream": False})
            assert (code, "does not support thinking" in str(answer["error"])) == (400, True)
            assert len(box.posts) == 1
    refusal = {"error": "json: cannot think of a reason"}
    async with upstream(each(status("400 Bad Request", refusal))) as box:
        async with proxy(settings({"box": configured("ollama", box)}), tmp_path) as p:
            assert (await p.chat())[0] == 400
            assert len(box.posts) == 1


@pytest.mark.parametrize("kind", ["openai", "google"])
async def test_a_status_that_the_operator_lists_counts_inside_a_200_too(kind: str, tmp_path: Path) -> None:
    """OpenRouter's timeout, 408, in place of an answer: the next target is tried, and this one cools."""
    late = b'{"error":{"message":"Provider timed out","code":408}}'

    async def in_band(connection: Connection, seen: Seen) -> None:
        if not (seen.json.get("stream") or "stream" in seen.path):
            await connection.reply(late)
            return
        await connection.head()
        await connection.chunk(b"data: " + late + b"\n\n")
        await connection.end()

    async with upstream(each(in_band)) as first, upstream(each(answers)) as second:
        providers = {"first": configured(kind, first), "second": openai(second.url)}
        for stream in (False, True):
            async with proxy(settings(providers), tmp_path) as p:
                code, _, headers = await (p.stream() if stream else p.chat())
                assert (code, headers["x-mana-llm-resolved"]) == (200, "second/m")
                health = (await p.get("/v1/health"))[1]["providers"]["first"]["targets"]["m"]
                assert (health["status"], health["last_error"]) == ("cooling", "http_408")


async def wordless(connection: Connection, seen: Seen) -> None:
    """A stream with an end and nothing else, in the words of whoever is asked."""
    if "/api/" in seen.path:
        last = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", "eval_count": 1}
        await connection.reply(json.dumps(last).encode(), content_type="application/x-ndjson")
        return
    await connection.head()
    if "generateContent" in seen.path or "streamGenerateContent" in seen.path:
        end = {"candidates": [{"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}]}
        await connection.chunk(b"data: " + json.dumps(end).encode() + b"\r\n\r\n")
    else:
        await connection.chunk(chunk(role=True) + chunk("") + chunk(finish="stop") + DONE)
    await connection.end()


async def silent(connection: Connection, seen: Seen) -> None:
    """No event at all."""
    await connection.head()
    await connection.end()


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"])
async def test_a_stream_without_a_word_is_an_answer_unless_it_is_listed(kind: str, path: str, tmp_path: Path) -> None:
    """By itself it commits; with ``fallback_on: [empty]`` the next target is asked, and nobody is blamed."""
    body = {"input": "hi"} if path == "/v1/responses" else {**HI, "max_tokens": 9}
    async with upstream(each(wordless)) as first, upstream(each(answers)) as second:
        providers = {"first": configured(kind, first), "second": openai(second.url)}
        config = settings(providers)
        config["aliases"]["mana/wide"] = {"chain": ["first/m", "second/m"], "fallback_on": ["empty"]}
        async with proxy(config, tmp_path) as p:
            for model, target in (("mana/test", "first/m"), ("mana/wide", "second/m")):
                async with p.client.post(p.url + path, json={**body, "model": model, "stream": True}) as response:
                    assert (response.status, response.headers["X-Mana-LLM-Resolved"]) == (200, target)
                    await everything(response)
            health = (await p.get("/v1/health"))[1]["providers"]["first"]
            assert (health["status"], health.get("targets", {})) == ("healthy", {})
            assert "empty" in p.log.getvalue()


@pytest.mark.parametrize("answer", [silent, wordless])
async def test_a_last_target_without_a_word(answer: Answer, tmp_path: Path) -> None:
    """Nobody is left to ask, and the client learns why."""
    async with upstream(each(answer)) as only:
        config = settings({"only": openai(only.url)})
        config["aliases"]["mana/wide"] = {"chain": ["only/m"], "fallback_on": ["empty"]}
        async with proxy(config, tmp_path) as p:
            code, body, _ = await p.chat(model="mana/wide", stream=True)
            assert (code, [a["reason"] for a in body["error"]["attempts"]]) == (503, ["empty_answer"])
            code, raw, _ = await p.stream()
            assert (code, raw.endswith(DONE)) == (200, True)
