"""Thinking in the history of a provider that natively accepts Messages: unsigned, foreign, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.doors.carried import Carried, pack
from tests.proxy import Proxy, openai, proxy, settings
from tests.strict_messages import refuses
from tests.upstreams import each, upstream

USER = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]}
TOOL = {"name": "add", "input_schema": {"type": "object"}}
ADAPTIVE = {"type": "adaptive"}


def thought(signature: str | None = "") -> dict[str, Any]:
    return {"type": "thinking", "thinking": "hm"} | ({} if signature is None else {"signature": signature})


def turns(*thoughts: dict[str, Any]) -> list[Any]:
    return [USER, {"role": "assistant", "content": [*thoughts, USE]}, RESULT]


def signed_only(asked: Any) -> str:
    """As Anthropic."""
    for n, turn in enumerate(asked["messages"]):
        for m, block in enumerate(turn["content"] if isinstance(turn["content"], list) else []):
            if block["type"] == "thinking" and not block.get("signature"):
                return (
                    f"messages.{n}.content.{m}: Invalid `signature` in `thinking` block"
                    if "signature" in block
                    else f"messages.{n}.content.{m}.thinking.signature: Field required"
                )
    return ""


def needs_thoughts(words: str) -> Callable[[Any], str]:
    """As DeepSeek, Kimi and Xiaomi, which do not look at signatures."""

    def rule(asked: Any) -> str:
        if asked.get("thinking", {}).get("type") == "disabled":
            return ""
        said = [turn["content"] for turn in asked["messages"] if turn["role"] == "assistant"]
        return "" if all(content[0]["type"] == "thinking" for content in said) else words

    return rule


async def say(p: Proxy, messages: list[Any], **more: Any) -> int:
    body = {"max_tokens": 9, "messages": messages, "tools": [TOOL], "thinking": ADAPTIVE, **more}
    status, _, _ = await p.post("/v1/messages", body)
    return status


@pytest.mark.parametrize("signature", ["", None])
async def test_unsigned_thinking_is_sent_as_it_came(signature: str | None, tmp_path: Path) -> None:
    """Servers that sign nothing want it back, and think on: llama.cpp, Xiaomi's."""
    async with upstream(each(refuses(lambda asked: ""))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            assert await say(p, turns(thought(signature))) == 200
            assert (len(up.posts), up.posts[-1].json["messages"]) == (1, turns(thought(signature)))
            assert up.posts[-1].json["thinking"] == ADAPTIVE


@pytest.mark.parametrize("signature", ["", None])
async def test_who_signs_gets_none_that_is_unsigned(signature: str | None, tmp_path: Path) -> None:
    """After its refusal, which is learned; its own is kept."""
    async with upstream(each(refuses(signed_only))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            for number in (2, 3):
                messages = [*turns(thought("own")), {"role": "assistant", "content": [thought(signature), USE]}, RESULT]
                assert await say(p, messages) == 200
                sent = up.posts[-1].json
                assert len(up.posts) == number
                assert [block for turn in sent["messages"][1::2] for block in turn["content"]] == [
                    thought("own"),
                    USE,
                    USE,
                ]
                assert sent["thinking"] == {"type": "disabled"}
                assert p.log.getvalue().count("history: reasoning left out") == number - 1


async def test_what_this_proxy_signed_is_no_providers(tmp_path: Path) -> None:
    """It says who thought: another one."""
    async with upstream(each(refuses(lambda asked: ""))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            assert await say(p, turns(thought(pack(Carried("other", "hm"))))) == 200
            assert up.posts[-1].json["messages"] == turns()


@pytest.mark.parametrize(
    "words",
    [
        "The `content[].thinking` in the thinking mode must be passed back to the API.",
        "The reasoning_content in the thinking mode must be passed back to the API.",
        "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1",
    ],
)
async def test_a_turn_without_thinking(words: str, tmp_path: Path) -> None:
    """Another model's, or one whose client has dropped it: it gets a blank one, from then on at once."""
    async with upstream(each(refuses(needs_thoughts(words)))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            for number in (2, 3):
                assert await say(p, [*turns(thought("x")), *turns()]) == 200
                assert len(up.posts) == number
                first, second = (turn["content"] for turn in up.posts[-1].json["messages"][1::3])
                assert first == [thought("x"), USE]
                assert (second[0]["type"], second[1:]) == ("thinking", [USE])
                assert up.posts[-1].json["thinking"] == ADAPTIVE


async def test_a_text_with_the_words_of_a_refusal_teaches_nothing(tmp_path: Path) -> None:
    """The next caller's history is sent as it is."""
    said = {"role": "user", "content": "Invalid `signature` in `thinking` block"}

    def quotes(asked: Any) -> str:
        return f"flagged: {asked['messages'][0]['content']}" if "block" in asked["messages"][0]["content"] else ""

    async with upstream(each(refuses(quotes))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            assert await say(p, [said, *turns(thought())[1:]]) == 400
            assert await say(p, turns(thought())) == 200
            assert up.posts[-1].json["messages"] == turns(thought())
