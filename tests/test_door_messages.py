"""``POST /v1/messages`` over a real proxy: each kind of provider, the walk, breaks, errors, lists."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.gateway.client_keys import digest_of
from tests import anthropic_stream
from tests.ollama_box import box
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import DONE, USAGE, Connection, Seen, answers, chunk, each, status, upstream

HI: dict[str, Any] = {"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "add", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
SIGNED = base64.b64encode(b"signed").decode()
VERSION = {"anthropic-version": "2023-06-01"}


async def say(p: Proxy, **fields: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one message."""
    async with p.client.post(f"{p.url}/v1/messages", json={**HI, **fields}, headers=VERSION) as response:
        return response.status, await everything(response), {k.lower(): v for k, v in response.headers.items()}


def frame(**delta: Any) -> bytes:
    finish = delta.pop("finish", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )


async def openai_tools(connection: Connection, seen: Seen) -> None:
    """Thoughts, a word, then a call in two parts."""
    function = {"name": "add", "arguments": '{"x": 1}'}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    if not seen.json.get("stream"):
        said = {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [call]}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        await connection.reply(
            {"choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}], "usage": usage}
        )
        return
    await connection.head()
    begun = {**call, "function": {"name": "add", "arguments": ""}}
    for part in (
        frame(role="assistant", content=""),
        frame(reasoning_content="hm"),
        frame(content="so"),
        frame(tool_calls=[begun]),
        frame(tool_calls=[{"index": 0, "function": {"arguments": '{"x": '}}]),
        frame(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        frame(finish="tool_calls"),
        *((USAGE,) if (seen.json.get("stream_options") or {}).get("include_usage") else ()),
        DONE,
    ):
        await connection.chunk(part)
    await connection.end()


async def ollama_tools(connection: Connection, seen: Seen) -> None:
    call = {"function": {"name": "add", "arguments": {"x": 1}}}
    message = {"role": "assistant", "content": "so", "thinking": "hm", "tool_calls": [call]}
    last = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
    if not seen.json["stream"]:
        await connection.reply({"message": message, **last})
        return
    await connection.head(content_type="application/x-ndjson")
    for part in ({"thinking": "hm"}, {"content": "so"}, {"tool_calls": [call]}):
        await connection.chunk(json.dumps({"message": {"content": "", **part}, "done": False}).encode() + b"\n")
    await connection.chunk(json.dumps({"message": {"role": "assistant", "content": ""}, **last}).encode() + b"\n")
    await connection.end()


async def google_tools(connection: Connection, seen: Seen) -> None:
    parts = [
        {"text": "hm", "thought": True},
        {"text": "so"},
        {"functionCall": {"name": "add", "args": {"x": 1}}, "thoughtSignature": SIGNED},
    ]
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2}
    chunks = [{"candidates": [{"content": {"role": "model", "parts": [part]}}]} for part in parts]
    last = {"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}], "usageMetadata": usage}
    if "stream" not in seen.path:
        await connection.reply(
            {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "usageMetadata": usage}
        )
        return
    await connection.head()
    for each_ in (*chunks, last):
        await connection.chunk(b"data: " + json.dumps(each_).encode() + b"\n\n")
    await connection.end()


KINDS: dict[str, tuple[Callable[[Connection, Seen], Awaitable[None]], Callable[[str], dict[str, Any]]]] = {
    "openai": (openai_tools, openai),
    "ollama": (ollama_tools, lambda url: {"kind": "ollama", "base_url": url}),
    "google": (google_tools, lambda url: {"kind": "google", "base_url": url, "api_key": "AIzaNotARealKey"}),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_with_a_tool_and_the_turn_after_it(kind: str, stream: bool, tmp_path: Path) -> None:
    """Thoughts, text and a call as blocks; handed back, the provider gets its own call and what it signed."""
    answer, provider = KINDS[kind]
    async with upstream(each(answer)) as server:
        async with proxy(settings({"p": provider(server.url)}, ["p/gemini-3-pro"]), tmp_path) as p:
            asked: dict[str, Any] = {"stream": stream, "tools": [TOOL], "system": "be brief", "model": "mana/test"}
            code, body, headers = await say(p, **asked)
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (
                200,
                "p/gemini-3-pro",
                "1",
            )
            assert headers["request-id"] == headers["x-request-id"]
            assert headers["content-type"] == ("text/event-stream" if stream else "application/json")
            said = anthropic_stream.message(body) if stream else json.loads(body)
            thought, text, *carrier, call = said["content"]
            assert (thought["type"], thought["thinking"], text) == ("thinking", "hm", {"type": "text", "text": "so"})
            assert (call["type"], call["name"], call["input"]) == ("tool_use", "add", {"x": 1})
            assert call["id"] and len(carrier) == (kind == "google")
            assert (said["stop_reason"], said["model"]) == ("tool_use", "p/gemini-3-pro")
            assert (said["usage"]["input_tokens"], said["usage"]["output_tokens"]) == (3, 2)
            result = {"type": "tool_result", "tool_use_id": call["id"], "content": "2"}
            later = {"role": "user", "content": [{"type": "text", "text": "go on"}, result]}
            turns = [*HI["messages"], {"role": "assistant", "content": said["content"]}, later]
            assert (await say(p, **asked, messages=turns))[0] == 200
            sent = server.posts[-1].json
    if kind == "google":
        assert sent["systemInstruction"]["parts"][0]["text"] == "be brief"
        model, user = sent["contents"][1:]
        assert model["parts"][-1]["thoughtSignature"] == SIGNED
        assert [next(iter(part)) for part in user["parts"]] == ["functionResponse", "text"]
    else:
        rows = sent["messages"]
        assert [row["role"] for row in rows] == ["system", "user", "assistant", "tool", "user"]
        assert [rows[n]["content"] for n in (0, 1, 3, 4)] == ["be brief", "hi", "2", "go on"]
        assert rows[2]["tool_calls"][0]["function"]["name"] == "add"
        assert rows[3]["tool_call_id"] == rows[2]["tool_calls"][0]["id"] == call["id"]
    if kind == "ollama":
        assert rows[3]["tool_name"] == "add"
    if kind == "openai":
        assert (sent["max_tokens"], rows[2]["content"]) == (100, "so")


async def before(connection: Connection, seen: Seen) -> None:
    """It dies before its first byte."""
    connection.reset()


async def at(connection: Connection, seen: Seen) -> None:
    """It dies at it: a head, a role, nothing that says something."""
    await connection.head()
    await connection.chunk(chunk(role=True))
    connection.reset()


async def after(connection: Connection, seen: Seen) -> None:
    """It dies with half an answer."""
    await connection.head()
    await connection.chunk(chunk(role=True))
    await connection.chunk(chunk("Half"))
    connection.reset()


@pytest.mark.parametrize(("dies", "attempts"), [(before, "2"), (at, "2"), (after, "1")])
async def test_a_chain_whose_first_provider_dies(
    dies: Callable[[Connection, Seen], Awaitable[None]], attempts: str, tmp_path: Path
) -> None:
    """Before there is content the next one answers; after it the stream breaks, and two voices are never mixed."""
    async with upstream(each(dies)) as first, upstream(each(answers)) as second:
        config = settings({"first": openai(first.url), "second": openai(second.url)})
        async with proxy(config, tmp_path) as p:
            code, body, headers = await say(p, stream=True)
            assert (code, headers["x-mana-llm-attempts"]) == (200, attempts)
            if attempts == "2":
                said = anthropic_stream.message(body)
                assert (said["content"][0]["text"], said["model"]) == ("Hello", "second/m")
                assert said["usage"]["output_tokens"] == 2
                return
            rows = anthropic_stream.events(body)
            kinds = ["message_start", "content_block_start", "content_block_delta", "error"]
            assert [row["type"] for row in rows] == kinds
            assert rows[2]["delta"]["text"] == "Half"
            assert rows[3]["error"]["type"] == "api_error"
            assert rows[3]["error"]["target"] == "first/m"
            assert rows[3]["request_id"] == headers["request-id"]
            assert second.posts == []
            [line] = [json.loads(row) for row in p.log.getvalue().splitlines() if '"event":"request"' in row]
            assert (line["endpoint"], line["outcome"]) == ("messages", "broken")


async def test_an_error_inside_a_stream_keeps_its_kind(tmp_path: Path) -> None:
    """A provider that is overloaded in mid answer says so."""

    async def overloaded(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("Half"))
        error = {"message": "slow down", "type": "rate_limit_error", "code": 429}
        await connection.chunk(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        await connection.end()

    async with upstream(each(overloaded)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        last = anthropic_stream.events((await say(p, stream=True))[1])[-1]
        assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")


async def test_a_silence_is_filled_with_pings(tmp_path: Path) -> None:
    """Also before the commit, where the operator wants it; a failure is an event then."""

    async def waits(connection: Connection, seen: Seen) -> None:
        if seen.json["model"] == "sick":
            await connection.upstream.go.wait()
            await connection.reply(b"{}", "400 Bad Request")
            return
        await connection.head()
        await connection.chunk(chunk("Hel"))
        await connection.upstream.go.wait()
        for rest in (chunk("lo"), chunk(finish="stop"), DONE):
            await connection.chunk(rest)
        await connection.end()

    async with upstream(each(waits)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, streaming={"heartbeat": 0.05, "early_heartbeat": 0.05})
        async with proxy(config, tmp_path) as p:

            async def ask(model: str) -> bytes:
                body = b""
                payload = {**HI, "stream": True, "model": model}
                async with p.client.post(f"{p.url}/v1/messages", json=payload) as response:
                    while b"event: ping" not in body:
                        body += await response.content.readany()
                    gpu.go.set()
                    return body + await everything(response)

            body = await asyncio.wait_for(ask("gpu/m"), 5)
            assert anthropic_stream.message(body)["content"][0]["text"] == "Hello"
            gpu.go.clear()
            body = await asyncio.wait_for(ask("gpu/sick"), 5)
            assert anthropic_stream.types(body) == ["error"]
            assert anthropic_stream.events(body)[-1]["error"]["type"] == "invalid_request_error"


STATUSES: list[tuple[str, int, str]] = [
    ("400 B", 400, "invalid_request_error"),
    ("401 U", 502, "api_error"),
    ("402 P", 402, "billing_error"),
    ("404 N", 404, "not_found_error"),
    ("413 L", 413, "request_too_large"),
    ("422 U", 422, "invalid_request_error"),
    ("429 T", 429, "rate_limit_error"),
    ("500 I", 503, "api_error"),
    ("503 S", 503, "api_error"),
]


@pytest.mark.parametrize(("line", "code", "kind"), STATUSES)
async def test_providers_refusals_in_anthropics_form(line: str, code: int, kind: str, tmp_path: Path) -> None:
    """With the message of the provider, the request's id in body and head, and all that OpenAI's form has besides."""
    body = {"error": {"message": "as you asked", "type": "x", "code": None}}
    async with upstream(each(status(line, body))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for stream in (False, True):
            got, raw, headers = await say(p, model="gpu/m", stream=stream)
            told = json.loads(raw)
            assert (got, told["type"], told["error"]["type"]) == (code, "error", kind)
            assert told["request_id"] == headers["request-id"] == headers["x-request-id"]
            assert {"message", "code", "param", "source"} <= told["error"].keys()
            if code in (429, 503):
                assert told["error"]["attempts"][0]["model"] == "gpu/m"
                assert told["error"]["source"] == "manallm-proxy"
            else:
                whose = [told["error"][name] for name in ("source", "provider", "target")]
                assert whose == ["provider", "gpu", "gpu/m"]
            if 400 <= code < 500 and code != 429:
                assert "as you asked" in told["error"]["message"]


async def test_our_own_refusals_in_anthropics_form(tmp_path: Path) -> None:
    """By status, with the place of the mistake; no provider is touched."""
    async with upstream(each(answers)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"body": 1000}), tmp_path) as p:

            async def refused(path: str = "/v1/messages", method: str = "POST", **options: Any) -> tuple[int, str, str]:
                async with p.client.request(method, p.url + path, **options) as response:
                    told = await response.json()
                    assert told["request_id"] == response.headers["request-id"]
                    assert told["type"] == "error"
                    return response.status, told["error"]["type"], told["error"]["message"]

            bad = {
                **HI,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "hologram"}]}],
            }
            code, kind, message = await refused(json=bad)
            assert (code, kind) == (400, "invalid_request_error")
            assert "messages[0].content[1]" in message and "hologram" in message
            assert (await refused(data=b"{"))[:2] == (400, "invalid_request_error")
            assert (await refused(data=b"x" * 2000))[:2] == (413, "request_too_large")
            assert (await refused(json={**HI, "model": "mana/nosuch"}))[:2] == (404, "not_found_error")
            assert (await refused(method="GET"))[:2] == (405, "invalid_request_error")
            assert (await refused("/messages/count_tokens", data=b"{"))[:2] == (400, "invalid_request_error")
            assert (await refused("/v1/messages/batches", json={}))[:2] == (404, "not_found_error")
            assert (await refused("/v1/models/nosuch/m", "GET", headers=VERSION))[:2] == (404, "not_found_error")
            assert gpu.posts == []


