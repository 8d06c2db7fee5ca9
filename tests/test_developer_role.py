"""Messages of a developer, to servers that know only those of the system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.histories import RESPONSE, strict
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream

SAYS = {"role": "developer", "content": "Be brief."}
USER = {"role": "user", "content": "developer"}
SYSTEM = {**SAYS, "role": "system"}


@pytest.mark.parametrize(
    "words",
    [
        "Failed to deserialize the JSON body: messages[0].role: unknown variant `developer`, expected one of `system`",
        "Input tag 'developer' found using 'role' does not match any of the expected tags: 'system', 'user'",
        "chat template rejected the request: Unexpected message role.",
        "'developer' is not one of ['system', 'assistant', 'user', 'function'] - 'messages.0.role'",
    ],
)
async def test_they_are_the_systems(words: str, tmp_path: Path) -> None:
    """Once that is said; for who has said it, from then on at once."""

    def refuses(asked: Any) -> str:
        return words if any(row["role"] == "developer" for row in asked["messages"]) else ""

    async with upstream(each(strict(refuses, answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            for number in (2, 3):
                assert (await p.chat(messages=[SAYS, USER]))[0] == 200
                assert (len(up.posts), up.posts[-1].json["messages"]) == (number, [SYSTEM, USER])


async def test_of_responses(tmp_path: Path) -> None:
    """Codex writes one before each conversation, and DeepSeek's server of that API knows none either."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(RESPONSE)

    def refuses(asked: Any) -> str:
        at = next((n for n, row in enumerate(asked["input"]) if row.get("role") == "developer"), None)
        return "" if at is None else f"messages[{at}].role: unknown variant `developer`, expected one of `system`"

    async with upstream(each(strict(refuses, answer))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["responses"])}), tmp_path) as p:
            items = [{"type": "message", **SAYS}, {"type": "message", **USER}]
            for number in (2, 3):
                assert (await p.post("/v1/responses", {"input": items, "store": False}))[0] == 200
                assert [row["role"] for row in up.posts[-1].json["input"]] == ["system", "user"]
                assert len(up.posts) == number


async def test_another_refusal_is_the_clients(tmp_path: Path) -> None:
    async with upstream(each(strict(lambda asked: "Unexpected message role.", answers))) as up:
        async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
            assert (await p.chat(messages=[{"role": "odd", "content": "x"}, USER]))[0] == 400
            assert len(up.posts) == 1
