"""Checks complete answers of OpenAI-compatible servers before they are forwarded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Span
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently, decode_part, holds, replaced, split_object
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.providers.classify import in_band, parse_error
from manallm_proxy.providers.openai.chunks import ends_in_error

_LIST_BEGINS: Final = ord("[")
_BACKSLASH: Final = ord("\\")
"""As numbers, which Python finds in bytes in a seventh of the time."""
FRONT: Final = 1000
"""Bytes of an answer within which its model stands, or is not looked for in the short way."""
_ERROR: Final = re.compile(rb'error"')
_LIST: Final = re.compile(rb"\[\s{0,1000}[^\s\]]")
"""A list that is not empty."""
_EMPTY: Final = re.compile(rb"\s*\}")


def set_model(data: bytes, span: tuple[int, int] | None, model: bytes) -> bytes:
    """The JSON object `data` with its ``model`` (at `span`, None: it has none) as the JSON string `model`."""
    if span is not None and len(data) <= LARGE_BYTES:
        return data[: span[0]] + model + data[span[1] :]
    return replaced(data, [model_edit(data, span, model)])


def model_edit(data: bytes, span: tuple[int, int] | None, model: bytes) -> tuple[tuple[int, int], bytes]:
    """See `set_model`, for `replaced`."""
    if span is not None:
        return span, model
    brace = data.index(b"{") + 1
    comma = b"" if _EMPTY.match(data, brace) else b","
    return (brace, brace), b'"model":' + model + comma


def reply_object(body: bytes, last: str | None = None) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """As `split_object`, but raises BadResponse, since the provider is at fault."""
    try:
        return split_object(body, last)
    except InvalidRequest:
        detail = "empty body" if not body.strip() else "html" if body.lstrip()[:1] == b"<" else "not a JSON object"
        raise BadResponse(f"its answer is not what was asked for ({detail})", detail=detail) from None


class _Usual(msgspec.Struct):
    """The members of an answer that are examined."""

    model: msgspec.Raw
    choices: msgspec.Raw
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


_USUAL: Final = msgspec.json.Decoder(_Usual)


def usual_reply(body: bytes) -> tuple[dict[str, Any], tuple[int, int]] | None:
    """Fast path: the result of `reply_object`, and the position of the model; None if that is not easily found.

    Nearly all servers format answers so that one search finds the model. Duplicate keys are not noticed.
    """
    try:
        if not body.isascii():
            body.decode()
        reply = _USUAL.decode(body)
    except (*DecodeErrors, msgspec.ValidationError):
        return None
    span = span_of_model(body, bytes(reply.model))
    return ({"choices": reply.choices, "usage": reply.usage, "error": reply.error}, span) if span is not None else None


def span_of_model(body: bytes, model: bytes) -> tuple[int, int] | None:
    """Where the top level of the JSON object `body` has its `model`, if no escape, no list and no object is before it:
    then the first place that looks like it is it."""
    front, key, rest = body[:FRONT].partition(b'"model":')
    if not key or front.count(b"{") != 1 or _LIST_BEGINS in front or _BACKSLASH in front:
        return None
    start = len(front) + len(key) + rest.startswith(b" ")
    return (start, start + len(model)) if model[:1] == b'"' and body.startswith(model, start) else None


class _Said(msgspec.Struct, gc=False):
    """A message with only text. No door uses members that are not listed here."""

    content: str
    reasoning_content: Literal[""] | None = None
    reasoning: Literal[""] | None = None
    refusal: Literal[""] | None = None
    tool_calls: tuple[()] | None = None
    images: tuple[()] | None = None
    reasoning_details: tuple[()] | None = None
    annotations: tuple[()] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Said
    finish_reason: Literal["stop", "length"]
    text: Literal[""] | None = None
    logprobs: None = None
    error: None = None
    stop_reason: int | None = None
    matched_stop: int | None = None


class _Plain(msgspec.Struct, gc=False):
    """The members of an answer that are examined for translation."""

    choices: tuple[_Choice]
    usage: Any = None
    error: None = None


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_PLAIN_BYTES: Final = 64 * 1024
"""Max bytes of an answer that is decoded in one call."""


def plain_reply(body: bytes) -> tuple[Delta, Any] | None:
    """Fast path: the delta of an answer's only choice, and its ``usage``; None unless it is plain text, as most are.

    Its structure is validated while decoding, which takes a fifth of the time of the general path.
    """
    if len(body) > _PLAIN_BYTES:
        return None
    try:
        body.decode()
        reply = _PLAIN.decode(body)
    except (*DecodeErrors, msgspec.ValidationError):
        return None
    choice = reply.choices[0]
    return Delta(choice.message.content, finish=choice.finish_reason), reply.usage


def decoded(raw: Any) -> Any:
    """A part of an answer, decoded. Raises BadResponse: its syntax was checked, but a number may be out of range."""
    try:
        return decode_leniently(bytes(raw))
    except DecodeErrors:
        raise _unreadable() from None


def decoded_part(body: bytes, span: Span) -> Any:
    """As `decoded`, for the part at `span` of `body`; a large one is not copied."""
    try:
        return decode_part(body, span)
    except DecodeErrors:
        raise _unreadable() from None


def _unreadable() -> BadResponse:
    return BadResponse("its answer is not what was asked for (an unreadable value)", detail="broken JSON")


def checked_choices(
    values: Mapping[str, Any],
    *,
    decode_always: bool = True,
    large: bool = False,
    read: Callable[[], Any] | None = None,
) -> list[dict[str, Any]]:
    """The choices of a complete answer. Raises the error that it contains, and BadResponse without an answer.

    Unless `decode_always`, they are decoded only if something may be wrong; otherwise ``[]`` is returned.
    `read` decodes them without a copy.
    """
    refuse_error(values)
    raw = values.get("choices", b"null")
    if not decode_always and large and _LIST.match(raw) and not holds(raw, _ERROR):
        return []
    if read is None:
        raw = bytes(raw)
    if (raw[:1] if read is None else bytes(memoryview(raw)[:1])) != b"[":
        raise BadResponse("its answer has no 'choices'", detail="no choices")
    if not decode_always and read is None and raw.find(b'error"') < 0 and raw[1:].strip() != b"]":
        return []
    rows = [choice for choice in (decoded(raw) if read is None else read()) if isinstance(choice, dict)]
    for choice in rows:
        if is_error_value(choice.get("error")):  # OpenRouter, perhaps with partial content
            raise in_band(parse_error({"error": choice["error"]}))
        if ends_in_error(choice):
            raise BadResponse("it ended without an answer (finish_reason error)", detail="finish_reason error")
    if not rows:
        raise BadResponse("its answer has no choices", detail="no choices")
    return rows


def refuse_error(values: Mapping[str, Any]) -> None:
    """Raises the error inside of a 200; an empty one is ignored."""
    raw = bytes(values.get("error", b"null"))
    if raw not in (b"null", b"{}", b'""', b"false") and is_error_value(error := decoded(raw)):
        raise in_band(parse_error({"error": error}))
