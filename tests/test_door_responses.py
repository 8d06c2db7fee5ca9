"""The Responses door over a real proxy: every kind of provider, chains that fail, silence, errors by status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.responses import FUNCTION, checked, parsed
from tests.upstreams import DONE, Connection, Seen, Upstream, answers, chunk, completion, each, status, upstream

Answer = Callable[[Connection, Seen], Awaitable[None]]
ADD = {"name": "add", "arguments": '{"a":1}'}
SIGNATURE = "c2lnbmF0dXJl"


def line(message: dict[str, Any], **more: Any) -> bytes:
    return (
        json.dumps({"model": "m", "message": {"role": "assistant", **message}, "done": False, **more}).encode() + b"\n"
    )


async def ollama_server(connection: Connection, seen: Seen) -> None:
    """Thinks, says, calls."""
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    last = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
    if not seen.json["stream"]:
        whole = {"thinking": "Hm.", "content": "Hello", "tool_calls": [call]}
        await connection.reply(line(whole, **last))
        return
    await connection.head(content_type="application/x-ndjson")
    for said in ({"thinking": "Hm."}, {"content": "Hel"}, {"content": "lo"}, {"content": "", "tool_calls": [call]}):
        await connection.chunk(line(said))
    await connection.chunk(line({"content": ""}, **last))
    await connection.end()


async def google_server(connection: Connection, seen: Seen) -> None:
    """The same, with a signature beside the call."""
    call = {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": SIGNATURE}
    rows: list[list[dict[str, Any]]] = [[{"text": "Hm.", "thought": True}], [{"text": "Hello"}], [call]]
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 1}

    def reply(parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"candidates": [{"content": {"role": "model", "parts": parts}, **more}], "usageMetadata": usage}

    if "stream" not in seen.path:
        await connection.reply(reply([part for row in rows for part in row], finishReason="STOP"))
        return
    await connection.head()
    for row in rows:
        await connection.chunk(b"data: " + json.dumps(reply(row)).encode() + b"\r\n\r\n")
    await connection.chunk(b"data: " + json.dumps(reply([], finishReason="STOP")).encode() + b"\r\n\r\n")
    await connection.end()


def delta(**said: Any) -> bytes:
    choice = {"index": 0, "delta": said, "finish_reason": None}
    row = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(row).encode() + b"\n\n"


async def openai_server(connection: Connection, seen: Seen) -> None:
    """The same, in parts."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if not seen.json["stream"]:
        call = {"id": "call_1", "type": "function", "function": ADD}
        message = {"role": "assistant", "reasoning_content": "Hm.", "content": "Hello", "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await connection.reply({**completion(), "choices": [choice], "usage": usage})
        return
    await connection.head()
    begun = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    parts = [{"index": 0, "function": {"arguments": words}} for words in ('{"a"', ":1}")]
    calls = (delta(tool_calls=[part]) for part in (begun, *parts))
    for frame in (
        delta(role="assistant", content=""),
        delta(reasoning_content="Hm."),
        chunk("Hel"),
        chunk("lo"),
        *calls,
    ):
        await connection.chunk(frame)
    await connection.chunk(chunk(finish="tool_calls"))
    await connection.chunk(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n" + DONE)
    await connection.end()


KINDS: dict[str, tuple[Answer, Callable[[str], dict[str, Any]]]] = {
    "openai": (openai_server, lambda url: openai(url)),
    "ollama": (ollama_server, lambda url: {"kind": "ollama", "base_url": url}),
    "google": (google_server, lambda url: {"kind": "google", "base_url": url, "api_key": "AIzaNotARealKey"}),
}


async def stream(p: Proxy, **body: Any) -> tuple[int, bytes, dict[str, str]]:
    """Status, all bytes and headers of one streamed response."""
    async with p.client.post(f"{p.url}/v1/responses", json={"input": "hi", **body, "stream": True}) as response:
        return response.status, await everything(response), {k.lower(): v for k, v in response.headers.items()}


async def answered(p: Proxy, streamed: bool, **body: Any) -> Any:
    """The response, by either way."""
    if not streamed:
        code, response, headers = await p.post("/v1/responses", {"input": "hi", **body})
        assert code == 200, response
        assert headers["content-type"] == "application/json"
    else:
        code, data, headers = await stream(p, **body)
        assert code == 200, data
        assert headers["content-type"] == "text/event-stream"
        response = checked(data)[-1]["response"]
    assert headers["x-mana-llm-resolved"] == response["model"]
    return response


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_thinks_says_and_calls(kind: str, streamed: bool, tmp_path: Path) -> None:
    """And is given its own words back with the result of its call, by each of the three ways to a next turn."""
    server, provider = KINDS[kind]
    async with upstream(each(server)) as up, proxy(settings({"p": provider(up.url)}), tmp_path) as p:
        sealed = {"include": ["reasoning.encrypted_content"], "tools": [FUNCTION]}
        response = await answered(p, streamed, **sealed)
        items = {item["type"]: item for item in response["output"]}
        assert [item["status"] for item in response["output"]] == ["completed"] * len(response["output"])
        assert items["reasoning"]["encrypted_content"]
        assert items["message"]["content"][0]["text"] == "Hello"
        call = items["function_call"]
        assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": 1})
        assert response["usage"]["output_tokens"] in (2, 3)
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "2"}
        user = {"role": "user", "content": "hi"}
        references = [{"type": "item_reference", "id": item["id"]} for item in response["output"]]
        turns: list[dict[str, Any]] = [
            {"input": [user, *response["output"], result]},
            {"input": [user, *references, result]},
            {"input": [result], "previous_response_id": response["id"]},
        ]
        sent = []
        for turn in turns:
            await answered(p, streamed, **sealed, **turn)
            sent.append(up.posts[-1].json)
        assert sent[0] == sent[1] == sent[2]
        told = json.dumps(sent[0])
        assert "Hello" in told
        assert (SIGNATURE in told) is (kind == "google")
        if kind == "ollama":
            assert sent[0]["messages"][1]["thinking"] == "Hm."
        if kind == "openai":
            assert sent[0]["messages"][1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_provider_costs_nothing(kind: str, streamed: bool, tmp_path: Path) -> None:
    """Before the first byte the chain goes on; the answer says who gave it."""
    server, provider = KINDS[kind]
    async with upstream(each(server)) as up, upstream(each(status("502 Bad Gateway"))) as dead:
        async with proxy(settings({"dead": openai(dead.url), "p": provider(up.url)}), tmp_path) as p:
            response = await answered(p, streamed)
            assert response["model"] == "p/m"
            rows = [json.loads(row) for row in p.log.getvalue().splitlines()]
            assert [row["endpoint"] for row in rows if row["event"] == "request"] == ["responses"]
            _, metrics = 0, await (await p.client.get(f"{p.url}/metrics")).text()
            assert 'mana_llm_requests_total{endpoint="responses",status="200"} 1' in metrics


async def test_what_one_provider_gave_goes_to_no_other(tmp_path: Path) -> None:
    """In one request whose chain moves on: strict servers refuse what they do not know."""
    down = asyncio.Event()

    async def thinks_until_it_falls(connection: Connection, seen: Seen) -> None:
        await (status("502 Bad Gateway") if down.is_set() else openai_server)(connection, seen)

    async with upstream(each(thinks_until_it_falls)) as first, upstream(each(answers)) as second:
        async with proxy(settings({"a": openai(first.url), "b": openai(second.url)}), tmp_path) as p:
            body = {"include": ["reasoning.encrypted_content"], "tools": [FUNCTION], "store": False}
            response = await answered(p, False, **body)
            down.set()
            result = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
            again = await answered(p, True, **body, input=[*response["output"], result])
            assert (response["model"], again["model"]) == ("a/m", "b/m")
            assert first.posts[-1].json["messages"][0]["reasoning_content"] == "Hm."
            assert "Hm." not in second.posts[-1].body.decode()


async def opens_and_ends(connection: Connection, seen: Seen) -> None:
    await connection.head()
    connection.writer.close()


async def one_role(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk(role=True))
    connection.reset()


async def one_word(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk("Hel"))
    connection.writer.close()


@pytest.mark.parametrize("dies", [opens_and_ends, one_role], ids=["at the head", "at the role"])
async def test_a_provider_that_dies_before_it_says_something(dies: Answer, tmp_path: Path) -> None:
    """Nothing has left yet: the next one answers, and the stream begins once."""
    async with upstream(each(dies)) as first, upstream(each(answers)) as second:
        async with proxy(settings({"a": openai(first.url), "b": openai(second.url)}), tmp_path) as p:
            assert (await answered(p, True))["model"] == "b/m"


async def test_a_provider_that_dies_after_its_first_word(tmp_path: Path) -> None:
    """The response has failed, with what was said; nobody else goes on with it, and it is not kept."""
    async with upstream(each(one_word)) as first, upstream(each(answers)) as second:
        async with proxy(settings({"a": openai(first.url), "b": openai(second.url)}), tmp_path) as p:
            code, data, _ = await stream(p)
            events = parsed(data)
            failed, error = events[-2:]
            assert (code, failed["type"], error["type"]) == (200, "response.failed", "error")
            response = failed["response"]
            assert response["output"][0]["content"][0]["text"] == "Hel"
            assert response["model"] == "a/m"
            assert response["error"]["message"] == error["message"] == error["error"]["message"]
            assert response["error"]["code"] == error["code"] == error["error"]["code"]
            assert second.posts == []
            assert (await p.get(f"/v1/responses/{response['id']}"))[0] == 404


@pytest.mark.parametrize("streamed", [False, True])
async def test_nobody_is_left(streamed: bool, tmp_path: Path) -> None:
    """OpenAI's envelope with the attempts, by status."""
    async with upstream(each(status("502 Bad Gateway"))) as dead:
        async with proxy(settings({"a": openai(dead.url)}), tmp_path) as p:
            code, body, headers = await p.post("/v1/responses", {"input": "hi", "stream": streamed})
            assert (code, body["error"]["code"]) == (503, "no_healthy_provider")
            assert body["error"]["attempts"][0]["model"] == "a/m"
            assert headers["x-mana-llm-attempts"] == "1"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input":"a","input":"b"}', b"{}"])
async def test_what_is_no_request(body: bytes, tmp_path: Path) -> None:
    """400 before any provider, in OpenAI's envelope."""
    async with upstream(each(answers)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        async with p.client.post(f"{p.url}/v1/responses", data=body) as response:
            error = (await response.json())["error"]
            assert (response.status, error["type"]) == (400, "invalid_request_error")
        deep = b'{"input":[{"role":"user","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"
        async with p.client.post(f"{p.url}/v1/responses", data=deep) as response:
            assert response.status == 400
        assert up.posts == []


async def test_a_silence_is_filled_with_events(tmp_path: Path) -> None:
    """Comments would not do."""

    async def pauses(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one "))
        await connection.upstream.go.wait()
        await connection.chunk(chunk("two") + chunk(finish="stop") + DONE)
        await connection.end()

    async with upstream(each(pauses)) as up:
        async with proxy(settings({"p": openai(up.url)}, streaming={"heartbeat": 0.05}), tmp_path) as p:
            body = {"input": "hi", "stream": True}
            async with p.client.post(f"{p.url}/v1/responses", json=body) as response:
                data = b""
                async with asyncio.timeout(5):
                    while data.count(b"event: response.in_progress\n") < 3:
                        data += await response.content.readany()
                up.go.set()
                data += await response.read()
            assert b"\n:" not in data
            assert checked(data)[-1]["response"]["output"][0]["content"][0]["text"] == "one two"


@pytest.mark.parametrize("saved", [True, False])
async def test_early_heartbeats_begin_the_stream(saved: bool, tmp_path: Path) -> None:
    """While the chain is still walked; then the answer, or the failure in-band, with one id."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        if saved:
            await answers(connection, seen)

    async with upstream(each(slow)) as up:
        async with proxy(settings({"p": openai(up.url)}, streaming={"early_heartbeat": 0.05}), tmp_path) as p:
            body = {"input": "hi", "stream": True}
            async with p.client.post(f"{p.url}/v1/responses", json=body) as response:
                data = await asyncio.wait_for(response.content.readany(), 5)
                assert data.startswith(b"event: response.created\n")
                await _stop_unless(saved, up)
                data += await everything(response)
            events = parsed(data)
            assert len({event["response"]["id"] for event in events if "response" in event}) == 1
            assert events[-1]["type"] == ("response.completed" if saved else "error")


async def _stop_unless(saved: bool, up: Upstream) -> None:
    if not saved:
        await up.stop()
    up.go.set()


async def test_a_websocket_is_not_found_at_once(tmp_path: Path) -> None:
    """So that codex falls back to POST; a plain GET is a wrong method."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "openai-beta": "responses_websockets=2026-02-06"}
        for path in ("/v1/responses", "/responses"):
            async with p.client.get(p.url + path, headers={**upgrade, **key}) as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "unknown_url"
            async with p.client.get(p.url + path) as response:
                assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_what_was_left_out_is_in_the_log(tmp_path: Path) -> None:
    """In one line, that of the request, without a word of the client's."""
    async with proxy(settings({"loopback": {"kind": "loopback"}}), tmp_path) as p:
        tools = [{"type": "web_search_of_my_secret"}, {"type": "web_search"}, FUNCTION]
        assert (await p.post("/v1/responses", {"input": "hi", "tools": tools}))[0] == 200
        rows = [json.loads(row) for row in p.log.getvalue().splitlines()]
        assert [row["notes"] for row in rows if "notes" in row] == [["not sent on: tool web_search"]]
        assert "my_secret" not in p.log.getvalue()
