"""Gemini's embeddings, read into vectors (ai.google.dev/api/embeddings)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai import sliced
from manallm_proxy.openai.json_object import DecodeErrors, encode, split_object
from manallm_proxy.openai.request_fields import decoded
from manallm_proxy.openai.vectors import checked_vectors, read_vectors
from manallm_proxy.providers.gemini.reply import Embedded, Vector, read_json, usage_of

_VECTORS: Final = msgspec.json.Decoder(list[Vector])
_EMBEDDED: Final[msgspec.json.Decoder[Embedded | list[Embedded]]] = msgspec.json.Decoder(Embedded | list[Embedded])


def embeddings(call: Call, model: str, body: bytes) -> Answer:
    """One vector for each input; raises BadResponse otherwise. Usage is zero if Gemini does not count it."""
    reply, vectors = _read_vectors(body) if sliced.is_large(body) else _vectors_of(read_json(_EMBEDDED, body))
    asked = decoded(call.body)  # `request` has checked it
    wanted = len(asked["input"]) if isinstance(asked["input"], list) else 1
    vectors = checked_vectors(vectors, wanted, "Gemini")
    if asked.get("dimensions") is not None and model.endswith("gemini-embedding-001"):
        vectors = [_unit(vector) for vector in vectors]  # that model does not normalise shortened vectors
    return Answer(usage=usage_of(reply.usage_metadata) or Usage(), vectors=vectors, dimensions=len(vectors[0]))


def _vectors_of(reply: Embedded) -> tuple[Embedded, Sequence[Sequence[float]]]:
    return reply, [found.values or [] for found in reply.embeddings or ()]


def _read_vectors(body: bytes) -> tuple[Embedded, Sequence[Sequence[float]]]:
    """`_vectors_of` a large body, in many short calls."""
    try:
        values, spans = split_object(body)
        span = spans.get("embeddings")
        rows = read_vectors(body, span, _rows) if span and body[span[0]] == 0x5B else []
    except (InvalidRequest, *DecodeErrors):
        raise BadResponse("Gemini's answer is not what its API promises", detail="not Gemini's JSON") from None
    return read_json(_EMBEDDED, encode({key: value for key, value in values.items() if key != "embeddings"})), rows


def _rows(text: bytes) -> list[list[float]]:
    return [found.values or [] for found in _VECTORS.decode(text)]


def _unit(vector: Any) -> list[float]:
    """`vector` scaled to length 1."""
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector
