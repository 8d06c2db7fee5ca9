"""OpenAI's own dialect, and that of everybody who speaks it: relayed, not rewritten.

A request keeps its bytes but for ``model`` and, where we count tokens, ``stream_options``. A reply keeps
its bytes but for ``model``, and for the usage chunk that only we asked for. What the crowd does
differently is in wire.md C; the rules for reading it are C.3.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from attrs import define

from manallm_proxy.contract.provider import Answer, Call, Endpoint, ModelInfo
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.compose import vector_text
from manallm_proxy.openai.schema import TOOLS, VISION, DecodeErrors, decode, encode, rewrite, usage_from_openai
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.openai.reply import (
    decoded,
    refuse_choice_error,
    refuse_error,
    reply_object,
    require_list,
    set_model,
)
from manallm_proxy.providers.openai.stream import EventRelay, Sniffer
from manallm_proxy.providers.wire import Request, Translator

_VECTOR_IS_TEXT: Final = re.compile(rb'"embedding"\s*:\s*"')


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent; cleared by a provider that refuses it."""

    asks_usage: bool = True
    probe_path: str = "models"

    def request(self, call: Call, entry: Entry) -> Request:
        streams = call.summary.stream and call.endpoint is not Endpoint.EMBEDDINGS
        ask = self.asks_usage and streams and not call.summary.wants_usage
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model, ask_usage=ask))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return classify(status, headers, envelope(body))

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Mistral and other strict servers refuse ``stream_options``: then ours is not sent again (wire.md A.1)."""
        if (
            status not in (400, 422)
            or b"stream_options" not in body
            or call.summary.wants_usage
            or not call.summary.stream
        ):
            return None
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model))

    def took(self, request: Request) -> None:
        self.asks_usage = False

    def answer(self, call: Call, entry: Entry, body: bytes) -> Answer:
        values, spans = reply_object(body, None if call.endpoint is Endpoint.EMBEDDINGS else "model")
        refuse_error(values)
        if call.endpoint is Endpoint.EMBEDDINGS:
            require_list(values, "data")
            body = _embeddings_as_asked(call, body, values, spans)
            spans = reply_object(body)[1]
        else:
            require_list(values, "choices")
            if b'"error"' in bytes(values["choices"]):
                refuse_choice_error(decoded(values["choices"]))
        usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
        return Answer(set_model(body, spans.get("model"), encode(str(entry.target))), usage)

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        relay = EventRelay(call, entry.target)
        return relay if "event-stream" in content_type else Sniffer(call, entry.target, relay)

    def listed(self, body: bytes) -> tuple[ModelInfo, ...]:
        try:
            data = decode(body)
        except DecodeErrors:
            raise BadResponse("its list of models is not JSON", detail="model list") from None
        rows = data.get("data") if isinstance(data, dict) else data
        rows = rows if isinstance(rows, list) else ()
        return tuple(_listed(r) for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str))


def _listed(row: dict[str, Any]) -> ModelInfo:
    created = row.get("created")
    return ModelInfo(row["id"], created if isinstance(created, int) else 0, _capabilities(row))


def _capabilities(row: dict[str, Any]) -> frozenset[str] | None:
    """OpenRouter tells parameters and modalities; it says nothing of embeddings, so those are not denied."""
    parameters, architecture = row.get("supported_parameters"), row.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    if not isinstance(parameters, list) or not isinstance(modalities, list):
        return None
    has = {"completion", "embedding"}
    has |= {TOOLS} if "tools" in parameters else set()
    has |= {VISION} if "image" in modalities else set()
    return frozenset(has)


def _embeddings_as_asked(
    call: Call, body: bytes, values: Mapping[str, Any], spans: dict[str, tuple[int, int]]
) -> bytes:
    """base64 exactly when it was asked for: Node's SDK 6 reads floats as garbage then (wire.md A.5)."""
    raw = bytes(values["data"])
    span = call.summary.spans.get("encoding_format")
    asked = span is not None and call.body[span[0] : span[1]] == b'"base64"'
    if asked == bool(_VECTOR_IS_TEXT.search(raw)):
        return body
    try:
        rows = decode(raw)
        for row in rows:
            row["embedding"] = _pack(row["embedding"]) if asked else _unpack(row["embedding"])
    except (*DecodeErrors, TypeError, KeyError, ValueError, OverflowError, struct.error):
        raise BadResponse("its embeddings are not vectors", detail="embeddings") from None
    start, end = spans["data"]
    return body[:start] + encode(rows) + body[end:]


def _pack(vector: object) -> str:
    if not isinstance(vector, list):
        raise TypeError
    return vector_text(vector)


def _unpack(text: str) -> list[float]:
    raw = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))
