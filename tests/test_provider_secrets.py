"""Which of a provider's settings are secrets: a word that servers without keys are given is none."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.http_client.api import secrets_of
from manallm_proxy.openai.json_object import encode
from manallm_proxy.providers.gemini.reply import Reader, read
from manallm_proxy.providers.gemini.wire import GeminiWire
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.scrub import redact_secrets
from manallm_proxy.providers.wire import Wire
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


TOKEN = "Zq7-Wx4_Km9bTn2VRd5yLp8sJc3hFg6a"
HEADERS = {
    "bare key": (TOKEN, {}),
    "bearer": (None, {"Authorization": f"Bearer {TOKEN}"}),
    "basic": (None, {"Authorization": "Basic " + base64.b64encode(f"someone:{TOKEN}".encode()).decode()}),
    "cookie": (None, {"Cookie": f"theme=dark; session={TOKEN}"}),
}


@pytest.mark.parametrize("given", HEADERS)
@pytest.mark.parametrize("kind", ["openai", "ollama", "google"])
def test_no_cut_leaves_a_part_of_a_key(kind: str, given: str) -> None:
    """Wherever a text is cut, in whichever field a provider quotes what we sent."""
    wires: dict[str, Wire] = {"openai": OpenAIWire(), "ollama": OllamaWire(), "google": GeminiWire()}
    secrets = secrets_of(*HEADERS[given])
    for limit in (64, 500, 2000):
        for before in range(limit - 34, limit + 2, 3):
            text = ("word " * 500)[:before] + TOKEN + " and more" * 60
            for status in (400, 404, 429, 500):
                body = encode({"error": {"message": text, "type": text, "code": text, "param": text, "status": text}})
                error = redact_secrets(wires[kind].failure(status, {}, body), *secrets)
                shown = " ".join(map(str, (error, error.message, error.type, error.code, error.param, error.detail)))
                assert not any(TOKEN[n : n + 5] in shown for n in range(len(TOKEN) - 4))
    for before in range(20, 70, 3):
        with pytest.raises(ProviderError) as told:
            Reader().whole(read(encode({"promptFeedback": {"blockReason": "x" * before + " " + TOKEN + " y" * 40}})))
        error = redact_secrets(told.value, *secrets)
        assert TOKEN[:5] not in f"{error.message} {error.detail}"


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
