"""What Codex sends to all models alike is left out for a model of OpenAI's that does not think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.histories import RESPONSE, strict
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

ENCRYPTED = "reasoning.encrypted_content"


def refuses(asked: Any) -> str:
    """As gpt-4o: one at a time."""
    reasoning = asked.get("reasoning") or {}
    for member in ("effort", "summary"):
        if member in reasoning:
            return f"Unsupported parameter: 'reasoning.{member}' is not supported with this model."
    if "verbosity" in asked["text"]:
        return "Unsupported parameter: 'text.verbosity' is not supported with this model."
    return "Encrypted content is not supported with this model." if ENCRYPTED in asked.get("include", ()) else ""


async def reply(connection: Connection, seen: Seen) -> None:
    await connection.reply(RESPONSE)


async def test_it_is_asked_without(tmp_path: Path) -> None:
    """One by one, and all at once from then on."""
    body = {
        "input": "hi",
        "store": False,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": [ENCRYPTED],
        "text": {"verbosity": "low", "format": {"type": "text"}},
    }
    async with upstream(each(strict(refuses, reply))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["responses"])}), tmp_path) as p:
            for number in (5, 6):
                assert (await p.post("/v1/responses", body))[0] == 200
                assert len(up.posts) == number
                sent = up.posts[-1].json
                assert (sent["reasoning"], sent["include"], sent["text"]) == (None, [], {"format": {"type": "text"}})
                assert p.log.getvalue().count("not sent on: reasoning.effort") == number - 4


async def test_a_value_that_is_refused_is_the_clients(tmp_path: Path) -> None:
    words = "Unsupported value: 'reasoning.effort' does not support 'huge' with this model."
    async with upstream(each(strict(lambda asked: words, reply))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["responses"])}), tmp_path) as p:
            asked = {"input": "hi", "store": False, "reasoning": {"effort": "huge"}}
            assert (await p.post("/v1/responses", asked))[0] == 400
            assert len(up.posts) == 1
