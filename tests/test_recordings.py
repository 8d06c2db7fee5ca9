"""Refusals of real servers: what each means for the caller, and whom it blames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manallm_proxy.contract.provider_errors import (
    Blame,
    ContextTooLong,
    KeyRejected,
    MissingModel,
    ModelFailed,
    ProviderError,
    RequestRejected,
    ServerBusy,
    Unsupported,
)
from manallm_proxy.providers.classify import ErrorDetails, classify, in_band, parse_error
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests.cases import every
from tests.proxy import openai, proxy, settings
from tests.recorded import recorded
from tests.upstreams import Connection, Seen, answers, each, upstream

LACKING, TOO_LONG, INVALID = "unsupported_capability", "context_length_exceeded", "invalid_request_error"

REFUSALS: list[tuple[str, type[ProviderError], int, str | None]] = [
    ("llama-image-500", Unsupported, 400, LACKING),
    ("llama-batch-500", ContextTooLong, 400, TOO_LONG),
    ("llama-chat-500", Unsupported, 400, LACKING),
    ("llama-embeddings-501", Unsupported, 400, LACKING),
    ("llama-schema-400", RequestRejected, 400, None),
    ("llama-context-400", ContextTooLong, 400, TOO_LONG),
    ("llama-loading-503", ServerBusy, 503, None),
    ("llama-router-missing-400", MissingModel, 404, "model_not_found"),
    ("ollama-embeddings-501", Unsupported, 400, LACKING),
    ("ollama-image-400", Unsupported, 400, LACKING),
    ("ollama-schema-400", RequestRejected, 400, None),
    ("ollama-context-400", ContextTooLong, 400, TOO_LONG),
    ("ollama-context-nested-400", ContextTooLong, 400, TOO_LONG),
    ("ollama012-schema-500", RequestRejected, 400, None),
    ("ollama012-context-400", ContextTooLong, 400, TOO_LONG),
    ("ollama-option-500", RequestRejected, 400, None),
    ("ollama-missing-404", MissingModel, 404, "model_not_found"),
    ("ollama-chat-400", Unsupported, 400, LACKING),
    ("ollama-queue-503", ServerBusy, 503, None),
    ("ollama-killed-500", ModelFailed, 502, None),
    ("ollama-cloud-403", KeyRejected, 502, None),
]


@every(REFUSALS)
def test_what_a_recorded_refusal_means(name: str, kind: type[ProviderError], status: int, code: str | None) -> None:
    """The caller's mistake is 400 of its class and blames nobody, whatever status it came with."""
    answer = recorded(f"refusal-{name}")
    wire = OllamaWire() if name.startswith("ollama") else OpenAIWire()
    error = wire.failure(answer.status, answer.headers, answer.body)
    assert (type(error), error.status) == (kind, status), error
    assert code is None or error.code == code
    if error.status == 400:
        assert (error.blame, error.retryable, error.type) == (Blame.NOBODY, False, INVALID)
    assert not error.message.startswith("{") and "\\" not in error.message, "nested JSON is unwrapped"


@pytest.mark.parametrize("name", [row[0] for row in REFUSALS if row[0].startswith("ollama") and row[2] == 400])
def test_the_same_from_ollamas_openai_door(name: str) -> None:
    """There the text stands in OpenAI's envelope, and the JSON in it is one level deeper."""
    answer = recorded(f"refusal-{name}")
    text = json.loads(answer.body)["error"]
    body = json.dumps({"error": {"message": text, "type": "api_error", "param": None, "code": None}}).encode()
    native = OllamaWire().failure(answer.status, answer.headers, answer.body)
    ours = OpenAIWire().failure(answer.status, answer.headers, body)
    assert (type(ours), ours.status, ours.message) == (type(native), native.status, native.message)


CALLERS: list[tuple[str, type[ProviderError]]] = [
    ("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", Unsupported),
    ("audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj", Unsupported),
    ("video input is not supported - hint: if this is unexpected, you may need to provide the mmproj", Unsupported),
    ("The current model does not support audio input.", Unsupported),
    ("the current context does not logits computation. skipping", Unsupported),
    ("Multimodal data provided, but model does not support multimodal requests.", Unsupported),
    ("tools param requires --jinja flag", Unsupported),
    ("tool_choice param requires --jinja flag", Unsupported),
    ("Unsupported param: best_of", Unsupported),
    ('"all-minilm" does not support chat', Unsupported),
    ("Cannot use both json_schema and grammar", RequestRejected),
    ('"json_schema": JSON schema conversion failed: Unrecognized schema: {"type":"nonsense"}', RequestRejected),
    ("Failed to load image or audio file", RequestRejected),
    ("Invalid base64 value", RequestRejected),
    ("Failed to parse messages: Missing 'role'; messages = [{}]", RequestRejected),
    ("Failed to parse tools: Missing tool type; tools = [{}]", RequestRejected),
    (
        "While executing CallExpression at line 1: Error: Jinja Exception: roles must alternate user/model",
        RequestRejected,
    ),
    ('Error rendering prompt with jinja template: "Conversation roles must alternate user/assistant"', RequestRejected),
    ('"prompt" must not be empty', RequestRejected),
    ('option "stop" must be of an array', RequestRejected),
    ('invalid format: "xml"; expected "json" or a valid JSON Schema object', RequestRejected),
    ("input is too large to process. increase the physical batch size", ContextTooLong),
    ("input (9000 tokens) is larger than the max context size (8192 tokens). skipping", ContextTooLong),
    ("the request exceeds the available context size. try increasing the context size", ContextTooLong),
    ("The input (9000 tokens) is longer than the model's context length (8192 tokens).", ContextTooLong),
    ("model name=nope is not found", MissingModel),
]


