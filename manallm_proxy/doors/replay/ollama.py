"""Ollama's chat and generate: lines to one object, and one object to lines."""

from __future__ import annotations

from typing import Any, Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.doors.ollama.lines import one_line
from manallm_proxy.doors.replay.merging import joined, merge
from manallm_proxy.openai.json_object import decode

_WORDS: Final = ("message", "response", "thinking", "tool_calls", "logprobs")
"""Members of a line that add to the answer; all others concern only the line."""
_COMMON: Final = ("model", "created_at")


def to_stream(whole: bytes, with_usage: bool) -> bytes:
    """One line with all content, and the last one without any."""
    answer = decode(whole)
    said = {key: value for key, value in answer.items() if key in (*_COMMON, *_WORDS)}
    silent = {"message": {"role": "assistant", "content": ""}} if "message" in answer else {"response": ""}
    last = {**silent, **{key: value for key, value in answer.items() if key not in _WORDS}}
    return one_line({**said, "done": False}) + b"\n" + one_line(last) + b"\n"


def to_whole(stream: bytes, usage: Usage | None) -> bytes | None:
    """None if the last line is not the end of an answer."""
    said: dict[str, Any] = {}
    line: dict[str, Any] = {}
    for raw in stream.splitlines():
        line = decode(raw)
        merge(said, {key: value for key, value in line.items() if key in _WORDS})
    return one_line({**line, **joined(said)}) if line.get("done") else None
