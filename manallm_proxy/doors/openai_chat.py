"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field

from manallm_proxy.contract.answers import Delta, ToolCall
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.doors.openai_reply import OpenAIReply, no_headers
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.large import LARGE_BYTES
from manallm_proxy.openai.request import read_summary


class ChatDoor:
    """See `door.Door`."""

    name = Endpoint.CHAT.path
    scans = True
    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, ChatReply]:
        summary = read_summary(body, ("messages", list), short=client.short, keys=client.bounds.keys)
        call = Call(Endpoint.CHAT, summary, body, client.request_id, is_large=len(body) > LARGE_BYTES)
        return call, ChatReply(summary)


@define
class ChatReply(OpenAIReply):
    """The first chunk of each choice has the role; tool calls in chunks have an index."""

    id_prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    _begun: set[int] = field(factory=set)

    def choice(self, delta: Delta) -> dict[str, Any]:
        row: dict[str, Any] = {"index": delta.index, "logprobs": delta.logprobs, "finish_reason": delta.finish}
        message: dict[str, Any] = {"role": "assistant", "content": delta.content, **_beside_text(delta)}
        if delta.tool_calls:
            message["tool_calls"] = [_whole_call(call) for call in delta.tool_calls]
        if delta.images or delta.tool_calls:  # null if these are the whole answer: "" would be an empty text
            message["content"] = delta.content or None
        return {**row, "message": message}

    def chunk_choice(self, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": delta.index, "delta": self._delta(delta)}
        if delta.logprobs is not None:
            choice["logprobs"] = delta.logprobs
        choice["finish_reason"] = delta.finish
        return choice

    def _delta(self, delta: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            said = {"role": "assistant", "content": ""}
        if delta.content:
            said["content"] = delta.content
        said |= _beside_text(delta)
        if delta.tool_calls:
            said["tool_calls"] = [{"index": call.index, **_call_part(call)} for call in delta.tool_calls]
        return said


def _beside_text(delta: Delta) -> dict[str, Any]:
    """The members of a message or delta besides text and calls, without empty ones."""
    said: dict[str, Any] = {}
    if delta.reasoning:
        said["reasoning_content"] = delta.reasoning
    if delta.refusal:
        said["refusal"] = delta.refusal
    if delta.images:
        said["images"] = _images(delta)
    return said


def _whole_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function, **call.extra}


def _call_part(call: ToolCall) -> dict[str, Any]:
    return _whole_call(call) if call.name or call.id else {"function": {"arguments": call.arguments}}


def _images(delta: Delta) -> list[dict[str, Any]]:
    """Generated images in OpenRouter's form, since OpenAI's chat format has no field for them."""
    rows = enumerate(delta.images)
    return [{"index": n, "type": "image_url", "image_url": {"url": url}} for n, url in rows]
