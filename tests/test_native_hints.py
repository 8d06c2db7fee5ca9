"""What only saves a client something is left out for a model that natively accepts Messages and refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import openai, proxy, settings
from tests.strict_messages import refuses
from tests.upstreams import Connection, each, upstream

HOUR = {"type": "ephemeral", "ttl": "1h"}
TOOL = {
    "name": "add",
    "input_schema": {"type": "object", "properties": {"cache_control": {"type": "string"}}},
    "defer_loading": True,
    "eager_input_streaming": True,
    "cache_control": HOUR,
}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"cache_control": HOUR, "content": [1]}}
RESULT = {
    "type": "tool_result",
    "tool_use_id": "t1",
    "content": [{"type": "text", "text": "5", "cache_control": HOUR}],
    "cache_control": HOUR,
}
BODY: dict[str, Any] = {
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "max_tokens": 32_000,
    "system": [{"type": "text", "text": "S", "cache_control": HOUR}],
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [USE]},
        {"role": "user", "content": [RESULT]},
    ],
    "tools": [TOOL],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
}
EXTRA = "Extra inputs are not permitted"


def older(asked: Any) -> str:
    """As servers that know Anthropic's API of two years ago: one thing at a time."""
    tool = asked["tools"][0]
    if "context_management" in asked:
        return f"context_management: {EXTRA}"
    for key in ("defer_loading", "eager_input_streaming"):
        if key in tool:
            return f"tools.0.custom.{key}: {EXTRA}"
    if "ttl" in json.dumps([asked["system"], asked["messages"][2], tool.get("cache_control")]):
        return "system.0.cache_control.ttl: 1h is not supported"
    if "output_config" in asked:
        return "This model does not support the effort parameter."
    return "adaptive thinking is not supported on this model" if asked["thinking"]["type"] == "adaptive" else ""


async def play(rule: Callable[[Any], str], tmp_path: Path, *bodies: dict[str, Any]) -> tuple[list[Any], str]:
    """What a provider with that rule got, and the log."""
    async with upstream(each(refuses(rule))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            for body in bodies:
                await p.post("/v1/messages", body)
            return [seen.json for seen in up.posts], p.log.getvalue()


async def test_all_that_an_older_server_refuses(tmp_path: Path) -> None:
    """One by one, and all at once from then on. The rest is sent as it was."""
    sent, log = await play(older, tmp_path, BODY, BODY)
    assert len(sent) == 7 + 1
    assert sent[-1] == sent[-2]
    short = {"type": "ephemeral"}
    assert sent[-1] == {
        "model": "m",
        "max_tokens": 32_000,
        "system": [{"type": "text", "text": "S", "cache_control": short}],
        "messages": [
            *BODY["messages"][:2],
            {
                "role": "user",
                "content": [
                    {
                        **RESULT,
                        "content": [{"type": "text", "text": "5", "cache_control": short}],
                        "cache_control": short,
                    }
                ],
            },
        ],
        "tools": [
            {"name": "add", "input_schema": TOOL["input_schema"], "cache_control": short},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 16_000},
    }
    assert log.count("not sent on: context_management") == 2


@pytest.mark.parametrize(
    ("more", "words", "wanted", "learned"),
    [
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5000}, "output_config": None},
            '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and ...',
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "medium"}},
            True,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 5000, "display": "omitted"}},
            '"thinking.type.enabled" is not supported for this model.',
            {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "high"}},
            True,
        ),
        (
            {"output_config": {"effort": "low"}},
            "thinking: Input tag 'adaptive' found using 'type' does not match any of the expected tags",
            {"thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "low"}},
            True,
        ),
        (
            {"max_tokens": 100},
            "adaptive thinking is not supported on this model",
            {"thinking": {"type": "disabled"}},
            True,
        ),
        (
            {"output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {}}}},
            "This model does not support the effort parameter.",
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
            True,
        ),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "xhigh"}},
            "output_config.effort 'xhigh' is not supported when thinking is disabled on this model.",
            {"thinking": {"type": "disabled"}, "output_config": None},
            False,
        ),
        (
            {"thinking": {"type": "disabled"}},
            "thinking options type cannot be disabled when reasoning_effort is set",
            {"thinking": {"type": "disabled"}, "output_config": None},
            False,
        ),
        ({}, f"tools.0.cache_control: {EXTRA}", {"tools": [{**TOOL, "cache_control": None}]}, True),
    ],
)
async def test_one_refusal(
    more: dict[str, Any], words: str, wanted: dict[str, Any], learned: bool, tmp_path: Path
) -> None:
    """What all requests of the kind would meet is learned; what this one's value did is not."""
    body = {key: value for key, value in {**BODY, **more}.items() if value is not None}
    seen: list[Any] = []

    def once(asked: Any) -> str:
        seen.append(asked)
        return words if asked == seen[0] else ""

    sent, _ = await play(once, tmp_path, body, body)
    assert len(sent) == (3 if learned else 4)
    expected = {**body, "model": "m", **wanted}
    for asked in (sent[1], sent[-1]):
        got = {key: asked.get(key) for key in wanted}
        if "tools" in got:
            assert "cache_control" not in got.pop("tools")[0]
        assert got == {key: expected[key] for key in got}


