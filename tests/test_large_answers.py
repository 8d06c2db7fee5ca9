"""An answer that is read in slices is the answer that is read in one go, for each kind of provider."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai import sliced
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.wire import GeminiWire
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai import vector_rows
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Wire
from tests.upstreams import completion

WIRES: dict[str, Wire] = {"openai": OpenAIWire(), "ollama": OllamaWire(), "google": GeminiWire()}
VECTORS = [[0.5, -0.25, 3.0, 1e-7], [1.0, 2.0, -2.5, 0.125], [0.0, -1.0, 7.5, 100.0]] * 4
PACKED = [base64.b64encode(struct.pack("<4f", *vector)).decode() for vector in VECTORS]
CALLS = [
    {"id": f"c{n}", "type": "function", "function": {"name": f"f{n}", "arguments": f'{{"a":{n}}}'}} for n in range(9)
]


def chat(**message: Any) -> dict[str, Any]:
    whole = completion('Hello \\ "you" \u00e9\U0001f600')
    whole["choices"][0]["message"] |= message
    return whole


def embeddings(vectors: list[Any], **more: Any) -> dict[str, Any]:
    rows = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3}, **more}


def called(name: str, number: int) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"a": number, "b": [1, {"c": None}]}}, "id": f"c{number}"}


PARTS = [{"text": "Hello"}, *({"functionCall": {"name": f"f{n}", "id": f"c{n}", "args": {"a": n}}} for n in range(9))]
DONE = {"done": True, "done_reason": "stop", "eval_count": 3, "prompt_eval_count": 2}
CHATS: dict[str, tuple[str, Any]] = {
    "text": ("openai", chat()),
    "tool calls": ("openai", chat(tool_calls=CALLS)),
    "an error inside": ("openai", {**chat(), "error": {"message": "no room left here"}}),
    "a choice that failed": ("openai", {"choices": [{"error": {"message": "no", "code": 429}, "message": {}}]}),
    "no choices": ("openai", {"x": "y" * 200, "choices": []}),
    "no object": ("openai", ["x" * 300]),
    "Ollama's text": ("ollama", {"message": {"role": "assistant", "content": "Hi \u2028 there"}, **DONE}),
    "Ollama's calls": (
        "ollama",
        {"message": {"tool_calls": [called(f"f{n}", n) for n in range(9)]}, **DONE},
    ),
    "Ollama's error": ("ollama", {"error": "the model runner has stopped", "x": "y" * 200}),
    "Ollama's nonsense": ("ollama", {"message": {"content": 5, "tool_calls": [3]}, "x": "y" * 200, **DONE}),
    "Gemini's": (
        "google",
        {"candidates": [{"content": {"parts": PARTS}, "finishReason": "STOP"}], "usageMetadata": {}},
    ),
    "Gemini's nonsense": ("google", {"candidates": [{"content": {"parts": [{"text": 5}]}}], "x": "y" * 200}),
    "Gemini's block": ("google", {"promptFeedback": {"blockReason": "SAFETY"}, "x": "y" * 200}),
}
LISTS: dict[str, tuple[str, Any]] = {
    "floats": ("openai", embeddings(VECTORS)),
    "base64": ("openai", embeddings(PACKED)),
    "floats and more": ("openai", {"data": embeddings(VECTORS)["data"], "x": "y" * 300}),
    "rows with more": ("openai", {"data": [{"embedding": v, "a": [{"b": 1}, {"c": 2}]} for v in VECTORS], "usage": {}}),
    "a list after them": ("openai", {"model": "x", "data": embeddings(VECTORS)["data"], "z": [1, 2]}),
    "other rows before them": ("openai", {"x": {"data": embeddings(VECTORS)["data"]}, **embeddings(VECTORS[:9])}),
    "no vector in one": ("openai", embeddings([*VECTORS[:-1], None])),
    "an error": ("openai", embeddings(VECTORS, error={"message": "no"})),
    "too few": ("openai", embeddings(VECTORS[:-1])),
    "a row that is none": ("openai", {"data": [*embeddings(VECTORS)["data"], 5]}),
    "no vectors": ("openai", embeddings([{"x": 1}] * 12)),
    "Ollama's vectors": ("ollama", {"embeddings": VECTORS, "prompt_eval_count": 3}),
    "Ollama's, too few": ("ollama", {"embeddings": VECTORS[:-1]}),
    "Ollama's, no numbers": ("ollama", {"embeddings": [["x"] * 20] * 12}),
    "Ollama's error": ("ollama", {"error": "the model runner has stopped", "x": "y" * 200}),
    "Gemini's vectors": ("google", {"embeddings": [{"values": vector} for vector in VECTORS]}),
    "Gemini's, too few": ("google", {"embeddings": [{"values": vector} for vector in VECTORS[:-1]]}),
}


def read(kind: str, body: Any, asked: dict[str, Any], relays: bool) -> Any:
    """The answer, comparable; or what was wrong with it."""
    endpoint = Endpoint.EMBEDDINGS if "input" in asked else Endpoint.CHAT
    request = json.dumps({"model": "p/m", **asked}).encode()
    key, types = ("input", (str, list)) if "input" in asked else ("messages", list)
    call = Call(endpoint, read_summary(request, (key, types)), request, "1", relays=relays)
    spaces: dict[str, Any] = {"separators": (",", ":")} if kind == "ollama" else {"indent": 1}
    # arguments of Ollama's calls lose their white space where it is large
    text = body if isinstance(body, bytes) else json.dumps(body, **spaces).encode()
    try:
        answer: Answer = WIRES[kind].answer(call, Entry(Target("p", "m")), text, "application/json")
    except ProviderError as error:
        return type(error), error.message, error.detail
    vectors = [list(vector) for vector in answer.vectors]
    return answer.body and json.loads(answer.body), answer.usage, answer.choices, vectors, answer.dimensions


@pytest.mark.parametrize("relays", [True, False])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        *((name, {"messages": [{"role": "user", "content": "hi"}]}) for name in CHATS),
        *((name, {"input": ["x"] * 12}) for name in LISTS),
        *((name, {"input": ["x"] * 12, "encoding_format": "base64"}) for name in LISTS),
    ],
)
def test_the_same_answer(monkeypatch: pytest.MonkeyPatch, name: str, asked: dict[str, Any], relays: bool) -> None:
    """Or the same failure, in the same words."""
    kind, body = (LISTS if "input" in asked else CHATS)[name]
    wanted = read(kind, body, asked, relays)
    all_is_large(monkeypatch)
    assert read(kind, body, asked, relays) == wanted


def all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for part, size in {"LARGE_BYTES": 64, "LARGE_ELEMENTS": 32, "SMALL": 24, "_SLICE": 37, "TEXT": 40}.items():
        monkeypatch.setattr(sliced, part, size)
    monkeypatch.setattr(vector_rows, "_SLICE", 37)


BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "cut at its end": lambda text: text[:-1],
    "cut in the middle": lambda text: text[: len(text) // 2],
    "no text": lambda text: text.replace(b"1", b"\xff", 1),
    "a comma too many": lambda text: text.replace(b",", b",,", 1),
    "something behind it": lambda text: text + b"}",
}


@pytest.mark.parametrize("name", ["floats", "base64", "Ollama's vectors", "Gemini's vectors", "text", "Gemini's"])
@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_answer_is_the_providers_failure(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """And never the caller's mistake, or ours: the next target is asked, however large it is."""
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    if name in LISTS:  # which are written anew where they are relayed
        asked = {"input": ["x"] * 12, "encoding_format": "float" if name == "base64" else "base64"}
    kind, body = (LISTS | CHATS)[name]
    text = BREAKS[how](json.dumps(body).encode())
    for _ in range(2):
        for relays in (False, True):
            assert read(kind, text, asked, relays)[0] is BadResponse
        all_is_large(monkeypatch)


def test_relayed_vectors_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In short pieces, which are no more than the answer in all; no walk over brackets."""
    seen: list[int] = []
    decoder = vector_rows._ROWS

    class Counted:
        def decode(self, text: bytes) -> Any:
            seen.append(len(text))
            return decoder.decode(text)

    monkeypatch.setattr(vector_rows, "_ROWS", Counted())
    monkeypatch.setattr(sliced, "members", None)
    body = json.dumps(embeddings([[0.0123456789] * 768] * 300)).encode()
    asked = json.dumps({"model": "p/m", "input": ["x"] * 300}).encode()
    call = Call(Endpoint.EMBEDDINGS, read_summary(asked, ("input", list)), asked, "1")
    answer = WIRES["openai"].answer(call, Entry(Target("p", "m")), body)
    assert answer.body is not None and answer.body == body.replace(b'"model": "m"', b'"model": "p/m"')
    assert answer.dimensions == 768
    assert len(body) > 2 * sliced.LARGE_BYTES and sum(seen) < len(body) and max(seen) < 64 * 1024
