"""Answers in OpenAI's shape that we write ourselves, from what a translating wire understood.

The rules that clients rely on (wire.md A.2): every chunk has ``id``, ``created``, ``choices`` with
``index`` and ``delta``; the role comes first; tool calls are numbered by us; a usage chunk has empty
``choices`` and comes only where it was asked for.
"""

from __future__ import annotations

import base64
import secrets
import struct
import time
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from manallm_proxy.contract.provider import Call, Endpoint, Usage
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.schema import encode, usage_to_openai


def call_id() -> str:
    """An id for a tool call whose provider gave none."""
    return f"call_{secrets.token_hex(12)}"


@frozen
class ToolCall:
    """One whole tool call. ``arguments`` is JSON text, ``extra`` what else the client should hand back."""

    name: str
    arguments: str = field(repr=False)
    id: str = field(factory=call_id)
    extra: dict[str, Any] = field(factory=dict, repr=False)

    def to_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function, **self.extra}


@frozen
class Delta:
    """What one step of one choice adds. ``finish`` is OpenAI's word, on the last step only."""

    content: str = field(default="", repr=False)
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    index: int = 0
    logprobs: Any = field(default=None, repr=False)

    @property
    def has_content(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls or self.finish)


@define
class Composer:
    """Writes one answer of one target: either chunks as they come, or one body."""

    call: Call
    target: Target
    created: int = field(factory=lambda: int(time.time()))
    _id: str = field(factory=lambda: secrets.token_hex(12))
    _begun: set[int] = field(factory=set)
    _calls: dict[int, int] = field(factory=dict)

    def _shell(self, kind: str) -> dict[str, Any]:
        if self.call.endpoint is Endpoint.COMPLETIONS:
            kind, prefix = "text_completion", "cmpl"
        else:
            prefix = "chatcmpl"
        return {"id": f"{prefix}-{self._id}", "object": kind, "created": self.created, "model": str(self.target)}

    def chunk(self, delta: Delta) -> bytes:
        """One chunk's JSON."""
        choice: dict[str, Any] = {"index": delta.index}
        if self.call.endpoint is Endpoint.COMPLETIONS:
            choice["text"] = delta.content
        else:
            choice["delta"] = self._delta(delta)
        if delta.logprobs is not None:
            choice["logprobs"] = delta.logprobs
        choice["finish_reason"] = delta.finish
        return encode({**self._shell("chat.completion.chunk"), "choices": [choice]})

    def _delta(self, delta: Delta) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            said = {"role": "assistant", "content": ""}
        if delta.content:
            said["content"] = delta.content
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            first = self._calls.get(delta.index, 0)
            self._calls[delta.index] = first + len(delta.tool_calls)
            said["tool_calls"] = [{"index": first + n, **c.to_openai()} for n, c in enumerate(delta.tool_calls)]
        return said

    def usage_chunk(self, usage: Usage) -> bytes | None:
        """The extra last chunk, where the client asked for it."""
        if not self.call.summary.wants_usage:
            return None
        return encode({**self._shell("chat.completion.chunk"), "choices": [], "usage": usage_to_openai(usage)})

    def body(self, choices: Sequence[Delta], usage: Usage) -> bytes:
        """A complete answer: one Delta a choice, each with its ``finish``."""
        rows = [self._choice(delta) for delta in choices]
        return encode({**self._shell("chat.completion"), "choices": rows, "usage": usage_to_openai(usage)})

    def _choice(self, delta: Delta) -> dict[str, Any]:
        row: dict[str, Any] = {"index": delta.index, "logprobs": delta.logprobs, "finish_reason": delta.finish}
        if self.call.endpoint is Endpoint.COMPLETIONS:
            return {**row, "text": delta.content}
        message: dict[str, Any] = {"role": "assistant", "content": delta.content}
        if delta.reasoning:
            message["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            message["tool_calls"] = [c.to_openai() for c in delta.tool_calls]
            message["content"] = delta.content or None
        return {**row, "message": message}


def vector_text(vector: Sequence[float]) -> str:
    """A vector as base64 of little-endian float32, as every SDK decodes it (wire.md A.5)."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def embeddings_body(vectors: Sequence[Sequence[float]], target: Target, usage: Usage, *, as_base64: bool) -> bytes:
    """``POST /v1/embeddings``'s answer."""
    written = vector_text if as_base64 else list
    rows = [{"object": "embedding", "index": i, "embedding": written(v)} for i, v in enumerate(vectors)]
    counted = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    return encode({"object": "list", "data": rows, "model": str(target), "usage": counted})
