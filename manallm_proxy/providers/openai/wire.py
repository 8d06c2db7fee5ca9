"""OpenAI's own dialect, and that of everybody who speaks it: relayed, not rewritten.

A request keeps its bytes but for ``model`` and, where we count tokens, ``stream_options``. A reply keeps
its bytes but for ``model``, and for the usage chunk that only we asked for. What the crowd does
differently is in wire.md C; the rules for reading it are C.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.errors import BadResponse, FirstByteTimeout, ProviderError
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.json_object import BOM, DecodeErrors, decode, encode
from manallm_proxy.openai.request import TOOLS, VISION, rewrite
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.openai.deltas import whole_deltas
from manallm_proxy.providers.openai.embeddings import embeddings_answer
from manallm_proxy.providers.openai.opaque import ByteRelay, opaque_answer, opaque_request
from manallm_proxy.providers.openai.reply import (
    checked_choices,
    decoded,
    reply_object,
    set_model,
)
from manallm_proxy.providers.openai.sniffer import Sniffer
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from manallm_proxy.providers.wire import Request, Translator


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent; cleared by a provider that refuses it."""

    asks_usage: bool = True
    probe_path: str = "models"
    first_byte_error: type[FirstByteTimeout] = FirstByteTimeout

    def request(self, call: Call, entry: Entry) -> Request:
        if call.endpoint.is_opaque:
            return opaque_request(call, entry)
        streams = call.summary.stream and call.endpoint is not Endpoint.EMBEDDINGS
        ask = self.asks_usage and streams and not call.summary.wants_usage
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model, ask_usage=ask))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        spoken = envelope(body)
        return classify(
            status,
            headers,
            spoken.message,
            kind=spoken.kind,
            code=spoken.code,
            param=spoken.param,
            retry_after=spoken.retry_after,
        )

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Mistral and other strict servers refuse ``stream_options``: then ours is not sent again (wire.md A.1).

        A model that does not think may refuse to be told not to (``reasoning_effort: none``, which Ollama's clients
        say by default): then it is not told.
        """
        if status not in (400, 422) or call.endpoint.is_opaque:
            return None
        if b"reasoning_effort" in body and not call.relays and _says_no_effort(call):
            return self._without_effort(call, entry)
        if b"stream_options" not in body or call.summary.wants_usage or not call.summary.stream:
            return None
        body = rewrite(call.summary, call.body, entry.target.model)
        return Request(call.endpoint.path, body, without="stream_options")

    def took(self, request: Request) -> None:
        if request.without == "stream_options":
            self.asks_usage = False

    def _without_effort(self, call: Call, entry: Entry) -> Request:
        fields = {**decode(call.body), "model": entry.target.model}
        del fields["reasoning_effort"]
        if self.asks_usage and call.summary.stream:
            fields["stream_options"] = {"include_usage": True}
        return Request(call.endpoint.path, encode(fields), without="reasoning_effort")

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint.is_opaque:
            return opaque_answer(body, content_type)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return embeddings_answer(call, entry, body)
        values, spans = reply_object(body, "model" if call.relays else None)
        rows = checked_choices(values, decode_always=not call.relays)
        usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
        if not call.relays:
            return Answer(usage=usage, choices=tuple(whole_deltas(rows)))
        return Answer(
            body=set_model(body, spans.get("model"), encode(str(entry.target))).removeprefix(BOM), usage=usage
        )

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        if call.endpoint.is_opaque:
            return ByteRelay(content_type)
        events = (EventRelay if call.relays else EventReader)(call, entry.target)
        return events if "event-stream" in content_type else Sniffer(events)

    def listed(self, body: bytes) -> tuple[ModelInfo, ...]:
        try:
            data = decode(body)
        except DecodeErrors:
            raise BadResponse("its list of models is not JSON", detail="model list") from None
        rows = data.get("data") if isinstance(data, dict) else data
        rows = rows if isinstance(rows, list) else ()
        return tuple(_listed(r) for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str))


def _says_no_effort(call: Call) -> bool:
    span = call.summary.spans.get("reasoning_effort")
    return span is not None and call.body[slice(*span)] == b'"none"'


def _listed(row: dict[str, Any]) -> ModelInfo:
    created = row.get("created")
    created = created if isinstance(created, int) else 0
    return ModelInfo(row["id"], created, _capabilities(row), _context_length(row))


def _context_length(row: dict[str, Any]) -> int:
    """As OpenRouter and Together, vLLM, Groq, LM Studio call it."""
    keys = ("context_length", "max_model_len", "context_window", "max_context_length")
    return next((n for key in keys if type(n := row.get(key)) is int and n > 0), 0)  # a bool is no number


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
