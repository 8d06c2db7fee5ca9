"""Doors read and write large requests and answers in short calls: one long call into C keeps all threads waiting."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest

from manallm_proxy.contract.answers import Answer, Delta
from manallm_proxy.contract.door import Client, Door
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.embed import OllamaEmbedDoor
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.doors.openai_chat import ChatDoor
from manallm_proxy.doors.openai_completions import CompletionsDoor
from manallm_proxy.doors.responses.door import ResponsesDoor
from manallm_proxy.doors.responses.store import MemoryStore, Stored
from manallm_proxy.doors.responses.stored_view import Page, input_view
from manallm_proxy.openai.forced_call import as_structured_output

LONG = "words " * 190_000
USER = {"role": "user", "content": LONG}
UNSIGNED = {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": ""}]}
TOOL = {"type": "function", "function": {"name": "f"}}
KEPT = Stored("resp_1", b"{}", (json.dumps(USER).encode(),), ())
CALLS: list[tuple[Door, dict[str, Any], set[str]]] = [
    (OllamaChatDoor(), {"messages": [USER]}, set()),
    (OllamaGenerateDoor(), {"prompt": LONG}, set()),
    (OllamaGenerateDoor(), {"prompt": LONG, "raw": True}, set()),
    (OllamaEmbedDoor(), {"input": [LONG]}, set()),
    (MessagesDoor(), {"messages": [USER], "max_tokens": 1}, set()),
    (MessagesDoor(), {"messages": [USER, UNSIGNED, USER], "max_tokens": 1}, {"messages"}),
    (ResponsesDoor(MemoryStore(lambda: 0.0)), {"input": LONG}, set()),
    (ResponsesDoor(MemoryStore(lambda: 0.0)), {"input": "hi", "previous_response_id": "resp_1"}, set()),
    (ResponsesDoor(MemoryStore(lambda: 0.0)), {"input": "hi", "previous_response_id": "resp_1"}, {"responses"}),
]


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that one call has written or read, of each call."""
    sizes: list[int] = []

    def encode(value: Any) -> bytes:
        text = msgspec.json.encode(value)
        sizes.append(len(text))
        return text

    def decode(text: Any, **options: Any) -> Any:
        sizes.append(len(text))
        return msgspec.json.decode(text, **options)

    for name, module in list(sys.modules.items()):
        for each in (encode, decode) if name.startswith("manallm_proxy") else ():
            if getattr(module, each.__name__, None) is getattr(msgspec.json, each.__name__):
                monkeypatch.setattr(module, each.__name__, each)
    return sizes


async def test_a_long_request(longest: list[int]) -> None:
    """Translated, and rewritten for a provider that speaks the client's own format."""
    for door, asked, dialects in CALLS:
        if isinstance(door, ResponsesDoor):
            door.store.keep(None, KEPT)
        reading = door.read(json.dumps({"model": "a/b", **asked}).encode(), Client("1", dialects=frozenset(dialects)))
        call, _ = reading if isinstance(reading, tuple) else await reading
        assert len(call.at("a", dialects).body) > len(LONG), asked.keys()
        assert longest and max(longest) < 2**20, (door.name, asked.keys())


def test_a_long_answer(longest: list[int]) -> None:
    """Whole, through each door that translates."""
    user = [{"role": "user", "content": "hi"}]
    doors: list[tuple[Door, dict[str, Any]]] = [
        (ChatDoor(), {"messages": user}),
        (CompletionsDoor(), {"prompt": "hi"}),
        (MessagesDoor(), {"messages": user, "max_tokens": 1}),
        (OllamaChatDoor(), {"messages": user}),
        (OllamaGenerateDoor(), {"prompt": "hi"}),
        (ResponsesDoor(MemoryStore(lambda: 0.0)), {"input": "hi", "store": False}),
    ]
    for door, asked in doors:
        reading = door.read(json.dumps({"model": "a/b", **asked}).encode(), Client("1"))
        assert isinstance(reading, tuple)
        whole = reading[1].whole(Target("a", "b"), Answer(choices=(Delta(LONG, finish="stop"),), is_large=True))
        assert len(whole) > len(LONG)
        assert max(longest) < 2**20, door.name


def test_a_stored_response(longest: list[int]) -> None:
    """As it is shown."""
    assert len(input_view(KEPT, Page())["data"]) == 1
    assert max(longest) < 2**20


def test_a_forced_call(longest: list[int]) -> None:
    """For a server that is told of the tools in words."""
    call, _ = OllamaChatDoor().read(json.dumps({"model": "a/b", "messages": [USER]}).encode(), Client("1"))
    chat = json.dumps({**json.loads(call.body), "tools": [TOOL], "tool_choice": "required"}).encode()
    forced = Call(Endpoint.CHAT, call.summary, chat, "1", is_large=True)
    assert len(as_structured_output(forced, "m", False)) > len(LONG)
    assert max(longest) < 2**20
