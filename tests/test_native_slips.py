"""What Anthropic refuses of one caller's request, where it stands or as it is written, is left out of no other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.histories import GO, THOUGHT
from tests.proxy import openai, proxy, settings
from tests.strict_messages import refuses
from tests.upstreams import Connection, Seen, each, upstream

EXTRA = "Extra inputs are not permitted"
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}, "defer_loading": True, "input_examples": [{}]}
EDITS = {"edits": [{"type": "clear_tool_uses_20250919"}]}
USUAL: dict[str, Any] = {
    "max_tokens": 9,
    "system": [{"type": "text", "text": "S", **CACHED}],
    "tools": [TOOL],
    "context_management": EDITS,
    "messages": [GO, {"role": "assistant", "content": [{"type": "text", "text": "hi", **CACHED}]}, GO],
}


def odd_turn(**more: Any) -> list[Any]:
    return [GO, {"role": "assistant", **more}, GO]


def thought(asked: Any) -> str:
    turn = asked["messages"][1]["content"]
    is_odd = isinstance(turn, list) and turn[0]["type"] == "thinking" and "cache_control" in turn[0]
    return f"messages.1.content.0.thinking.cache_control: {EXTRA}" if is_odd else ""


def turns(asked: Any) -> str:
    return f"messages.1.cache_control: {EXTRA}" if "cache_control" in asked["messages"][1] else ""


def scope(asked: Any) -> str:
    is_odd = "scope" in asked["system"][0].get("cache_control", {})
    return f"system.0.cache_control.ephemeral.scope: {EXTRA}" if is_odd else ""


def member(asked: Any) -> str:
    is_odd = "x" in asked["system"][0].get("cache_control", {})
    return f"system.0.cache_control.ephemeral.x: {EXTRA}" if is_odd else ""


def editing(asked: Any) -> str:
    return f"context_management.x: {EXTRA}" if "x" in asked.get("context_management", {}) else ""


def examples(asked: Any) -> str:
    is_odd = any("type" in tool and "input_examples" in tool for tool in asked["tools"])
    return f"tools.0.web_search_20250305.input_examples: {EXTRA}" if is_odd else ""


SEARCH = {"type": "web_search_20250305", "name": "web_search", "input_examples": [{}]}
SAID = {"content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("rule", "odd"),
    [
        (thought, {"messages": odd_turn(content=[{**THOUGHT, **CACHED, "name": "f"}, *SAID["content"]])}),
        (turns, {"messages": odd_turn(**SAID, **CACHED)}),
        (scope, {"system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral", "scope": "global"}}]}),
        (member, {"system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral", "x": 1}}]}),
        (editing, {"context_management": {**EDITS, "x": 1}}),
        (examples, {"tools": [SEARCH]}),
    ],
)
async def test_a_slip_is_mended_for_its_caller_alone(
    rule: Callable[[Any], str], odd: dict[str, Any], tmp_path: Path
) -> None:
    """All others would have paid for each prompt as for a new one."""
    async with upstream(each(refuses(rule))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            assert (await p.post("/v1/messages", {**USUAL, **odd}))[0] == 200
            assert len(up.posts) == 2
            assert (await p.post("/v1/messages", USUAL))[0] == 200
            assert up.posts[-1].json == {**USUAL, "model": "m"}


async def test_what_is_learned_is_of_those_who_have_chosen_the_same(tmp_path: Path) -> None:
    """Anthropic refuses what is new to who has not asked for it by ``anthropic-beta``."""

    async def answer(connection: Connection, seen: Seen) -> None:
        has_it = "anthropic-beta" in seen.headers
        rule = "" if has_it or "context_management" not in seen.json else f"context_management: {EXTRA}"
        await refuses(lambda asked: rule)(connection, seen)

    async with upstream(each(answer)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            for sent in (2, 3):
                assert (await p.post("/v1/messages", USUAL))[0] == 200
                assert len(up.posts) == sent
            chosen = {"anthropic-beta": "context-management-2025-06-27"}
            assert (await p.post("/v1/messages", USUAL, headers=chosen))[0] == 200
            assert up.posts[-1].json == {**USUAL, "model": "m"}
