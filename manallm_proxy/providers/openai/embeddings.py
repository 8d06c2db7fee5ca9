"""Embeddings of an OpenAI-compatible server: relayed in the requested encoding, or read into vectors."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai import sliced
from manallm_proxy.openai.json_object import DecodeErrors, decode, encode, replaced
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.openai.vectors import checked_vectors, number_of_inputs, read_vectors, vector_length, vector_text
from manallm_proxy.providers.openai.reply import decoded, model_edit, refuse_error, reply_object
from manallm_proxy.providers.openai.vector_rows import large_rows

_VECTOR: Final = re.compile(rb'"embedding"\s*:\s*(["\[])')


def embeddings_answer(call: Call, entry: Entry, body: bytes) -> Answer:
    """The answer. Raises BadResponse if there are fewer vectors than inputs."""
    if call.relays and len(body) > sliced.LARGE_BYTES and (answer := _relayed(call, entry, body)) is not None:
        return answer
    values, spans = reply_object(body)
    refuse_error(values)
    start, end = spans.get("data", (0, 0))
    if body[start : start + 1] != b"[":
        raise BadResponse("its answer has no 'data'", detail="no data")
    usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
    kinds = [kind for rows in _some_rows(body, start, end) for kind in _VECTOR.findall(rows)]
    wanted = max(number_of_inputs(call), 1)
    if len(kinds) < wanted:
        raise BadResponse(f"it gave {len(kinds)} vectors for {wanted} inputs", detail="wrong number of vectors")
    if not call.relays:
        vectors = checked_vectors(_all_vectors(body, start, end), wanted, "the provider")
        return Answer(usage=usage, vectors=vectors, dimensions=len(vectors[0]))
    as_base64 = _wants_base64(call)
    edits: list[tuple[tuple[int, int], bytes]] = []
    if as_base64 != (kinds[0] == b'"'):
        at = start + 1
        pieces = (_reencoded(rows, as_base64=as_base64) for rows in _some_rows(body, start, end))
        edits += [((at, at), b"," + piece) for piece in pieces]  # joining them here would block the loop
        edits[0] = edits[0][0], edits[0][1][1:]
        edits.append(((at, end - 1), b""))
    edits.append(model_edit(body, spans.get("model"), encode(str(entry.target))))
    body = replaced(body, edits)
    return Answer(body=body, usage=usage, dimensions=vector_length(body))


def _relayed(call: Call, entry: Entry, body: bytes) -> Answer | None:
    """A large answer in the requested encoding, unchanged but for its model; None: `embeddings_answer` handles it."""
    rows = large_rows(body)
    if rows is None or rows.packed != _wants_base64(call) or rows.number < number_of_inputs(call):
        return None
    values, spans = reply_object(rows.left)
    if spans.get("data") != (rows.start, rows.start + 1):
        return None
    refuse_error(values)
    usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
    (start, end), model = model_edit(rows.left, spans.get("model"), encode(str(entry.target)))
    if start > rows.start:
        start, end = (at + len(body) - len(rows.left) for at in (start, end))
    return Answer(body=replaced(body, [((start, end), model)]), usage=usage, dimensions=vector_length(body))


def _wants_base64(call: Call) -> bool:
    span = call.summary.spans.get("encoding_format")
    return span is not None and call.body[span[0] : span[1]] == b'"base64"'


def _some_rows(body: bytes, start: int, end: int) -> Iterator[bytes]:
    """The rows of the list at `start`, in one list, or in several if there are many."""
    if end - start <= sliced.LARGE_BYTES:
        yield body[start:end]
        return
    for a, b in sliced.members(body, start, end):
        yield b"[%b]" % body[a:b]


def _all_vectors(body: bytes, start: int, end: int) -> Sequence[Sequence[float]]:
    if end - start <= sliced.LARGE_BYTES:
        return _vectors(body[start:end])
    return read_vectors(body, (start, end), _vectors)


def _reencoded(raw: bytes, *, as_base64: bool) -> bytes:
    """The rows without brackets, re-encoded. base64 exactly if requested: openai-node 6 mistakes floats for bytes."""
    rows = _rows(raw)
    for row, vector in zip(rows, _vectors(raw), strict=True):
        row["embedding"] = vector_text(vector) if as_base64 else vector
    return encode(rows)[1:-1]


def _rows(raw: bytes) -> list[dict[str, Any]]:
    try:
        rows = decode(raw, type=list[dict[str, Any]])
    except DecodeErrors:
        raise _no_vectors() from None
    return rows


def _vectors(raw: bytes) -> list[list[float]]:
    try:
        return [_unpacked(row["embedding"]) for row in _rows(raw)]
    except (TypeError, KeyError, ValueError, OverflowError, struct.error):
        raise _no_vectors() from None


def _unpacked(vector: object) -> list[float]:
    if isinstance(vector, str):
        packed = base64.b64decode(vector, validate=True)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    if not isinstance(vector, list) or not all(isinstance(number, int | float) for number in vector):
        raise TypeError
    struct.pack(f"<{len(vector)}f", *vector)  # float32 or OverflowError
    return vector


def _no_vectors() -> BadResponse:
    return BadResponse("its embeddings are not vectors", detail="embeddings")