async def test_a_thread_is_refused_as_the_sdks_want_it(tmp_path: Path) -> None:
    """At exactly this answer their tool runners send the whole history."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
            code, raw, _ = await say(p, thread=thread)
            told = json.loads(raw)["error"]
            assert (code, told["type"]) == (400, "invalid_request_error")
            assert told["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        assert gpu.posts == []


async def test_keys(tmp_path: Path) -> None:
    """As ``x-api-key`` or bearer; each refusal has Anthropic's word for it."""
    key = "sk-alice"
    alice = {"name": "alice", "sha256": digest_of(key), "models": ["mana/*"]}
    config = settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"], auth={"keys": [alice]})
    async with proxy(config, tmp_path) as p:

        async def ask(path: str = "/v1/messages", model: str = "mana/test", **headers: str) -> tuple[int, str]:
            async with p.client.post(p.url + path, json={**HI, "model": model}, headers=headers) as response:
                told = await response.json()
                return response.status, told.get("error", told).get("type", "")

        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            assert (await ask(path, **{"x-api-key": key}))[0] == 200
            assert (await ask(path, Authorization=f"Bearer {key}"))[0] == 200
            assert await ask(path) == (401, "authentication_error")
            assert await ask(path, model="loopback/echo", **{"x-api-key": key}) == (403, "permission_error")


