"""A door needs no change elsewhere: one of thirty lines works over every kind of provider."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.request import read_summary
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, status, upstream


class PlainReply:
    """Words as they come, and nothing else."""

    content_type = "text/plain"
    ends_long = False

    def whole(self, target: Target, answer: Answer) -> bytes:
        return encode("".join(choice.content for choice in answer.choices))

    def start(self, target: Target) -> None:
        """Nothing comes before the words."""

    def events(self, batch: StreamBatch) -> bytes:
        return "".join(delta.content for delta in batch.deltas).encode()

    def end(self, usage: Usage | None) -> bytes:
        return b"."

    def error(self, error: ProxyError) -> bytes:
        return b"!"

    def heartbeat(self) -> bytes:
        return b""


class PlainDoor:
    """Plain text in, plain text out: ``?`` at the end asks for a stream."""

    name = "plain"
    scans = False

    def read(self, body: bytes, client: Client) -> tuple[Call, PlainReply]:
        if not body:
            raise InvalidRequest("say something")
        asked = {"messages": [{"role": "user", "content": body.decode()}], "stream": body.endswith(b"?")}
        chat = encode(asked)
        return Call(
            Endpoint.CHAT, read_summary(chat, ("messages", list)), chat, client.request_id, relays=False
        ), PlainReply()

    def headers(self, request_id: str) -> dict[str, str]:
        return {"X-Plain": "yes"}

    def error_body(self, error: ProxyError) -> bytes:
        return encode(f"sorry: {error.code}")


async def ollama(connection: Connection, seen: Seen) -> None:
    last = {"message": {"role": "assistant", "content": "lo"}, "done": True, "done_reason": "stop"}
    if seen.json["stream"]:
        await connection.head(content_type="application/x-ndjson")
        for line in ({"message": {"content": "Hel"}, "done": False}, last):
            await connection.chunk(json.dumps(line).encode() + b"\n")
        await connection.end()
    else:
        await connection.reply(last | {"message": {"role": "assistant", "content": "Hello"}})


def gemini(words: str, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": [{"text": words}]}, **more}]}


async def google(connection: Connection, seen: Seen) -> None:
    if "stream" not in seen.path:
        await connection.reply(gemini("Hello", finishReason="STOP"))
        return
    await connection.head()
    for chunk in (gemini("Hel"), gemini("lo", finishReason="STOP")):
        await connection.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await connection.end()


KINDS: dict[str, tuple[Any, Callable[[str], dict[str, Any]]]] = {
    "openai": (answers, lambda url: openai(url)),
    "ollama": (ollama, lambda url: {"kind": "ollama", "base_url": url}),
    "google": (google, lambda url: {"kind": "google", "base_url": url, "api_key": "AIzaNotARealKey"}),
}


def open_door(p: Proxy) -> None:
    gateway = p.app.gateway
    gateway.table.add("POST", "/plain", gateway.pipeline.handler(PlainDoor()))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_door_of_thirty_lines(kind: str, tmp_path: Path) -> None:
    """Whole and streamed, with the walk, the headers and the log line of every other door."""
    answer, provider = KINDS[kind]
    async with upstream(each(answer)) as server, upstream(each(status("502 Bad Gateway"))) as dead:
        providers = {"dead": openai(dead.url), "p": provider(server.url)}
        async with proxy(settings(providers), tmp_path) as p:
            open_door(p)
            for words, wanted in ((b"hi", b'"Hello"'), (b"hi?", b"Hello.")):
                async with p.client.post(f"{p.url}/plain", data=words) as response:
                    assert (response.status, await everything(response)) == (200, wanted)
                    assert response.headers["X-Mana-LLM-Resolved"] == "p/m"
                    assert response.headers["X-Plain"] == "yes"
                    assert int(response.headers["X-Mana-LLM-Attempts"]) >= 1
            rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
            assert [row["endpoint"] for row in rows if row["event"] == "request"] == ["plain", "plain"]


async def test_its_errors_are_its_own(tmp_path: Path) -> None:
    """Bad input, nobody left, and a break after the first words, each in the door's form."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head(content_type="application/x-ndjson")
        await connection.chunk(b'{"message":{"content":"Hel"},"done":false}\n')
        await connection.end()

    async with upstream(each(breaks)) as server:
        async with proxy(settings({"p": {"kind": "ollama", "base_url": server.url}}), tmp_path) as p:
            open_door(p)
            async with p.client.post(f"{p.url}/plain", data=b"") as response:
                assert (response.status, await response.json()) == (400, "sorry: invalid_request")
            async with p.client.post(f"{p.url}/plain", data=b"hi?") as response:
                assert (response.status, await everything(response)) == (200, b"Hel!")
