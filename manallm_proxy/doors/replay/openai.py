"""Chat completions and legacy completions: chunks to one object, and one object to chunks."""

from __future__ import annotations

import re
from typing import Any, Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import frozen
from manallm_proxy.doors.replay.merging import joined, merge
from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import decode_leniently, encode
from manallm_proxy.openai.usage import usage_to_openai

_FAILED: Final = re.compile(rb'"finish_reason"\s*:\s*"error"')
"""Cannot be part of a text, since quotes are escaped there."""
_APART: Final = frozenset({"object", "choices", "usage", "error"})
"""An error that a good answer has is an empty one, which SDKs raise in a chunk all the same."""


@frozen
class Kind:
    """One of the two endpoints: its objects, and the member that holds a choice's text."""

    whole: str
    chunk: str
    is_chat: bool


CHAT: Final = Kind("chat.completion", "chat.completion.chunk", True)
COMPLETIONS: Final = Kind("text_completion", "text_completion", False)


def is_success(whole: bytes) -> bool:
    """False if a choice ended with an error."""
    return _FAILED.search(whole) is None


def to_stream(kind: Kind, whole: bytes, with_usage: bool) -> bytes:
    """Two chunks per choice: its content, and its finish reason."""
    answer = decode_leniently(whole)
    common = {key: value for key, value in answer.items() if key not in _APART} | {"object": kind.chunk}
    frames = [_chunk(common, step) for choice in answer.get("choices") or () for step in _steps(kind, choice)]
    if with_usage and answer.get("usage") is not None:
        frames.append(sse.event(encode({**common, "choices": [], "usage": answer["usage"]})))
    return b"".join((*frames, sse.DONE))


def _chunk(common: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return sse.event(encode({**common, "choices": [choice]}))


def _steps(kind: Kind, choice: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    index = choice.get("index", 0)
    end = {"index": index, "finish_reason": choice.get("finish_reason")}
    if not kind.is_chat:
        return {**choice, "finish_reason": None}, {**end, "text": ""}
    said = {key: value for key, value in choice.items() if key not in ("message", "finish_reason")}
    return {**said, "index": index, "delta": _delta(choice.get("message") or {}), "finish_reason": None}, {
        **end,
        "delta": {},
    }


def _delta(message: dict[str, Any]) -> dict[str, Any]:
    delta = {key: value for key, value in message.items() if value is not None}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [{**call, "index": n} for n, call in enumerate(calls)]
    return {"role": "assistant", "content": "", **delta}


def to_whole(kind: Kind, stream: bytes, usage: Usage | None) -> bytes | None:
    """None if a choice ended with an error, or not at all."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for frame in sse.whole_frames(stream):
        chunk = None if frame.data in (None, b"[DONE]") else decode_leniently(frame.data or b"")
        if not isinstance(chunk, dict):
            continue
        answer |= {key: value for key, value in chunk.items() if key not in _APART and value is not None}
        if chunk.get("usage"):
            answer["usage"] = chunk["usage"]
        for choice in chunk.get("choices") or ():
            merge(choices.setdefault(choice.get("index", 0), {}), choice)
    choices = joined(choices)
    if not choices or any(choice.get("finish_reason") in (None, "error") for choice in choices.values()):
        return None
    rows = [_whole_choice(kind, {**choice, "index": index}) for index, choice in sorted(choices.items())]
    counted = answer.get("usage") or usage_to_openai(usage or Usage())
    return encode({**answer, "object": kind.whole, "choices": rows, "usage": counted})


def _whole_choice(kind: Kind, choice: dict[str, Any]) -> dict[str, Any]:
    if not kind.is_chat:
        return choice
    delta = choice.pop("delta", None) or {}
    message = {"role": "assistant", "content": None, **delta}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
        message["content"] = message["content"] or None
    return {**choice, "message": message}
