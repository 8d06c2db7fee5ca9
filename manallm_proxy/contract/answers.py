"""What a provider answers, in no client's format: the neutral words between the dialects and the doors.

A provider that speaks the format which the client's door speaks may hand on its own bytes instead (``body``,
``frames``); everything else is made of `Delta`s, which the door writes in its own format.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from manallm_proxy.contract.provider_errors import ProviderError


@define  # not frozen: there is one for each request, and freezing takes 60 ns a field
class Usage:
    """Tokens of one answer. ``reasoning`` is part of ``completion``, ``cached`` part of ``prompt``."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0


def new_call_id() -> str:
    """An id for a tool call whose provider gave none."""
    return f"call_{secrets.token_hex(12)}"


@frozen
class ToolCall:
    """A tool call, or one part of it: the parts of one call share ``index`` and their ``arguments`` join.

    ``id`` and ``name`` come with the first part, and are empty in the others.
    """

    name: str
    arguments: str = field(repr=False)
    """JSON text."""
    id: str = ""
    index: int = 0
    """Its place among the calls of its choice."""
    extra: dict[str, Any] = field(factory=dict, repr=False)
    """What else the client should hand back with the call (Gemini's thought signature)."""


@frozen
class Delta:
    """What one step adds to one choice. ``finish`` (OpenAI's word for it) is on the last step only."""

    content: str = field(default="", repr=False)
    reasoning: str = field(default="", repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str | None = None
    index: int = 0
    """The choice."""
    logprobs: Any = field(default=None, repr=False)
    """As OpenAI's ``logprobs`` of a choice."""
    images: tuple[str, ...] = field(default=(), repr=False)
    """Pictures that the model made, as data URIs."""
    refusal: str = field(default="", repr=False)
    reasoning_key: str = "reasoning_content"
    """Where the provider takes ``reasoning`` back, as a member of an assistant's message."""

    @property
    def has_content(self) -> bool:
        """Whether it commits a stream."""
        return bool(self.content or self.reasoning or self.tool_calls or self.finish or self.images or self.refusal)


@define  # not frozen: as `Usage`
class Answer:
    """One complete, checked answer.

    Either ``body`` (in the format of the call's endpoint, its ``model`` already the target), or ``choices``
    (one Delta each, with its ``finish``), or ``vectors`` (one for each input).
    """

    body: bytes | None = field(default=None, repr=False)
    usage: Usage | None = None
    choices: tuple[Delta, ...] = ()
    vectors: Sequence[Sequence[float]] = field(default=(), repr=False)
    dimensions: int | None = None
    """Of embeddings: numbers in the first vector."""
    content_type: str = "application/json"
    """Of ``body``."""
    is_large: bool = False
    """To write it takes so long that others would feel it."""


@frozen
class StreamBatch:
    """What one read from the provider turned into: whole events only, in the order in which they came."""

    frames: bytes = field(default=b"", repr=False)
    """Complete events in the format of the call's endpoint, as they leave for the client."""
    deltas: tuple[Delta, ...] = ()
    """Where the door does not relay: what was said."""
    has_content: bool = False
    """Something in here commits: content, a tool call, a finish reason; not a role or an empty delta."""
    done: bool = False
    """The answer is complete; how a stream ends is for the door to write."""
    error: ProviderError | None = None
    """The provider ended the stream with an error, after ``frames`` and ``deltas``."""
    content_type: str = ""
    """Of the whole stream, where ``frames`` are a provider's own bytes of any kind; on the first batch."""
