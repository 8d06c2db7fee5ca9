"""The dialect of OpenAI and of all compatible servers: bytes are relayed, not rewritten.

A request keeps its bytes except for ``model`` and, if we count tokens, ``stream_options``. A reply keeps its bytes
except for ``model``, and for the usage chunk that only we requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from attrs import evolve, field

from manallm_proxy.contract.answers import DEFAULT_LIMITS, Answer, AnswerLimits
from manallm_proxy.contract.provider import VISION, Call, Endpoint, ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.forced_call import as_structured_output, is_forced
from manallm_proxy.openai.json_object import BOM, encode
from manallm_proxy.openai.request import TOOLS, rewrite
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.providers.classify import classify, envelope
from manallm_proxy.providers.forced import ForcedTranslator, read_forced_calls
from manallm_proxy.providers.mending.learned import Learned
from manallm_proxy.providers.mending.mends import CONTRARY, USAGE, accepted, may_change, mended
from manallm_proxy.providers.mending.turns import ORDERS, in_order
from manallm_proxy.providers.model_list import read_list, words
from manallm_proxy.providers.named_calls import require_names
from manallm_proxy.providers.openai.chunks import has_error_finish
from manallm_proxy.providers.openai.deltas import whole_deltas
from manallm_proxy.providers.openai.embeddings import embeddings_answer
from manallm_proxy.providers.openai.opaque import ByteRelay, opaque_answer, opaque_request
from manallm_proxy.providers.openai.reply import (
    checked_choices,
    decoded,
    decoded_part,
    plain_reply,
    reply_object,
    set_model,
    usual_reply,
)
from manallm_proxy.providers.openai.stream import EventReader, EventRelay
from manallm_proxy.providers.sniffer import Sniffer
from manallm_proxy.providers.wire import Request, Translator


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent at all.

    `forces_tools`: whether a tool that must be called is asked for as structured output (see `forced_call`).
    """

    asks_usage: bool = True
    forces_tools: bool = False
    probe_path: str = "models"
    _learned: Learned = field(factory=partial(Learned, CONTRARY))

    def splices(self, call: Call) -> bool:
        learned = self._learned.of_any
        return not (self._forces(call) or (learned and may_change(call, learned)))

    def request(self, call: Call, entry: Entry) -> Request:
        if call.endpoint.is_opaque:
            return opaque_request(call, entry)
        if (known := self._learned.by_model) and (refused := known.get(entry.target.model)):
            call = accepted(call, refused)
        return self._chat_request(call, entry)

    def _chat_request(self, call: Call, entry: Entry) -> Request:
        if self._forces(call):
            model = entry.target.model
            orders = ORDERS.keys() & (call.denied | self._learned.of(model))
            arranged = partial(in_order, refused=orders)
            return Request(call.endpoint.path, as_structured_output(call, model, self._may_ask(call, entry), arranged))
        streams = call.summary.stream and call.endpoint is not Endpoint.EMBEDDINGS
        ask = streams and not call.summary.wants_usage and self._may_ask(call, entry)
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model, ask_usage=ask))

    def _may_ask(self, call: Call, entry: Entry) -> bool:
        return self.asks_usage and USAGE not in call.denied and USAGE not in self._learned.of(entry.target.model)

    def _forces(self, call: Call) -> bool:
        return self.forces_tools and call.endpoint is Endpoint.CHAT and is_forced(call)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return classify(status, headers, envelope(body))

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """See `mends.MENDS`."""
        if call.endpoint.is_opaque:
            return None
        known = self._learned.of(entry.target.model)
        again = mended(call, known, status, body, is_forced=self._forces(call))
        if again is None:
            return None
        return evolve(self._chat_request(again.call, entry), call=again.call, refused=again.refused)

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        return USAGE in self._learned.learn(entry.target.model, request.refused)

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint.is_opaque:
            return opaque_answer(body, content_type)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return embeddings_answer(call, entry, body)
        if self._forces(call):
            return _whole_call(body)
        if not call.relays:
            return _whole(body)
        model = encode(str(entry.target))
        if len(body) <= LARGE_BYTES and (usual := usual_reply(body)) is not None:
            values, span = usual
            checked_choices(values, decode_always=False)
            usage = usage_from_openai(decoded(values["usage"]))
            return Answer(body=body[: span[0]] + model + body[span[1] :], usage=usage)
        values, spans = reply_object(body, "model")
        checked_choices(values, decode_always=False, large=len(body) > LARGE_BYTES)
        usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
        return Answer(body=set_model(body, spans.get("model"), model).removeprefix(BOM), usage=usage)

    def translator(
        self, call: Call, entry: Entry, content_type: str, limits: AnswerLimits = DEFAULT_LIMITS
    ) -> Translator:
        if call.endpoint.is_opaque:
            return ByteRelay(content_type, limits)
        events: Translator = (EventRelay if call.relays else EventReader)(call, entry.target, limits)
        whole = _whole
        if self._forces(call):
            events, whole = ForcedTranslator(EventReader(call, entry.target, limits)), _whole_call
        return events if "event-stream" in content_type else Sniffer(events, whole, limits)

    def listed(self, body: bytes) -> ModelList:
        return read_list(body, "data", _Row, _listed)


