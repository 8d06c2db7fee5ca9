"""OpenAI's own dialect, and that of everybody who speaks it: relayed, not rewritten.

A request keeps its bytes but for ``model`` and, where we count tokens, ``stream_options``. A reply keeps
its bytes but for ``model``, and for the usage chunk that only we asked for.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from attrs import define, field

from manallm_proxy.contract.provider import Answer, Call, Endpoint, ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.compose import vector_text
from manallm_proxy.openai.schema import TOOLS, VISION, DecodeErrors, decode, encode, rewrite, usage_from_openai
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.model_list import read_list, words
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

STRICT_LIMIT: Final = 1000
"""Targets of one provider of which it is known that they refuse ``stream_options``; clients choose their names."""
_VECTOR_IS_TEXT: Final = re.compile(rb'"embedding"\s*:\s*"')


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent to anybody."""

    asks_usage: bool = True
    probe_path: str = "models"
    _strict: dict[str, None] = field(factory=dict)
    """Models that refused it, the oldest first: another of the same aggregator may know it."""

    def request(self, call: Call, entry: Entry) -> Request:
        streams = call.summary.stream and call.endpoint is not Endpoint.EMBEDDINGS
        may_ask = self.asks_usage and entry.target.model not in self._strict
        ask = may_ask and streams and not call.summary.wants_usage
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model, ask_usage=ask))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return classify(status, headers, envelope(body))

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Mistral and other strict servers refuse ``stream_options``: then ours is not sent again to that target."""
        if (
            status not in (400, 422)
            or b"stream_options" not in body
            or call.summary.wants_usage
            or not call.summary.stream
        ):
            return None
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model))

    def took(self, entry: Entry) -> bool:
        model = entry.target.model
        if model in self._strict:
            return False
        if len(self._strict) >= STRICT_LIMIT:
            del self._strict[next(iter(self._strict))]
        self._strict[model] = None
        return True

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

    def listed(self, body: bytes) -> ModelList:
        return read_list(body, "data", _Row, _listed)


class _Row(msgspec.Struct):
    """One model of a list, as far as anybody says more than its id."""

    id: str = ""
    created: Any = None
    aliases: Any = None
    supported_parameters: Any = None
    architecture: Any = None
    status: Any = None


def _listed(row: _Row) -> ModelInfo | None:
    if not row.id:
        return None
    return ModelInfo(
        row.id,
        row.created if type(row.created) is int else 0,
        _capabilities(row),
        tuple(sorted(words(row.aliases) or ())),
    )


def _capabilities(row: _Row) -> frozenset[str] | None:
    """OpenRouter lists parameters and modalities, llama-server modalities. What neither speaks of is not denied.

    llama-server's router says "text" of each model that it has not loaded, which may see images all the same.
    """
    parameters = words(row.supported_parameters)
    modalities = words(row.architecture.get("input_modalities")) if isinstance(row.architecture, dict) else None
    if isinstance(row.status, dict) and row.status.get("value") != "loaded":
        modalities = None
    if parameters is None and modalities is None:
        return None
    has = {"completion", "embedding"}
    if parameters is None or "tools" in parameters:
        has.add(TOOLS)
    if parameters is not None and parameters & {"reasoning", "reasoning_effort"}:
        has.add("thinking")
    if modalities is None or "image" in modalities:
        has.add(VISION)
    if modalities is not None and "audio" in modalities:
        has.add("audio")
    return frozenset(has)


def _embeddings_as_asked(
    call: Call, body: bytes, values: Mapping[str, Any], spans: dict[str, tuple[int, int]]
) -> bytes:
    """base64 exactly when it was asked for: openai-node 6.49 reads floats as garbage then."""
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
