"""A server that refuses all that any of them is known to refuse, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.histories import GO, SIGNED, called, strict
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream

ID = "functions.f:0"


def refusals(asked: Any, *, has_fields: bool) -> Iterator[str]:
    """`has_fields`: whether those are refused, too, that are relayed as the client sends them."""
    if "stream_options" in asked:
        yield "property 'stream_options' is unsupported"
    if has_fields and "max_tokens" in asked:
        yield "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    if has_fields and "top_k" in asked:
        yield "property 'top_k' is unsupported"
    if asked.get("reasoning_effort") == "max":
        yield "'reasoning_effort' does not support 'max'. Supported values are: 'low', 'medium', and 'high'."
    turns = asked["messages"]
    for turn in turns:
        yield from (f"property '{key}' is unsupported" for key in ("reasoning_content", "annotations") if key in turn)
        for call in turn.get("tool_calls", ()):
            if "extra_content" in call:
                yield "Extra inputs are not permitted: extra_content"
            if not re.fullmatch("[a-zA-Z0-9]{9}", call["id"]):
                yield f"Tool call id was {call['id']} but must be a-z, A-Z, 0-9, with a length of 9."
    if any(turn["role"] in ("system", "developer") for turn in turns[1:]):
        yield "System message must be at the beginning."
    roles = [*pairwise(turn["role"] for turn in turns)]
    if ("tool", "user") in roles:
        yield "Unexpected role 'user' after role 'tool'"
    if ("user", "user") in roles:
        yield "conversation roles must alternate user/assistant"


SYSTEMS = [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}]
CHAT: dict[str, Any] = {
    "messages": [
        *(*SYSTEMS, GO, GO),
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "annotations": [],
            "tool_calls": [called(extra_content=SIGNED, id=ID)],
        },
        *({"role": "tool", "tool_call_id": ID, "content": "3"}, GO),
    ],
}
CALLED = {"type": "tool_use", "id": ID, "name": "f", "input": {}}
RESULT = [{"type": "tool_result", "tool_use_id": ID, "content": "3"}, {"type": "text", "text": "more"}]
MESSAGES = {
    "max_tokens": 2000,
    "top_k": 40,
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "max"},
    "messages": [GO, GO, {"role": "assistant", "content": [CALLED]}, {"role": "user", "content": RESULT}],
}
OLLAMA = {
    "options": {"top_k": 40, "num_predict": 9},
    "think": "max",
    "messages": [
        *(SYSTEMS[0], GO, SYSTEMS[0], GO),
        {
            "role": "assistant",
            "thinking": "Hm.",
            "tool_calls": [{"id": ID, "function": {"name": "f", "arguments": {}}}],
        },
        *({"role": "tool", "content": "3", "tool_name": "f"}, GO),
    ],
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "asked"), [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGES), ("/api/chat", OLLAMA)]
)
async def test_a_conversation_goes_on_there(path: str, asked: dict[str, Any], stream: bool, tmp_path: Path) -> None:
    """After the seventh refusal it was 400, with each turn, since only what is answered is learned."""

    def refuses(sent: Any) -> str:
        return next(refusals(sent, has_fields=path != "/v1/chat/completions"), "")

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        numbers = []
        for _ in range(2):
            body = {"model": "p/m", "stream": stream, **asked}
            async with p.client.post(p.url + path, json=body) as response:
                assert (response.status, b"Hel" in await response.read()) == (200, True)
            numbers.append(len(up.posts))
        assert len({post.body for post in up.posts[: numbers[0]]}) == numbers[0] >= 7
        assert numbers[1] - numbers[0] <= 2  # of an effort nothing is learned
