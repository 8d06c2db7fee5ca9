"""The main job: what a client's API and a provider's have to say to each other, pair by pair.

Beside the relayed chat, of which each figure is a multiple; and beside nginx, which relays the same door's format.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

Fields = dict[str, Any]


@frozen
class Door:
    """A client's API. ``end``: what the last line of its streams holds; ``kind``: what each line with words holds."""

    path: str
    end: str
    kind: str = ""

    def body(self, system: str, words: object) -> Fields:
        """All of a request but its model and whether it is streamed."""
        if self is RESPONSES:
            return {"instructions": system, "input": words, "store": False}
        if self is MESSAGES:
            return {"system": system, "messages": [{"role": "user", "content": words}], "max_tokens": 1000}
        return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": words}]}


CHAT: Final = Door("/v1/chat/completions", "[DONE]")
RESPONSES: Final = Door("/v1/responses", '"type":"response.completed"', ".delta")
MESSAGES: Final = Door("/v1/messages", '"message_stop"', "text_delta")
OLLAMA: Final = Door("/api/chat", '"done":true')


@frozen
class Pair:
    """A door, and a provider of ours behind it."""

    name: str
    title: str
    door: Door
    model: str


PAIRS: Final = (
    Pair("from-ollama", "chat, from Ollama's native API", CHAT, "ollama/bench"),
    Pair("from-gemini", "chat, from Gemini", CHAT, "gemini/bench"),
    Pair("responses", "Responses, from chat", RESPONSES, "near/bench"),
    Pair("messages", "Messages, from chat", MESSAGES, "near/bench"),
    Pair("ollama", "Ollama, from chat", OLLAMA, "near/bench"),
    Pair("ollama-ollama", "Ollama, from Ollama's native API", OLLAMA, "ollama/bench"),
    Pair("responses-own", "Responses, from Responses", RESPONSES, "native/bench"),
    Pair("messages-own", "Messages, from Messages", MESSAGES, "native/bench"),
)
