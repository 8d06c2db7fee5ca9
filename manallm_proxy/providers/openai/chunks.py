"""Reads one event of an OpenAI-compatible stream, in any form that servers use.

Errors come as ``data: {"error": {...}}``, as ``{"error": "text"}``, under ``event: error`` with the words at the top
level (OpenRouter, vLLM), as a field ``error:`` (llama.cpp before September 2025) or inside Groq's ``x_groq``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai import sse
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.providers.classify import ErrorDetails, envelope, in_band, parse_error

KEEP_ALIVES: Final = frozenset({b"", b"null", b"{}"})
"""Data of events without content (llama.cpp begins a stream of two prompts with ``null``)."""
_LONGEST: Final = max(map(len, KEEP_ALIVES))


def is_keep_alive(data: bytes) -> bool:
    """Whether `data` is one of `KEEP_ALIVES`. Long data is not hashed for that."""
    return len(said := data.strip()) <= _LONGEST and said in KEEP_ALIVES


def refuse_odd_fields(frame: sse.Frame) -> None:
    """Raises the error in a field ``error:``, and BadResponse for lines that are no events, which SDKs skip."""
    if b"error" in frame.fields:
        raise in_band(envelope(frame.raw.partition(b"error:")[2]))
    if frame.data is None and any(name[:1] in (b"{", b"<") for name in frame.fields):
        details = envelope(frame.raw)
        if details.message:
            raise in_band(details)
        raise BadResponse("its stream is none", detail="not an event stream")


def read_chunk(frame: sse.Frame) -> dict[str, Any] | None:
    """The chunk in `frame`; None if it is JSON, but no object. Raises ValueError if it is no JSON."""
    assert frame.data is not None
    try:
        chunk = decode_leniently(frame.data)
    except DecodeErrors:
        raise ValueError("no JSON") from None
    return chunk if isinstance(chunk, dict) else None


def refuse_error(frame: sse.Frame) -> None:
    """Raises the error in `frame`, if any: the word "error" may only be part of a text, or its value may be empty."""
    data = frame.data or b""
    try:
        chunk = decode_leniently(data)
    except DecodeErrors:
        if frame.event == b"error":
            raise in_band(ErrorDetails(message=data.decode(errors="replace"))) from None
        return
    if not isinstance(chunk, dict):
        if frame.event == b"error":
            raise in_band(parse_error({"error": chunk}))
        return
    groq = chunk.get("x_groq")
    error = chunk.get("error") or (groq.get("error") if isinstance(groq, dict) else None)
    if is_error_value(error):
        raise in_band(parse_error({"error": error}))
    if frame.event == b"error" or chunk.get("error_type") or chunk.get("error_message"):
        raise in_band(parse_error(chunk))


def choices_of(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a chunk, as far as they are objects."""
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def index_of(choice: dict[str, Any]) -> int:
    """The index of a choice in its answer; 0 if it has none."""
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def has_content(choice: dict[str, Any], *, words: bool = False) -> bool:
    """Whether a choice holds more than a role: content, reasoning, a tool call, audio, text, a finish reason.

    `words`: a finish reason alone does not count, except ``content_filter``.
    """
    finish = choice.get("finish_reason")
    if choice.get("text") or (finish == "content_filter" if words else finish):
        return True
    return _says_more(choice.get("delta"))


def _says_more(delta: object) -> bool:
    """Whether it has anything beside a role."""
    if isinstance(delta, dict):
        for key, value in delta.items():
            if value and key != "role":
                return True
    return False


def ends_in_error(choice: dict[str, Any]) -> bool:
    """Whether a choice has ``finish_reason: error`` and no content."""
    if not has_error_finish(choice) or choice.get("text"):
        return False
    return not _says_more(choice.get("delta", choice.get("message")))


def has_error_finish(choice: dict[str, Any]) -> bool:
    """Whether a choice has ``finish_reason: error``, with or without content."""
    return choice.get("finish_reason") == "error"


def usage_of(chunk: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Usage | None:
    """The usage in a chunk, also in Groq's own place for it, and in Kimi's: one of `rows`, the chunk's choices."""
    usage = chunk.get("usage")
    if usage is None and isinstance(groq := chunk.get("x_groq"), dict):
        usage = groq.get("usage")
    if usage is None:
        for row in rows:
            if "usage" in row:
                return usage_from_openai(row["usage"])
    return usage_from_openai(usage)


def merged(known: Usage | None, new: Usage | None) -> Usage | None:
    """The maximum of each counter: counters grow along a stream, and a late object may hold only some of them."""
    if known is None or new is None:
        return new or known
    return Usage(
        prompt=max(known.prompt, new.prompt),
        completion=max(known.completion, new.completion),
        reasoning=max(known.reasoning, new.reasoning),
        cached=max(known.cached, new.cached),
        written=max(known.written, new.written),
    )
