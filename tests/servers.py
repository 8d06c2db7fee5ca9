"""Ollama and Gemini as they answer when all is well; ``upstreams.answers`` is the OpenAI-compatible one."""

from __future__ import annotations

import json
from typing import Any

from tests.upstreams import Connection, Seen


def line(content: str = "", **more: Any) -> bytes:
    """One line of Ollama's chat."""
    message = {"role": "assistant", "content": content}
    return json.dumps({"model": "m", "message": message, "done": False, **more}).encode() + b"\n"


LAST = line(done=True, done_reason="stop", prompt_eval_count=3, eval_count=2)


def gemini(text: str, *, finish: str | None = None) -> bytes:
    """One chunk of Gemini's REST, as SSE where it is streamed."""
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}}
    if finish:
        candidate["finishReason"] = finish
    return json.dumps(
        {"candidates": [candidate], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2}}
    ).encode()


async def ollama_server(connection: Connection, seen: Seen) -> None:
    """A well-behaved Ollama."""
    request = seen.json
    if seen.path == "/api/embed":
        inputs = request["input"]
        many = 1 if isinstance(inputs, str) else len(inputs)
        await connection.reply({"model": "m", "embeddings": [[0.5, -0.25]] * many, "prompt_eval_count": 2})
    elif seen.path == "/api/generate":
        await connection.reply({"model": "m", "response": "Hello", "done": True, "done_reason": "stop"})
    elif request["stream"]:
        await connection.head(content_type="application/x-ndjson")
        for batch in (line("Hel"), line("lo"), LAST):
            await connection.chunk(batch)
        await connection.end()
    else:
        message = {"role": "assistant", "content": "Hello"}
        done = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
        await connection.reply({"model": "m", "message": message, **done})


async def gemini_server(connection: Connection, seen: Seen) -> None:
    """A well-behaved Gemini."""
    if "mbed" in seen.path:
        many = len(seen.json["requests"])
        await connection.reply({"embeddings": [{"values": [0.5, -0.25]}] * many})
    elif "stream" in seen.path:
        await connection.head()
        for batch in (gemini("Hel"), gemini("lo", finish="STOP")):
            await connection.chunk(b"data: " + batch + b"\r\n\r\n")
        await connection.end()
    else:
        await connection.reply(gemini("Hello", finish="STOP"))
