"""Embedding vectors: encoded for OpenAI's clients, and checked when a provider returns them."""

from __future__ import annotations

import base64
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.openai import sliced
from manallm_proxy.openai.json_object import replace_lone_surrogates

FLOAT32_LARGEST: Final = 3.4028234663852886e38
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_VECTOR: Final = re.compile(rb'"embedding"\s*:\s*(?:\[([^\]]*)\]|"([^"]*)")')


def number_of_inputs(call: Call) -> int:
    """Number of vectors that an embeddings request asks for: one per item of a list of texts or of lists of token ids,
    one for a text or a list of ids."""
    start, end = call.summary.spans["input"]
    text = call.body[start:end]
    if text[:1] != b"[":
        return 1
    try:
        inputs = _LIST.decode(text)
    except msgspec.DecodeError:
        inputs = _LIST.decode(replace_lone_surrogates(text))
    return len(inputs) if not inputs or memoryview(inputs[0])[:1].tobytes() in (b'"', b"[") else 1


def vector_text(vector: Sequence[float]) -> str:
    """A vector as base64 of little-endian float32, which all of OpenAI's SDKs decode."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def read_vectors(
    body: bytes, span: tuple[int, int], read: Callable[[bytes], Iterable[Sequence[float]]]
) -> list[Sequence[float]]:
    """The vectors of the list at `span` in `body`; `read` decodes several members at a time, as a list.

    Raises DecodeError, and what `read` raises. Takes 8 bytes per number; a list would take 32.
    """
    found: list[Sequence[float]] = []
    for start, end in sliced.members(body, *span):
        found += [array("d", vector) for vector in read(b"[%b]" % body[start:end])]
    return found


def checked_vectors(vectors: Sequence[Sequence[float]], wanted: int, name: str) -> Sequence[Sequence[float]]:
    """`vectors`, one for each of `wanted` inputs.

    Raises BadResponse if their number differs, one is empty, or a value overflows float32.
    """
    if len(vectors) != wanted or not all(vectors):
        raise BadResponse(f"{name} gave {len(vectors)} vectors for {wanted} inputs", detail="wrong number of vectors")
    if any(max(vector) > FLOAT32_LARGEST or min(vector) < -FLOAT32_LARGEST for vector in vectors):
        raise BadResponse(f"{name} gave numbers that are no float32", detail="not float32")
    return vectors


def vector_length(body: bytes) -> int | None:
    """Length of the first vector in the body of an embeddings answer, floats or base64; None if there is none."""
    match = _VECTOR.search(body)
    if match is None:
        return None
    if match[1] is not None:
        return match[1].count(b",") + 1 if match[1].strip() else 0
    return len(match[2].rstrip(b"=")) * 3 // 4 // 4
