"""What a provider's answer becomes for a client: the wires' tests look at it through the doors of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from manallm_proxy.contract.answers import Answer, StreamBatch
from manallm_proxy.contract.door import Client, Door, Reply
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.openai_chat import ChatDoor, ChatReply
from manallm_proxy.doors.openai_completions import CompletionsDoor, CompletionsReply
from manallm_proxy.doors.openai_embeddings import EmbeddingsDoor, EmbeddingsReply

DOORS: dict[Endpoint, Door] = {
    Endpoint.CHAT: ChatDoor(),
    Endpoint.COMPLETIONS: CompletionsDoor(),
    Endpoint.EMBEDDINGS: EmbeddingsDoor(),
}
CLIENT = Client("req-1")


def reply_to(call: Call) -> Reply:
    """The reply to `call`, also to one that no door would have let through."""
    if call.endpoint is Endpoint.EMBEDDINGS:
        return EmbeddingsReply(call.summary, as_base64=b'"base64"' in call.body)
    return ChatReply(call.summary) if call.endpoint is Endpoint.CHAT else CompletionsReply(call.summary)


def whole(call: Call, target: Target, answer: Answer) -> Any:
    """The decoded body of a complete answer."""
    return json.loads(reply_to(call).whole(target, answer))


def payloads(frames: bytes) -> list[Any]:
    """The decoded events of a stream, without ``[DONE]``."""
    lines = [line[6:] for line in frames.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def events(call: Call, target: Target, batches: Iterable[StreamBatch], usage: Any = None, *, end: bool) -> list[Any]:
    """The decoded events that `batches` become; with `end` those after them, too."""
    reply = reply_to(call)
    reply.start(target)
    frames = b"".join([reply.events(batch) for batch in batches])
    return payloads(frames + (reply.end(usage) if end else b""))
