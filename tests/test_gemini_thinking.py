"""Thinking that a model of Google's refuses, where the client sets it for all models alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.proxy import proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

USER = {"role": "user", "content": "hi"}
ANSWER = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2},
}
EFFORT = {"max_tokens": 9, "messages": [USER], "output_config": {"effort": "medium"}}


@pytest.mark.parametrize(
    "words",
    [
        "Thinking level is not supported for this model.",
        "Thinking level MEDIUM is not supported for this model. Please retry with other thinking level.",
        "Thinking is not enabled for models/gemini-3-x",
        "Budget 0 is invalid. This model only works in thinking mode.",
    ],
)
async def test_it_is_asked_without(words: str, tmp_path: Path) -> None:
    """But who asks for it in a chat, or by Ollama's ``think``, is told."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if "thinkingConfig" in seen.json.get("generationConfig", {}):
            error: dict[str, Any] = {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}
            await connection.reply({"error": error}, "400 Bad Request")
        else:
            await connection.reply(ANSWER)

    async with upstream(each(answer)) as up:
        config = settings({"g": {"kind": "google", "base_url": up.url, "api_key": "k"}}, ["g/gemini-3-x"])
        async with proxy(config, tmp_path) as p:
            assert (await p.post("/v1/messages", EFFORT))[0] == 200
            assert len(up.posts) == 2
            assert "not sent on: reasoning_effort" in p.log.getvalue()
            asked = {"input": "hi", "reasoning": {"effort": "medium"}, "store": False}
            assert (await p.post("/v1/responses", asked))[0] == 200
            assert (await p.chat(reasoning_effort="medium"))[0] == 400
            assert (await p.post("/api/chat", {"messages": [USER], "think": True, "stream": False}))[0] == 400
            assert len(up.posts) == 6