@pytest.mark.parametrize("words", [f"metadata: {EXTRA}", "max_tokens: too many", "context_management: no edits"])
async def test_what_is_no_hint_is_the_clients(words: str, tmp_path: Path) -> None:
    """It is asked once."""
    sent, _ = await play(lambda asked: words, tmp_path, BODY)
    assert (len(sent), sent[0]) == (1, {**BODY, "model": "m"})


async def test_nothing_is_left_out_that_was_not_refused(tmp_path: Path) -> None:
    sent, _ = await play(lambda asked: "", tmp_path, BODY)
    assert sent == [{**BODY, "model": "m"}]


MOST = "max_tokens: %d > %d, which is the maximum allowed number of output tokens for m"


@pytest.mark.parametrize("is_listed", [False, True])
@pytest.mark.parametrize(
    ("asked", "most", "thinking"),
    [
        ((32_000, {"type": "enabled", "budget_tokens": 31_999}), 8192, {"type": "enabled", "budget_tokens": 4096}),
        ((32_000, {"type": "enabled", "budget_tokens": 8192}), 8192, {"type": "enabled", "budget_tokens": 4096}),
        ((32_000, {"type": "enabled", "budget_tokens": 8191}), 8192, None),
        ((32_000, {"type": "enabled", "budget_tokens": 31_999}), 2000, {"type": "disabled"}),
        ((8192, {"type": "enabled", "budget_tokens": 10_000}), 8192, None),
        ((32_000, {"type": "adaptive"}), 8192, None),
        ((32_000, {"type": "enabled"}), 8192, None),
    ],
)
async def test_who_gets_a_shorter_answer_thinks_less(
    asked: tuple[int, dict[str, Any]], most: int, thinking: dict[str, Any] | None, is_listed: bool, tmp_path: Path
) -> None:
    """Claude Code asks for a budget one below ``max_tokens``, whatever the model can give, and the API wants it below.
    One above was the client's own, which a beta allows."""

    def few(sent: Any) -> str:
        length, budget = sent["max_tokens"], sent["thinking"].get("budget_tokens", 0)
        if length > most:
            return MOST % (length, most)
        clash = "`max_tokens` must be greater than `thinking.budget_tokens`"
        return clash if budget >= length and budget != 10_000 else ""

    async def script(connection: Connection) -> None:
        row = {"id": "m", **({"max_tokens": most} if is_listed else {})}
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply({"data": [row]})
            else:
                await refuses(few)(connection, seen)

    async with upstream(script) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            body = {**BODY, "max_tokens": asked[0], "thinking": asked[1]}
            assert (await p.post("/v1/messages", body))[0] == 200
            assert len(up.posts) == (1 if is_listed or asked[0] == most else 2)
            assert up.posts[-1].json == {**body, "model": "m", "max_tokens": most, "thinking": thinking or asked[1]}
