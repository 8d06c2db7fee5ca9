"""The three kinds of provider as the faults need them: a good server, and the pieces of its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import frozen

from tests.proxy import openai
from tests.servers import LAST, gemini, gemini_server, line, ollama_server
from tests.upstreams import DONE, Answer, answers, chunk

Asked = Literal["chat", "stream", "embeddings"]
KEY = "sk-CANARY-provider"
"""Of the proxy, at its provider: it is nowhere but in the provider's request."""


@frozen
class Dialect:
    """One kind. ``said`` are the bytes of an event that commits, ``last`` those that end an answer well."""

    name: str
    good: Answer
    content_type: str
    said: Callable[[str], bytes]
    last: bytes
    error: bytes
    """An error where an event should be, at status 200."""

    def config(self, url: str, **more: Any) -> dict[str, Any]:
        if self.name == "openai":
            return openai(url, api_key=KEY, **more)
        key = {"api_key": KEY} if self.name == "google" else {}
        return {"kind": self.name, "base_url": url, **key, **more}


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(
        "openai",
        answers,
        "text/event-stream",
        chunk,
        chunk(finish="stop") + DONE,
        b'data: {"error":{"message":"out of memory","code":502}}\n\n',
    ),
    "ollama": Dialect(
        "ollama",
        ollama_server,
        "application/x-ndjson",
        line,
        LAST,
        b'{"error":"llama runner process has terminated"}\n',
    ),
    "google": Dialect(
        "google",
        gemini_server,
        "text/event-stream",
        lambda text: b"data: " + gemini(text) + b"\r\n\r\n",
        b"data: " + gemini("", finish="STOP") + b"\r\n\r\n",
        b'data: {"error":{"code":502,"message":"broken","status":"INTERNAL"}}\r\n\r\n',
    ),
}