@every((*caller, status) for caller in CALLERS for status in (500, 502))
def test_a_mistake_of_the_callers_that_comes_as_a_failure(text: str, kind: type[ProviderError], status: int) -> None:
    """From the sources of llama-server and Ollama; told apart by their own words, and without the request's."""
    error = classify(status, {}, ErrorDetails(text, kind="server_error"))
    assert type(error) is kind
    assert (error.status, error.retryable) == (404 if kind is MissingModel else 400, False)
    assert "; messages =" not in error.message and "; tools =" not in error.message
    nested = json.dumps({"error": {"code": status, "message": text, "type": "server_error"}})
    for body in ({"error": nested}, {"error": {"message": nested}}, {"error": json.dumps({"error": nested})}):
        assert type(classify(status, {}, parse_error(body))) is kind
        assert type(OllamaWire().failure(status, {}, json.dumps(body).encode())) is kind


REAL = [
    "an error was encountered while running the model: image input is not supported",
    "llama runner process has terminated: error: this GPU does not support tools",
    "failed to create context with context size 8192",
    "model name=smol failed to load",
    "got exception: invalid format: out of memory",
    "The model produced output that does not match the expected peg-native format",
    'error parsing tool call: raw=\'{"x": "does not support tools"\', err=invalid character',
    "context shift is disabled",
    'Error rendering prompt with jinja template: "Error: Parser Error: Expected closing statement token."',
    "cannot open /models/chat.gguf",
    "",
]


@pytest.mark.parametrize("text", REAL)
def test_a_real_failure_counts_against_its_target(text: str) -> None:
    """Also where it holds words of a mistake further on, as a client or a model may put them there."""
    for error in (
        classify(500, {}, ErrorDetails(text)),
        in_band(ErrorDetails(text, kind="server_error", status=500)),
        OllamaWire().failure(500, {}, json.dumps({"error": text}).encode()),
    ):
        assert (type(error), error.blame, error.retryable) == (ModelFailed, Blame.TARGET, True)
        assert not text or text not in error.message


@pytest.mark.parametrize("status", [400, 403, 413, 422, 500, 502, 503])
@pytest.mark.parametrize("word", ["exceed_context_size_error", "context_length_exceeded"])
def test_an_overflow_is_400_in_any_shape(status: int, word: str) -> None:
    """By its type or its code, under any status, and inside a 200."""
    for details in (ErrorDetails("9 of 8", kind=word), ErrorDetails("9 of 8", code=word), ErrorDetails("", code=word)):
        for error in (classify(status, {}, details), in_band(details)):
            assert (type(error), error.status, error.code) == (ContextTooLong, 400, TOO_LONG)
            assert error.message


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_body_may_correct_a_500(code: int) -> None:
    """A server in the middle turned the inner one's 400 into a 500: the body still says what it was."""
    nested = json.dumps({"error": {"code": code, "message": "seed must be a number", "type": "invalid_request_error"}})
    error = OllamaWire().failure(500, {}, json.dumps({"error": nested}).encode())
    assert (type(error), error.status, error.message) == (RequestRejected, code, "seed must be a number")


@pytest.mark.parametrize("body", [b"", b"<html>501 Not Implemented</html>", b'{"error":{"message":"no rerank here"}}'])
def test_501_is_a_lack_of_the_provider(body: bytes) -> None:
    """Whatever stands in it: 400, which no SDK sends again."""
    for error in (OpenAIWire().failure(501, {}, body), OllamaWire().failure(501, {}, body)):
        assert (type(error), error.status, error.code, error.widened_by) == (Unsupported, 400, LACKING, "capability")
        assert error.message and "<" not in error.message


async def test_no_client_can_close_a_model_for_everybody(tmp_path: Path) -> None:
    """Three images to a model that sees none: three times 400, no fallback, and the next chat is served."""
    image = recorded("refusal-llama-image-500")

    async def script(connection: Connection, seen: Seen) -> None:
        if b"image_url" in seen.body:
            await connection.reply(image.body, "500 Internal Server Error")
        else:
            await answers(connection, seen)

    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    async with upstream(each(script)) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url), "cloud": openai(cloud.url)})
        config["aliases"]["mana/wide"] = {"chain": ["gpu/m", "cloud/m"], "fallback_on": ["capability"]}
        async with proxy(config, tmp_path) as p:
            for _ in range(3):
                status, body, headers = await p.chat(messages=[{"role": "user", "content": content}])
                assert (status, body["error"]["code"]) == (400, LACKING)
                assert headers["x-mana-llm-attempts"] == "1"
            assert (await p.chat())[2]["x-mana-llm-resolved"] == "gpu/m"
            wide = await p.chat(messages=[{"role": "user", "content": content}], model="mana/wide")
            assert wide[2]["x-mana-llm-resolved"] == "cloud/m"
            health = (await p.get("/v1/health"))[1]["providers"]["gpu"]
            assert (health["status"], health["consecutive_failures"]) == ("healthy", 0)


async def test_501_of_the_only_entry_is_400(tmp_path: Path) -> None:
    """A 503 would make an SDK ask again, and again."""
    answer = recorded("refusal-llama-embeddings-501")

    async def script(connection: Connection, seen: Seen) -> None:
        await connection.reply(answer.body, "501 Not Implemented")

    async with upstream(each(script)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for _ in range(3):
            status, body, _ = await p.post("/v1/embeddings", {"model": "gpu/m", "input": "x"})
            assert (status, body["error"]["code"]) == (400, LACKING)
        assert len(gpu.posts) == 3
