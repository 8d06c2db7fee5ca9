"""The provider's own words in the log line of a failed attempt: enough to mend it, never a prompt or a key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider_errors import KeyRejected
from manallm_proxy.providers.message_masking import (
    _VOCABULARY,
    REQUEST_LIMIT,
    VALUES_LIMIT,
    mask_request,
    set_provider_message,
)
from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

KEY = "gsk-0123456789abcdef"
PROMPT = "Please tell Xaver that the vault opens with 47114711471147114711, jalapeño, 密码在这里"
"""The number is longer than any that a log has by chance, as an id or a time."""
BODY: dict[str, Any] = {"model": "mana/test", "messages": [{"role": "user", "content": PROMPT}], "seed": 888999}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("llama runner process has terminated: exit status 2", "llama runner process has terminated: exit status 2"),
        ("model 'qwen2.5:7b' not found, try pulling it first", "model 'qwen2.5:7b' not found, try pulling it first"),
        ("Limit 6000, Used 5900. Please try again in 2.3s", "Limit 6000, Used 5900. Please try again in 2.3s"),
        ("in organization org_01hzabcdefghijklmnopqrstuvwxyz", "in organization org_…"),
        ("cannot answer Xaver", "cannot answer …"),
        ("cannot answer XAVER!", "cannot answer …!"),
        ("cannot answer: the vault opens with 47114711471147114711", "cannot answer: the … with …"),
        ("cut: the vault op", "cut: the …"),
        ("bad: \\\\nXaver\\njalape\\u00f1o", "bad: …"),
        ("bad: 密码在这里呢", "bad: …呢"),
        ("bad: %20Xaver", "bad: …"),
        ("bad seed 888999", "bad … …"),
        ("unexpected raw='I am a model, and I say', err=x", "unexpected raw= …"),
        ("Failed to parse input at pos 12: what a model said", "Failed to parse input at pos 12: …"),
        (f"it said '{'x ' * 30}' and died", "it said … and died"),
        (" ".join(f"w{n}" for n in range(99)), f"{' '.join(f'w{n}' for n in range(24))} …"),
        ("Xaver 47114711471147114711", None),
        ("", None),
    ],
)
def test_what_is_left_of_a_message(text: str, wanted: str | None) -> None:
    """What the request holds is masked, however it is quoted; what a model said as well."""
    found = mask_request(text, json.dumps(BODY).encode())
    assert found == (wanted if wanted is None else wanted.replace("… …", "…"))


@pytest.mark.parametrize(
    "text", ["near 你好😀", r"near \u4f60\u597d\ud83d\ude00", r"near b'\xe4\xbd\xa0'", "near %E4%BD%A0"]
)
@pytest.mark.parametrize("prompt", ["你好😀", json.dumps({"q": "你好😀"}), "https://x/%E4%BD%A0"])
def test_characters_that_either_of_them_encodes(prompt: str, text: str) -> None:
    """Calls and their results are JSON inside of the request, which servers decode; some quote bytes."""
    words = mask_request(text, json.dumps({"messages": [{"content": prompt}]}).encode())
    assert words is not None and words.isascii() is False and set(words) <= set("near b'…")


def test_words_of_servers_in_other_scripts_stay() -> None:
    assert mask_request("模型 is overloaded", b'{"messages": []}') == "模型 is overloaded"


@given(st.lists(st.text("abcdeXYZ019 äß密\n'\"", min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_no_word_of_a_prompt_is_left(parts: list[str], data: st.DataObject) -> None:
    """But those of which such messages are made. As text, escaped as JSON once or twice, and cut anywhere."""
    prompt = " ".join(parts)
    quoted = data.draw(st.sampled_from([prompt, json.dumps(prompt), json.dumps(json.dumps(prompt)), repr(prompt)]))
    quoted = quoted[: data.draw(st.integers(0, len(quoted)))]
    quoted = re.sub(r"\\+(u[0-9a-f]{0,3}|x[0-9a-f]?)?$", "", quoted)  # an escape that was cut is no text
    found = mask_request(f"model failed: {quoted}", json.dumps({"messages": [prompt]}).encode()) or ""
    held = {word.casefold() for word in re.findall(r"[A-Za-z0-9]+|[^\x00-\x7f]", prompt)}
    left = {word.casefold() for word in re.findall(r"[A-Za-z0-9]+|[^\x00-\x7f]", found)} - {"…"}
    assert left & held <= _VOCABULARY


MANY = b'{"a": [1%b]}' % (b",1" * (VALUES_LIMIT + 1))  # of which each would be looked at


@pytest.mark.parametrize("body", [b"--form\r\nContent-Disposition: ...", b"[1]", b"x" * (REQUEST_LIMIT + 1), MANY])
def test_a_request_that_cannot_be_compared_has_no_words(body: bytes) -> None:
    """Forms, and what takes long to read."""
    error = KeyRejected("rejected")
    error.raw_message = "your project is suspended"
    set_provider_message(error, body)
    assert error.provider_message is None
    set_provider_message(error, b"{}")
    assert error.provider_message == "your project is suspended"


async def fails(connection: Connection, seen: Seen) -> None:
    """How, the model's name says: a status, and whether it comes inside of a 200."""
    status, _, how = seen.json["model"].partition("-")
    prompt = seen.json["messages"][0]["content"]
    message = f"the box is on fire ({KEY}): {json.dumps(prompt)} and {prompt}"
    code = {"429": "rate_limit", "401": "authentication_error"}.get(status, "server_error")
    error = {"error": {"message": message, "type": code, "code": int(status)}}
    if how == "event":
        await connection.head()
        await connection.chunk(b"data: " + json.dumps(error).encode() + b"\n\n")
        await connection.end()
    else:
        await connection.reply(error, f"{'200 OK' if how == 'inside' else f'{status} Told'}")