def _whole(body: bytes) -> Answer:
    """A complete answer, translated into choices."""
    if (plain := plain_reply(body)) is not None:
        said, usage = plain
        return Answer(usage=usage_from_openai(usage), choices=(said,))
    values, spans = reply_object(body)
    rows = checked_choices(values, read=partial(decoded_part, body, spans["choices"]) if "choices" in spans else None)
    if any(has_error_finish(row) for row in rows):
        raise BadResponse("it ended its answer with an error (finish_reason error)", detail="finish_reason error")
    usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
    return Answer(usage=usage, choices=tuple([require_names(choice, choice.finish) for choice in whole_deltas(rows)]))


def _whole_call(body: bytes) -> Answer:
    return read_forced_calls(_whole(body))


class _Row(msgspec.Struct):
    """One model of a list: ``id``, and members that some servers add.

    The context length has the names of OpenRouter and Together, vLLM, Groq, LM Studio, Anthropic, in this order; the
    max answer those of Groq and Anthropic, and OpenRouter's inside of ``top_provider``.
    """

    id: str = ""
    created: Any = None
    aliases: Any = None
    supported_parameters: Any = None
    architecture: Any = None
    status: Any = None
    context_length: Any = None
    max_model_len: Any = None
    context_window: Any = None
    max_context_length: Any = None
    max_input_tokens: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    top_provider: Any = None
    meta: Any = None

    def tokens(self) -> int:
        """Its context length in tokens; 0: unknown. A bool is no number."""
        lengths = (self.context_length, self.max_model_len, self.context_window, self.max_context_length)
        return _first(*lengths, self.max_input_tokens)

    def most(self) -> int:
        """Max tokens of an answer; 0: unknown."""
        inside = self.top_provider.get("max_completion_tokens") if isinstance(self.top_provider, dict) else None
        return _first(self.max_completion_tokens, inside, self.max_tokens)


def _first(*numbers: Any) -> int:
    return next((number for number in numbers if type(number) is int and number > 0), 0)


def _listed(row: _Row) -> ModelInfo | None:
    if not row.id:
        return None
    return ModelInfo(
        row.id,
        row.created if type(row.created) is int else 0,
        _capabilities(row),
        tuple(sorted(words(row.aliases) or ())),
        row.tokens(),
        row.most(),
        _size(row.meta),
    )


def _size(meta: object) -> int:
    """llama-server lists the bytes of its file as ``meta.size``."""
    size = meta.get("size") if isinstance(meta, dict) else None
    return size if type(size) is int and size > 0 else 0


def _capabilities(row: _Row) -> frozenset[str] | None:
    """Capabilities by OpenRouter's parameters and modalities, or llama-server's modalities; others count as supported.

    llama-server's router lists "text" for each model that it has not loaded, even if that takes images too.
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
    if parameters is None or parameters & {"reasoning", "reasoning_effort"}:
        has.add("thinking")
    if modalities is None or "image" in modalities:
        has.add(VISION)
    if modalities is not None and "audio" in modalities:
        has.add("audio")
    return frozenset(has)
