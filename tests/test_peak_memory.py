"""The most memory that one request takes, over a real socket, in a process of its own: a few times its body."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from manallm_proxy.config.model import Limits
from tests.proxy import openai, process, settings
from tests.servers import gemini_server, ollama_server
from tests.stall import peak, raw_post
from tests.upstreams import DONE, Connection, Seen, answers, chunk, completion, each, upstream

MIB = 2**20
TEXT = 9 * MIB // 2
"""Bytes of a long text: more than one call may scan or join (4 MiB), and no more. What is taken beside a multiple of it
is a megabyte or two at any size, and what a fault takes is a multiple."""


@pytest.mark.parametrize("door", ["/v1/chat/completions", "/v1/messages"])
async def test_the_memory_of_one_request(tmp_path: Path, door: str) -> None:
    """At most five times its body, or its answer's, of which it takes two."""
    size = TEXT

    async def large(connection: Connection, seen: Seen) -> None:
        await connection.reply(msgspec.json.encode(completion("x" * size if b'"large"' in seen.body else "hi")))

    async with upstream(each(large)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        for text in ("x" * size, "large"):
            asked = {
                "model": "gpu/m",
                "max_tokens": 9,
                "stream": False,
                "messages": [{"role": "user", "content": text}],
            }
            with peak(running.pid) as taken:
                assert (await raw_post(port, door, msgspec.json.encode(asked))).startswith(b"HTTP/1.1 200")
            assert taken.mib <= 5 * size / MIB


def long_turns(door: str) -> list[list[dict[str, Any]]]:
    """What takes Python four times as much: a long text with an emoji, and a long argument of a tool."""
    text = "x" * TEXT + "\U0001f600"
    hi = {"role": "user", "content": "hi"}
    calls: dict[str, Any] = {"role": "assistant", "content": ""}
    match door:
        case "/v1/chat/completions":
            function = {"name": "f", "arguments": json.dumps({"a": text})}
            calls["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
        case "/v1/messages":
            calls["content"] = [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": text}}]
        case "/v1/responses":
            calls = {"type": "function_call", "call_id": "c", "name": "f", "arguments": json.dumps({"a": text})}
        case "/api/chat":
            calls["tool_calls"] = [{"function": {"name": "f", "arguments": {"a": text}}}]
    return [[{"role": "user", "content": text}], [hi, calls, hi]]


async def test_the_memory_of_one_request_that_is_translated(tmp_path: Path) -> None:
    """As much, through each door, and to each kind of provider: what they make of it does not depend on each other.

    Twice or three times the body is taken.
    """
    pairs = {"/v1/chat/completions": "lg", "/v1/messages": "o", "/v1/responses": "l", "/api/chat": "g"}
    async with (
        upstream(each(answers)) as plain,
        upstream(each(ollama_server)) as box,
        upstream(each(gemini_server)) as google,
    ):
        providers = {
            "o": openai(plain.url),
            "l": {"kind": "ollama", "base_url": box.url},
            "g": {"kind": "google", "base_url": google.url, "api_key": "a-key-of-google"},
        }
        async with process(settings(providers), tmp_path) as running:
            port = int(running.url.rpartition(":")[2])
            for door, kinds in pairs.items():
                for turns in long_turns(door):
                    key = "input" if door == "/v1/responses" else "messages"
                    asked = {"model": "?/m", "max_tokens": 9, "stream": False, key: turns}
                    body = msgspec.json.encode(asked)
                    for name in kinds:
                        mine = body.replace(b"?", name.encode(), 1)
                        with peak(running.pid) as taken:
                            assert (await raw_post(port, door, mine)).startswith(b"HTTP/1.1 200")
                        assert taken.mib <= 5 * len(body) / MIB, (door, name, len(turns))


async def test_the_memory_of_many_short_texts(tmp_path: Path) -> None:
    """As many as one request may hold, as keys and as values, in letters that take Python four times as much: decoded
    they take many times their bytes, which is allowed for."""
    texts = [f"{n}\U0001f600" for n in range(Limits().elements)]
    schemas: list[dict[str, Any]] = [
        {"enum": texts[: Limits().elements // 2 - 99]},
        {"properties": dict.fromkeys(texts[: Limits().elements // 3 - 99], 1)},
    ]
    async with upstream(each(ollama_server)) as box:
        async with process(settings({"l": {"kind": "ollama", "base_url": box.url}}), tmp_path) as running:
            port = int(running.url.rpartition(":")[2])
            for schema in schemas:
                tool = {"type": "function", "name": "f", "parameters": schema}
                body = json.dumps({"model": "l/m", "input": "hi", "tools": [tool]}, ensure_ascii=False).encode()
                with peak(running.pid) as taken:
                    assert (await raw_post(port, "/v1/responses", body)).startswith(b"HTTP/1.1 200")
                assert taken.mib <= 3 * len(body) / MIB + 32, [*schema]


async def test_the_memory_of_one_request_that_is_stored(tmp_path: Path) -> None:
    """Four times, where another provider would take it as it is, in the chain or not: instructions, which are repeated,
    and a picture."""
    text = "iVBORw0KGgoA" + "A" * 8 * MIB
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{text}"}
    hi = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    async with upstream(each(ollama_server)) as box:
        providers = {
            "l": {"kind": "ollama", "base_url": box.url},
            "native": openai(box.url, speaks=["responses"]),
        }
        async with process(settings(providers), tmp_path) as running:
            port = int(running.url.rpartition(":")[2])
            told: dict[str, Any] = {"input": [hi], "instructions": text}
            shown: dict[str, Any] = {"input": [{"role": "user", "content": [picture]}]}
            for model, more in (
                ("l/m", told),
                ("l/m", shown),
                ("mana/test", told),
                ("mana/test", {**told, "stream": True}),
            ):
                body = msgspec.json.encode({"model": model, **more})
                with peak(running.pid) as taken:
                    assert (await raw_post(port, "/v1/responses", body)).startswith(b"HTTP/1.1 200")
                assert taken.mib <= 4.6 * len(body) / MIB, (model, [*more])


async def test_the_memory_of_an_answer_that_is_told_again(tmp_path: Path) -> None:
    """Through Responses, whose last events repeat all texts: each is made once the one before it has left."""
    size, piece = 6 * MIB, 16 * 1024
    thought = json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": "x" * piece}}]})

    async def thinks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        if b'"large"' in seen.body:
            for _ in range(size // piece // 16):
                await connection.chunk(f"data: {thought}\n\n".encode() * 16)
        await connection.chunk(chunk("hi") + chunk(None, finish="stop") + DONE)
        await connection.end()

    async with upstream(each(thinks)) as gpu, process(settings({"gpu": openai(gpu.url)}), tmp_path) as running:
        port = int(running.url.rpartition(":")[2])
        for asked in ("short", "large"):
            body = json.dumps({"model": "gpu/m", "stream": True, "input": asked}).encode()
            with peak(running.pid) as taken:
                assert (await raw_post(port, "/v1/responses", body)).startswith(b"HTTP/1.1 200")
        assert taken.mib <= 5 * size / MIB  # three times, and some
