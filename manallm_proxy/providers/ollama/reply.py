"""Decodes Ollama's answers: a line of a stream, a complete answer, vectors (ollama api/types.go at v0.33)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from manallm_proxy.contract.answers import Answer, AnswerLimits, Usage
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai import sliced
from manallm_proxy.openai.deferred_free import free_in_pieces
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.json_object import (
    BOM,
    DecodeErrors,
    decode_leniently,
    encode,
    encode_whole,
    replace_lone_surrogates,
    split_object,
)
from manallm_proxy.openai.usage import count
from manallm_proxy.openai.vectors import checked_vectors, number_of_inputs, read_vectors
from manallm_proxy.providers.answer_bounds import refuse_too_much, rows_of
from manallm_proxy.providers.ollama import errors as ollama_failure

LINE_LIMIT: Final = 16 << 20
"""Max bytes of one line of a stream, without its end."""


class Function(Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class ToolCalled(Struct):
    function: Function
    id: Any = ""


class _LargeFunction(Struct):
    name: str = ""
    arguments: Any = msgspec.field(default_factory=dict)


class _LargeCall(Struct):
    """A call in an answer that was decoded in slices: its arguments are an object already."""

    function: _LargeFunction
    id: Any = ""


class Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCalled] | None = None


class Reply(Struct):
    """A line of a stream, or a complete answer: api/types.go ChatResponse and GenerateResponse in one.

    Optional members are read leniently: servers that imitate Ollama send counters as null or 4.0.
    """

    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: Any = None
    prompt_eval_count: Any = 0
    eval_count: Any = 0
    load_duration: Any = 0
    prompt_eval_duration: Any = 0
    eval_duration: Any = 0
    logprobs: Any = None
    error: Any = None


class _Embedded(Struct):
    """api/types.go EmbedResponse."""

    embeddings: Sequence[Sequence[float]] | None = None
    prompt_eval_count: Any = 0
    load_duration: Any = 0
    error: Any = None


_T = TypeVar("_T", Reply, _Embedded)
_REPLY: Final = msgspec.json.Decoder(Reply)
_EMBEDDED: Final = msgspec.json.Decoder(_Embedded)
_VECTORS: Final = msgspec.json.Decoder(list[list[float]])


def read_line(line: bytes) -> Reply:
    """A line of a stream. Raises BadResponse if malformed, and the error that it may hold instead."""
    return _checked(_decoded, _REPLY, line)


def read_large_line(line: bytes, limits: AnswerLimits) -> Reply:
    """As `read_line`, for a large line, within `limits` of size and structure."""
    if len(line) > LINE_LIMIT:
        raise too_long()
    refuse_too_much(line, limits)
    return read_whole(line)


def too_long() -> BadResponse:
    return BadResponse(f"Ollama sent a line of more than {LINE_LIMIT >> 20} MiB", detail="line too long")


def read_whole(body: bytes) -> Reply:
    """A complete answer; see `read_line`."""
    return _read(_REPLY, body)


def _read(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    large = len(body) > sliced.LARGE_ELEMENTS and sliced.is_large(body)
    return _checked(_decoded_large if large else _decoded, decoder, body)


def _checked(
    decode: Callable[[msgspec.json.Decoder[_T], bytes], _T], decoder: msgspec.json.Decoder[_T], body: bytes
) -> _T:
    try:
        reply = decode(decoder, body)
    except DecodeErrors:
        raise BadResponse("Ollama's answer is not what its API promises", detail="not Ollama's JSON") from None
    if reply.error is not None and is_error_value(reply.error):
        raise ollama_failure.in_band(reply.error)
    return reply


def _decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:  # a lone surrogate is legal JSON, and becomes U+FFFD
        lenient = replace_lone_surrogates(body.removeprefix(BOM))
        if lenient == body:
            raise
        return decoder.decode(lenient)


def _decoded_large(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """The same in many short calls."""
    fields = decode_leniently(body)
    calls: list[Any] = []
    if isinstance(fields, dict) and isinstance(said := fields.get("message"), dict):
        calls = said.pop("tool_calls", None) or []
    found: _T = msgspec.convert(fields, decoder.type)
    if isinstance(found, Reply) and found.message is not None and calls:
        found.message.tool_calls = [
            ToolCalled(Function(call.function.name, msgspec.Raw(encode_whole(call.function.arguments))), call.id)
            for call in rows_of(_LargeCall, calls)
        ]
        free_in_pieces(calls)
    return found


def embeddings(call: Call, body: bytes) -> Answer:
    """One vector per input. Raises BadResponse otherwise."""
    reply = _read(_EMBEDDED, body) if not sliced.is_large(body) else _read_vectors(body)
    vectors = checked_vectors(reply.embeddings or [], number_of_inputs(call), "Ollama")
    usage = Usage(prompt=count(reply.prompt_eval_count), durations=(count(reply.load_duration), 0, 0))
    return Answer(usage=usage, vectors=vectors, dimensions=len(vectors[0]))


def _read_vectors(body: bytes) -> _Embedded:
    """The same in many short calls."""
    try:
        values, spans = split_object(body)
        span = spans.get("embeddings")
        rows = read_vectors(body, span, _VECTORS.decode) if span and body[span[0]] == 0x5B else []
    except (InvalidRequest, *DecodeErrors):
        raise BadResponse("Ollama's answer is not what its API promises", detail="not Ollama's JSON") from None
    rest = encode({key: values[key] for key in ("prompt_eval_count", "load_duration", "error") if key in values})
    reply = _read(_EMBEDDED, rest)
    reply.embeddings = rows
    return reply
