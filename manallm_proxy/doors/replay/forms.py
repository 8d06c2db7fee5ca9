"""Converts a door's whole answers to streams and back, so that one cached answer serves both kinds of request.

Pure functions of the bytes that a door writes; ids and times are part of them, and so stay unchanged.
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
"""Exceptions from reading a provider's bytes that the relay did not need to parse."""


def _never_streamed(whole: bytes, with_usage: bool) -> bytes:
    return whole


def _never_whole(stream: bytes, usage: Usage | None) -> bytes | None:
    return None


def _any(whole: bytes) -> bool:
    return True


@frozen
class Replay:
    """The conversions of one door. Answers that it cannot read are not cached, or not converted."""

    _to_stream: Callable[[bytes, bool], bytes] = _never_streamed
    _to_whole: Callable[[bytes, Usage | None], bytes | None] = _never_whole
    _is_success: Callable[[bytes], bool] = _any

    def to_stream(self, whole: bytes, with_usage: bool) -> bytes | None:
        """The stream for a whole answer; `with_usage`: whether it ends with the usage, if the format leaves the choice.

        None if it cannot be converted.
        """
        try:
            return self._to_stream(whole, with_usage)
        except _UNREADABLE:
            return None

    def to_whole(self, stream: bytes, usage: Usage | None) -> bytes | None:
        """The whole answer for a complete stream; None if it may not be cached."""
        try:
            return self._to_whole(stream, usage)
        except _UNREADABLE:
            return None

    def is_success(self, whole: bytes) -> bool:
        """Whether a whole answer may be cached."""
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
"""By `Door.name`. Answers of other doors are not cached."""
