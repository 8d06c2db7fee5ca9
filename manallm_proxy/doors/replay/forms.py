"""By door: how its whole answers become streams, and its streams whole answers, so that one kept answer serves both.

Pure functions of the bytes that a door writes: ids and times are part of them, and so stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.records import frozen
from manallm_proxy.doors.replay import messages, ollama, openai, responses
from manallm_proxy.openai.json_object import DecodeErrors

_UNREADABLE: Final = (*DecodeErrors, TypeError, KeyError, AttributeError, ValueError)
"""What comes of reading bytes that a provider sent, and that the relay had no reason to read."""


def _never_streamed(whole: bytes, with_usage: bool) -> bytes:
    return whole


def _never_whole(stream: bytes, usage: Usage | None) -> bytes | None:
    return None


def _any(whole: bytes) -> bool:
    return True


@frozen
class Replay:
    """One door's. What it cannot read is not kept, or not given in the other form."""

    _to_stream: Callable[[bytes, bool], bytes] = _never_streamed
    _to_whole: Callable[[bytes, Usage | None], bytes | None] = _never_whole
    _is_success: Callable[[bytes], bool] = _any

    def to_stream(self, whole: bytes, with_usage: bool) -> bytes | None:
        """A stream that says what the whole answer does; the flag: whether it ends with the usage, where that is asked.

        None where that cannot be done.
        """
        try:
            return self._to_stream(whole, with_usage)
        except _UNREADABLE:
            return None

    def to_whole(self, stream: bytes, usage: Usage | None) -> bytes | None:
        """The whole answer that a complete stream says; None where it is none that may be kept."""
        try:
            return self._to_whole(stream, usage)
        except _UNREADABLE:
            return None

    def is_success(self, whole: bytes) -> bool:
        """Whether a whole answer is one that may be kept."""
        try:
            return self._is_success(whole)
        except _UNREADABLE:
            return False


REPLAYS: Final[Mapping[str, Replay]] = {
    Endpoint.CHAT.path: Replay(
        partial(openai.to_stream, openai.CHAT), partial(openai.to_whole, openai.CHAT), openai.is_success
    ),
    Endpoint.COMPLETIONS.path: Replay(
        partial(openai.to_stream, openai.COMPLETIONS), partial(openai.to_whole, openai.COMPLETIONS), openai.is_success
    ),
    Endpoint.EMBEDDINGS.path: Replay(),
    "messages": Replay(messages.to_stream, messages.to_whole),
    "responses": Replay(responses.to_stream, responses.to_whole, responses.is_success),
    "api/chat": Replay(ollama.to_stream, ollama.to_whole),
    "api/generate": Replay(ollama.to_stream, ollama.to_whole),
    "api/embed": Replay(),
}
"""By `Door.name`. Answers of other doors are not kept."""
