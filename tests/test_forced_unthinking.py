"""A call that must be made, by a model that only makes those of its own choice while it thinks: it does not then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.proxy import openai, proxy, settings
from tests.strict_messages import refuses
from tests.upstreams import Connection, Seen, answers, each, upstream

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "add", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
FORCED = {"max_tokens": 9, "messages": [USER], "tools": [TOOL], "tool_choice": {"type": "any"}}
OFF = {"type": "disabled"}
WORDS = {
    "Thinking mode does not support this tool_choice": ("thinking", OFF),
    "deepseek-reasoner does not support this tool_choice": ("thinking", OFF),
    "tool_choice 'required' is incompatible with thinking enabled": ("thinking", OFF),
    "The tool_choice parameter does not support being set to required or object in thinking mode": (
        "enable_thinking",
        False,
    ),
}
"""By words of a refusal: how such a model is told not to think."""


@pytest.mark.parametrize("words", WORDS)
async def test_a_chat(words: str, tmp_path: Path) -> None:
    """Translated or not. Who asks for thinking himself is told."""
    key, value = WORDS[words]

    async def answer(connection: Connection, seen: Seen) -> None:
        if seen.json.get("tool_choice") == "required" and seen.json.get(key) != value:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            assert value is False or "reasoning_effort" not in seen.json or "tool_choice" not in seen.json
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for more in ({}, {"output_config": {"effort": "high"}}):
            up.seen.clear()
            assert (await p.post("/v1/messages", {**FORCED, **more}))[0] == 200
            assert (len(up.posts), up.posts[-1].json["tool_choice"]) == (2, "required")
        assert p.log.getvalue().count("thinking: disabled") == 2
        chat: dict[str, Any] = {"tools": [FUNCTION], "tool_choice": "required"}
        assert (await p.chat(**chat))[0] == 200
        assert (await p.chat(**chat, reasoning_effort="high"))[0] == 400
        assert (await p.chat(**chat, **{key: {"type": "enabled"}}))[0] == 400
        assert (await p.chat())[0] == 200
        assert key not in up.posts[-1].json


@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}])
async def test_messages(thinking: dict[str, str] | None, tmp_path: Path) -> None:
    """Claude Code asks for its searches so."""

    def rule(asked: Any) -> str:
        if asked.get("thinking") != OFF:
            return "deepseek-reasoner does not support this tool_choice"
        has_effort = "effort" in asked.get("output_config", {})
        return "thinking options type cannot be disabled when reasoning_effort is set" if has_effort else ""

    async with upstream(each(refuses(rule))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            body = {**FORCED, "output_config": {"effort": "high"}} | ({"thinking": thinking} if thinking else {})
            assert (await p.post("/v1/messages", body))[0] == 200
            assert up.posts[-1].json == {"model": "m", **FORCED, "thinking": OFF}