async def test_lists_in_anthropics_form_for_its_clients(tmp_path: Path) -> None:
    """Clients that send ``anthropic-version`` get it, all others OpenAI's."""
    async with upstream(each(answers), ["m"]) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with p.client.get(f"{p.url}/v1/models", headers=VERSION) as response:
            listed = await response.json()
        assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "mana/test", "gpu/m")
        assert listed["data"][0] == {
            "type": "model",
            "id": "mana/test",
            "display_name": "mana/test",
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
        }
        async with p.client.get(f"{p.url}/v1/models/gpu/m", headers=VERSION) as response:
            assert await response.json() == listed["data"][1]
        assert (await p.get("/v1/models"))[1]["object"] == "list"


async def test_its_list_has_the_sizes_that_are_known(tmp_path: Path) -> None:
    """Of a name's first usable target: as its provider lists them, or as the operator has set the window."""
    listed = [{"id": "m", "context_length": 32_000, "max_completion_tokens": 8192}, {"id": "n"}]

    async def lists(connection: Connection) -> None:
        while await connection.request() is not None:
            await connection.reply({"object": "list", "data": listed})

    async with upstream(lists) as up, box() as gpu:
        config = settings({"p": openai(up.url), "gpu": gpu.provider()}, ["p/m", "p/n"])
        config["aliases"]["mana/own"] = {"chain": [{"target": "gpu/m", "options": {"num_ctx": 2048}}]}
        async with proxy(config, tmp_path) as p:

            async def sizes(name: str) -> tuple[int | None, int | None]:
                async with p.client.get(f"{p.url}/v1/models/{name}", headers=VERSION) as response:
                    row = await response.json()
                async with p.client.get(f"{p.url}/v1/models", headers=VERSION) as response:
                    assert row in (await response.json())["data"]
                return row.get("max_input_tokens"), row.get("max_tokens")

            assert await sizes("p/m") == await sizes("mana/test") == (32_000, 8192)
            assert await sizes("p/n") == (None, None)
            assert await sizes("mana/own") == (2048, None)


async def test_counting_touches_nobody(tmp_path: Path) -> None:
    """An estimate, for a model that is served."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, counted, _ = await p.post("/v1/messages/count_tokens", {"model": "mana/test", "messages": HI["messages"]})
        assert (code, list(counted)) == (200, ["input_tokens"])
        assert 0 < counted["input_tokens"] < 50
        code, told, _ = await p.post("/v1/messages/count_tokens", {"model": "mana/nosuch", "messages": HI["messages"]})
        assert (code, told["error"]["type"]) == (404, "not_found_error")
        assert gpu.posts == []


async def test_it_is_counted_under_its_own_name(tmp_path: Path) -> None:
    async with proxy(settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"]), tmp_path) as p:
        for path in ("/v1/messages", "/messages?beta=true"):
            assert (await p.post(path, HI))[0] == 200
        async with p.client.get(f"{p.url}/metrics") as response:
            assert 'mana_llm_requests_total{endpoint="messages",status="200"} 2' in await response.text()
