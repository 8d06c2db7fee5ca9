"""OpenAI's own dialect, and that of everybody who speaks it: relayed, not rewritten.

A request keeps its bytes but for ``model`` and, where we count tokens, ``stream_options``. A reply keeps
its bytes but for ``model``, and for the usage chunk that only we asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from attrs import define, field

from manallm_proxy.contract.answers import Answer
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.json_object import BOM, encode
from manallm_proxy.openai.request import TOOLS, VISION, rewrite
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.model_list import read_list, words
from manallm_proxy.providers.openai.deltas import whole_deltas
from manallm_proxy.providers.openai.embeddings import embeddings_answer
from manallm_proxy.providers.openai.reply import (
    checked_choices,
    decoded,
    reply_object,
    set_model,
)
from manallm_proxy.providers.openai.sniffer import Sniffer
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from manallm_proxy.providers.wire import Request, Translator

STRICT_LIMIT: Final = 1000
"""Targets of one provider of which it is known that they refuse ``stream_options``; clients choose their names."""


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
        events = (EventRelay if call.relays else EventReader)(call, entry.target)
        return events if "event-stream" in content_type else Sniffer(events)

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
    meta: Any = None


def _listed(row: _Row) -> ModelInfo | None:
    if not row.id:
        return None
    return ModelInfo(
        row.id,
        row.created if type(row.created) is int else 0,
        _capabilities(row),
        tuple(sorted(words(row.aliases) or ())),
        _size(row.meta),
    )


def _size(meta: object) -> int:
    """llama-server lists the bytes of its file as ``meta.size``."""
    size = meta.get("size") if isinstance(meta, dict) else None
    return size if type(size) is int and size > 0 else 0


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
