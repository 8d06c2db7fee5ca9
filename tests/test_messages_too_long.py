"""A prompt that is too long, in the words by which Claude Code knows that: it compacts the conversation then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

HI = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
SAID = {
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens.": (
        "prompt is too long: 130000 tokens > 128000 maximum"
    ),
    "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it": (
        "prompt is too long: 5000 tokens > 4096 maximum"
    ),
    "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576).": (
        "prompt is too long: 1100000 tokens > 1048576 maximum"
    ),
    "Your input exceeds the context window of this model.": "prompt is too long: Your input exceeds",
    "prompt is too long: 9 tokens > 8 maximum": "prompt is too long: 9 tokens > 8 maximum",
}
"""What a provider says: how the message begins."""


@pytest.mark.parametrize("words", SAID)
@pytest.mark.parametrize("speaks", [["chat"], ["messages"]])
async def test_a_providers_words(words: str, speaks: list[str], tmp_path: Path) -> None:
    """They follow; in other APIs they are all."""

    async def answer(connection: Connection, seen: Seen) -> None:
        error = {"message": words, "type": "invalid_request_error", "code": "context_length_exceeded"}
        await connection.reply({"error": error}, "400 Bad Request")

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url, speaks=speaks)}), tmp_path) as p:
        for stream in (False, True):
            status, body, _ = await p.post("/v1/messages", {**HI, "stream": stream})
            error: dict[str, Any] = body["error"]
            assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "context_length_exceeded")
            assert error["message"].startswith(SAID[words])
            assert words in error["message"]
        if speaks == ["chat"]:
            status, body, _ = await p.chat()
            assert (status, body["error"]["message"]) == (400, words)
