"""Sampling that a model takes no value for, where the client's API has it for all models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream

USER = {"role": "user", "content": "hi"}
SAMPLING = {
    "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.": (
        "temperature",
        "top_p",
    ),
    "invalid temperature: only 1 is allowed for this model": ("temperature", "top_p"),
    "Unsupported parameter: 'top_p' is not supported with this model.": ("top_p", "temperature"),
    "`temperature` and `top_p` cannot both be specified for this model. Please use only one.": ("top_p", "temperature"),
}
"""By words of a refusal: what it is about, and what stays."""


async def test_what_is_refused_beside_another_is_sent_alone(tmp_path: Path) -> None:
    """After one request with both, nobody's top_p was sent."""
    words = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."

    async def answer(connection: Connection, seen: Seen) -> None:
        if "temperature" in seen.json and "top_p" in seen.json:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for more in ({"temperature": 0.2}, {}):
            message = {"max_tokens": 9, "messages": [USER], "top_p": 0.9, **more}
            assert (await p.post("/v1/messages", message))[0] == 200
        assert (len(up.posts), up.posts[-1].json["top_p"]) == (3, 0.9)


@pytest.mark.parametrize("words", SAMPLING)
async def test_a_model_that_takes_no_other_sampling(words: str, tmp_path: Path) -> None:
    """Clients of Ollama set it for all models. Who asks in a chat is told."""
    left_out, kept = SAMPLING[words]

    async def answer(connection: Connection, seen: Seen) -> None:
        if left_out in seen.json:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        body = {"messages": [USER], "options": {"temperature": 0.2, "top_p": 0.9}, "stream": False}
        for number in (2, 3):
            assert (await p.post("/api/chat", body))[0] == 200
            assert (len(up.posts), kept in up.posts[-1].json) == (number, True)
        message = {"max_tokens": 9, "messages": [USER], "temperature": 0.2, "top_p": 0.9}
        assert (await p.post("/v1/messages", message))[0] == 200
        assert len(up.posts) == 4
        assert p.log.getvalue().count(f"not sent on: {left_out}") == 3
        assert (await p.chat(temperature=0.2, top_p=0.9))[0] == 400
