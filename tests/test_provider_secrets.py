"""Which of a provider's settings are secrets: a word that servers without keys are given is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from manallm_proxy.http_client.api import secrets_of
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, each, upstream

REAL = "gsk-0123456789"


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "x",
        "ollama",
        "OLLAMA",
        "none",
        "EMPTY",
        "token",
        "unused",
        "dummy",
        "1234567",
        "not-needed",
        "lm-studio",
        "sk-no-key-required",
    ],
)
def test_a_placeholder_is_no_secret(key: str | None) -> None:
    """Nor anything shorter than 8 characters; what stands beside it still is one."""
    assert secrets_of(key, {}) == ()
    assert secrets_of(key, {"X-Key": REAL, "X-Version": "2", "X-Backend": "ollama"}) == (REAL,)


def test_a_key_is_a_secret() -> None:
    """From 8 characters on, the key first."""
    assert secrets_of("12345678", {"X-Key": REAL}) == ("12345678", REAL)


@pytest.mark.parametrize(("key", "shown"), [("ollama", "ollama"), ("EMPTY", "EMPTY"), (REAL, "[redacted]")])
async def test_an_honest_message_keeps_its_words(tmp_path: Path, key: str, shown: str) -> None:
    """What a server says of its model reaches the client whole, even where it holds the placeholder."""

    async def quotes(connection: Connection, seen: Seen) -> None:
        said = {"error": {"message": f"cannot load the model: {key} has no room", "type": "invalid_request_error"}}
        await connection.reply(said, "400 Bad Request")

    async with upstream(each(quotes)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url, api_key=key)}), tmp_path) as p:
            code, body, _ = await p.chat()
    assert code == 400
    assert f"cannot load the model: {shown} has no room" in body["error"]["message"]
