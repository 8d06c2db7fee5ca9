"""The dialect of OpenAI and of all compatible servers: bytes are relayed, not rewritten.

A request keeps its bytes except for ``model`` and, if we count tokens, ``stream_options``. A reply keeps its bytes
except for ``model``, and for the usage chunk that only we requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

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
from manallm_proxy.providers.mending.broken_arguments import refuses_arguments, with_whole_arguments
from manallm_proxy.providers.mending.effort import (
    BESIDE_TOOLS,
    nearest_effort,
    refuses_beside_tools,
    unthinking_with_tools,
)
from manallm_proxy.providers.mending.evidence import is_for_all
from manallm_proxy.providers.mending.forced_choice import unthinking_for_choice
from manallm_proxy.providers.mending.history import (
    EXTRAS,
    IDS,
    NEEDED,
    REASONING,
    SIGNATURES,
    refused_members,
    refuses_signatures,
    without_members,
    without_signatures,
)
from manallm_proxy.providers.mending.learned import remember
from manallm_proxy.providers.mending.length import NEWER, OLDER, clamp_max_tokens, named, wanted_name
from manallm_proxy.providers.mending.missing_results import misses_results, with_results
from manallm_proxy.providers.mending.refused_fields import LEFT_OUT, refused_field, without_refused
from manallm_proxy.providers.mending.tool_schemas import SCHEMAS, refuses_schemas, with_object_schemas
from manallm_proxy.providers.mending.turns import ORDERS, in_order, refused_order
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

USAGE: Final = "stream_options"
_REFUSABLE: Final = frozenset({REASONING, SIGNATURES, IDS, EXTRAS, *NEEDED, *ORDERS})


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent at all.

    `forces_tools`: whether a tool that must be called is asked for as structured output (see `forced_call`).
    """

    asks_usage: bool = True
    forces_tools: bool = False
    probe_path: str = "models"
    _strict: dict[str, None] = field(factory=dict)
    """Models that refused it, oldest first. Another model of the same aggregator may accept it."""
    _lengths: dict[str, str] = field(factory=dict)
    """By model, oldest first: the name that it wants for ``max_tokens``, of those that refused the other one."""
    _forgetful: dict[str, frozenset[str]] = field(factory=dict)
    """By model, oldest first: what those refused in a history that have refused any of it, see `history`."""
    _fieldless: dict[str, frozenset[str]] = field(factory=dict)
    """By model, oldest first: what it refused, see `refused_fields`."""
    _unthinking: dict[str, None] = field(factory=dict)
    """Models that take no tools unless they need not think, oldest first."""
    _as_objects: dict[str, None] = field(factory=dict)
    """Models that refused the schema of a tool for its form, oldest first."""

    def splices(self, call: Call) -> bool:
        learned = self._lengths or self._fieldless  # then `_renamed` may copy or decode it
        of_all = self._forgetful or self._as_objects or self._unthinking
        return not (self._forces(call) or of_all or (learned and not call.relays))

    def request(self, call: Call, entry: Entry) -> Request:
        if call.endpoint.is_opaque:
            return opaque_request(call, entry)
        return self._chat_request(self._renamed(call, entry), entry)

    def _chat_request(self, call: Call, entry: Entry) -> Request:
        if self._forces(call):
            model = entry.target.model
            orders = ORDERS.keys() & (call.denied | self._forgetful.get(model, frozenset()))
            arranged = partial(in_order, refused=orders)
            return Request(call.endpoint.path, as_structured_output(call, model, self._may_ask(call, entry), arranged))
        streams = call.summary.stream and call.endpoint is not Endpoint.EMBEDDINGS
        ask = streams and not call.summary.wants_usage and self._may_ask(call, entry)
        return Request(call.endpoint.path, rewrite(call.summary, call.body, entry.target.model, ask_usage=ask))

    def _renamed(self, call: Call, entry: Entry) -> Call:
        """`call` without what the target refuses in a history; if a door made it, with the length under its name."""
        if self._forgetful and (refused := self._forgetful.get(entry.target.model)):
            call = without_members(call, refused)
        if self._as_objects and entry.target.model in self._as_objects:
            call = with_object_schemas(call)
        if self._unthinking and entry.target.model in self._unthinking and call.endpoint is Endpoint.CHAT:
            call = unthinking_with_tools(call)
        if self._fieldless and not call.relays and (refused := self._fieldless.get(entry.target.model)):
            for what in sorted(refused):
                call = without_refused(call, what)
        name = self._lengths.get(entry.target.model) if self._lengths and not call.relays else None
        return call if name is None else named(call, name)

    def _may_ask(self, call: Call, entry: Entry) -> bool:
        return self.asks_usage and entry.target.model not in self._strict and USAGE not in call.denied

    def _forces(self, call: Call) -> bool:
        return self.forces_tools and call.endpoint is Endpoint.CHAT and is_forced(call)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return classify(status, headers, envelope(body))

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Leaves out ``stream_options``, which Mistral and other strict servers refuse; see `remember_reshaped`.

        So it does with reasoning and signatures in the history, which clients send back to whoever serves them next;
        ids of calls get another form, and so do arguments that are no JSON, and the schemas of tools.

        Of what a door has translated it also leaves out some settings, or gives the effort as the nearest that the
        target knows, and the length in the name that it wants.
        """
        is_broken = call.endpoint is Endpoint.CHAT and refuses_arguments(body)
        is_form = status == 500 and (is_broken or bool(refused_order(body)))  # llama.cpp's status for both
        if not (status in (400, 422) or is_form) or call.endpoint.is_opaque:
            return None
        sent = self._renamed(call, entry)
        if call.endpoint is Endpoint.CHAT and not call.relays and (name := wanted_name(sent, body)) is not None:
            return self._again(named(sent, name), entry, _for_all(sent, OLDER if name == NEWER else NEWER))
        if refused := refused_members(body):
            silent = without_members(sent, refused)
            if self._forces(call) and not ORDERS.keys().isdisjoint(refused - sent.denied):
                silent = evolve(silent, denied=silent.denied | refused)  # of the message that is added there
            if silent is not sent:
                return self._again(silent, entry, _for_all(sent, *refused))
        if refuses_signatures(body) and (silent := without_signatures(sent, body)) is not sent:
            return self._again(silent, entry)  # of another model: its own it will get again
        if (
            call.endpoint is Endpoint.CHAT
            and refuses_schemas(body)
            and (as_objects := with_object_schemas(sent)) is not sent
        ):
            return self._again(as_objects, entry, _for_all(sent, SCHEMAS))
        if call.endpoint is Endpoint.CHAT and misses_results(body) and (paired := with_results(sent)) is not sent:
            return self._again(paired, entry)
        if is_broken and (whole := with_whole_arguments(sent)) is not sent:
            return self._again(whole, entry)
        if call.cuts_length and (shorter := clamp_max_tokens(call, body)) is not None:
            return self._again(self._renamed(shorter, entry), entry)
        if not call.relays and (nearest := nearest_effort(sent, body)) is not None:
            return self._again(nearest, entry)
        if call.endpoint is Endpoint.CHAT and refuses_beside_tools(body):
            silent = unthinking_with_tools(sent)
            return self._again(silent, entry, _for_all(sent, BESIDE_TOOLS)) if silent is not sent else None
        if call.endpoint is Endpoint.CHAT and (silent := unthinking_for_choice(sent, body)) is not sent:
            return self._again(silent, entry)
        field = refused_field(sent, body) if not call.relays else ""
        if field and (silent := without_refused(sent, field)) is not sent:
            return self._again(silent, entry, _for_all(sent, field))
        if USAGE.encode() not in body or call.summary.wants_usage or not call.summary.stream:
            return None
        return self._again(evolve(sent, denied=sent.denied | {USAGE}), entry, without=USAGE)

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        model = entry.target.model
        if request.without in (OLDER, NEWER):
            remember(self._lengths, model, NEWER if request.without == OLDER else OLDER)
        if refused := _REFUSABLE.intersection(request.without.split()):
            known = self._forgetful.get(model, frozenset())
            contrary = {REASONING} if refused & NEEDED.keys() else NEEDED.keys() if REASONING in refused else set()
            remember(self._forgetful, model, refused | (known - contrary))
        if request.without in LEFT_OUT:
            remember(self._fieldless, model, self._fieldless.get(model, frozenset()) | {request.without})
        if request.without == BESIDE_TOOLS:
            remember(self._unthinking, model, None)
        if request.without == SCHEMAS:
            remember(self._as_objects, model, None)
        if model in self._strict or request.without != USAGE:
            return False
        remember(self._strict, model, None)
        return True

    def _again(self, call: Call, entry: Entry, without: str = "") -> Request:
        return evolve(self._chat_request(call, entry), without=without, call=call)

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


def _for_all(call: Call, *refused: str) -> str:
    """What may be learned of what is `refused` of `call`, as a request's `without`."""
    return " ".join(what for what in refused if is_for_all(call, what))


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
    if parameters is not None and parameters & {"reasoning", "reasoning_effort"}:
        has.add("thinking")
    if modalities is None or "image" in modalities:
        has.add(VISION)
    if modalities is not None and "audio" in modalities:
        has.add("audio")
    return frozenset(has)