@pytest.mark.usefixtures("http")
async def test_the_log_line_of_a_failed_attempt_has_them(tmp_path: Path) -> None:
    """For each failure of the provider's own, also in a stream; none for what the caller is told himself."""
    models = ["400", "401", "404", "429", "500", "503", "500-inside", "500-event", "400-event"]
    async with upstream(each(fails)) as gpu, upstream(each(answers)):
        async with proxy(settings({"gpu": openai(gpu.url, api_key=KEY)}), tmp_path) as p:
            for model in models:
                body = {"model": f"gpu/{model}", "messages": BODY["messages"], "stream": model.endswith("event")}
                async with p.client.post(f"{p.url}/v1/chat/completions", json=body) as response:
                    await response.read()
        text = p.log.getvalue()
    lines = [json.loads(line) for line in text.splitlines() if '"attempt failed"' in line]
    told = {line["model"]: line.get("provider_message") for line in lines}
    assert set(told) == set(models)
    words = "the box is on fire ([redacted]): … and Please … that the … with …"
    assert {model: told[model] for model in models if told[model]} == dict.fromkeys(
        ["401", "404", "429", "500", "503", "500-inside", "500-event"], words
    )
    assert not [word for word in ("Xaver", "vault", "47114711471147114711", "jalape", "密", KEY) if word in text]


async def ollama_fails(connection: Connection, seen: Seen) -> None:
    """Quotes what it was sent; in a stream, inside of a 200."""
    error = {"error": f"the runner died of {json.dumps(seen.json, ensure_ascii=False)}"}
    if seen.json["stream"]:
        await connection.head(content_type="application/x-ndjson")
        await connection.chunk(json.dumps(error).encode() + b"\n")
        await connection.end()
    else:
        await connection.reply(error, "500 Internal Server Error")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_only_an_ollama_gets_is_masked_too(stream: bool, tmp_path: Path) -> None:
    """What its model thought, which is not in the request of any other provider, and settings of its own."""
    thought = {"role": "assistant", "content": "x", "thinking": "Xaver opens the vault"}
    asked = {"model": "o/m", "messages": [BODY["messages"][0], thought, BODY["messages"][0]], "stream": stream}
    asked |= {"options": {"mirostat": "jalapeno"}, "keep_alive": "Yolanda"}
    async with upstream(each(ollama_fails)) as up:
        provider = {"kind": "ollama", "base_url": up.url, "client_options": True}
        async with proxy(settings({"o": provider}), tmp_path) as p:
            async with p.client.post(f"{p.url}/api/chat", json=asked) as response:
                await response.read()
            await until(lambda: "the runner died of" in p.log.getvalue())
            assert not [word for word in ("Xaver", "vault", "jalapeno", "Yolanda") if word in p.log.getvalue()]
            assert "Xaver opens the vault" in up.posts[-1].body.decode()
