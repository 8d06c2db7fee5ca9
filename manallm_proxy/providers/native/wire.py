"""The wire of providers that natively accept OpenAI's Responses or Anthropic's Messages: both are relayed as bytes.

A client of one of these APIs gets the provider's own answer, except for members that only the proxy knows: the model,
and in a response also its id and references to stored state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from attrs import evolve, field

from manallm_proxy.contract.answers import DEFAULT_LIMITS, Answer, AnswerLimits
from manallm_proxy.contract.provider import Call, Endpoint, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.request import rewrite
from manallm_proxy.providers.mending.broken_arguments import refuses_arguments, with_whole_arguments
from manallm_proxy.providers.mending.forced_choice import unthinking_for_choice
from manallm_proxy.providers.mending.learned import Learned
from manallm_proxy.providers.mending.length import clamp_max_tokens
from manallm_proxy.providers.mending.missing_results import misses_results, with_results
from manallm_proxy.providers.mending.tool_schemas import refuses_schemas, with_object_schemas
from manallm_proxy.providers.native.evidence import LEARNED, is_for_all
from manallm_proxy.providers.native.hints import ADAPTIVE, BUDGETS, refused_hint, without_hints
from manallm_proxy.providers.native.history import (
    CONTRARY,
    DEVELOPERS,
    refused_thinking,
    refuses_developer,
    with_accepted_thinking,
    without_developers,
    without_foreign,
)
from manallm_proxy.providers.native.messages import MessagesRelay, counted, message
from manallm_proxy.providers.native.response_hints import (
    refused_response_hint,
    without_response_hints,
)
from manallm_proxy.providers.native.responses import ResponsesRelay, response
from manallm_proxy.providers.openai.reply import refuse_error, reply_object
from manallm_proxy.providers.sniffer import Sniffer
from manallm_proxy.providers.wire import Request, Translator, Wire

_CONTRARY: Final = {**CONTRARY, BUDGETS: (ADAPTIVE,), ADAPTIVE: (BUDGETS,)}


@define
class NativeWire:
    """See `wire.Wire`. ``chats``: the wire for all other calls. ``paths``: the native endpoints' paths below the base
    URL."""

    chats: Wire
    paths: Mapping[Endpoint, str]
    _learned: Learned = field(factory=partial(Learned, _CONTRARY))
    """Of requests that go to ``paths``, see `native.history` and `hints`: by model and what of Anthropic's API their
    client has chosen (``anthropic-beta``)."""

    @property
    def probe_path(self) -> str | None:
        return self.chats.probe_path

    def splices(self, call: Call) -> bool:
        return not self._learned.by_model if call.endpoint in self.paths else self.chats.splices(call)

    def request(self, call: Call, entry: Entry) -> Request:
        path = self.paths.get(call.endpoint)
        if path is None:
            return self.chats.request(call, entry)
        call = self._accepted(call, entry)
        return Request(path, rewrite(call.summary, call.body, entry.target.model), headers=call.headers)

    def _accepted(self, call: Call, entry: Entry) -> Call:
        if (known := self._learned.by_model) and (refused := known.get(_form_of(entry, call.headers))):
            return _without(call, refused)
        return call

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return self.chats.failure(status, headers, body)

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        if call.endpoint not in self.paths:
            return self.chats.reshape(call, entry, status, body)
        is_broken = call.endpoint is Endpoint.RESPONSES and refuses_arguments(body)
        if status != 400 and not (is_broken and status in (422, 500)):
            return None
        if refused := _refused(call, body):
            sent = self._accepted(call, entry)
            if (accepted := _without(sent, (refused,))) is not sent:
                learned = (refused,) if is_for_all(call, refused) else ()
                return evolve(self.request(accepted, entry), call=accepted, refused=learned)
        changed = clamp_max_tokens(call, body) if call.cuts_length else None
        if changed is None:
            changed = without_foreign(call, body)
        if changed is call and refuses_schemas(body):
            changed = with_object_schemas(call)
        if changed is call and call.endpoint is Endpoint.MESSAGES:
            changed = unthinking_for_choice(call, body)
        if changed is call and misses_results(body):
            changed = with_results(call)
        if changed is call and is_broken:
            changed = with_whole_arguments(call)
        return evolve(self.request(changed, entry), call=changed) if changed is not call else None

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        if refused := LEARNED.keys() & request.refused:
            self._learned.learn(_form_of(entry, request.headers), refused)
            return False
        return self.chats.remember_reshaped(entry, request)

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint not in self.paths:
            return self.chats.answer(call, entry, body, content_type)
        match call.endpoint:
            case Endpoint.RESPONSES:
                return response(call, entry.target, body)
            case Endpoint.COUNT_TOKENS:
                return counted(body)
        return message(call, entry.target, body)

    def translator(
        self, call: Call, entry: Entry, content_type: str, limits: AnswerLimits = DEFAULT_LIMITS
    ) -> Translator:
        if call.endpoint not in self.paths:
            return self.chats.translator(call, entry, content_type, limits)
        relay = ResponsesRelay if call.endpoint is Endpoint.RESPONSES else MessagesRelay
        events: Translator = relay(call, entry.target, limits)
        return events if "event-stream" in content_type else Sniffer(events, _no_stream, limits)

    def listed(self, body: bytes) -> ModelList:
        return self.chats.listed(body)


def _form_of(entry: Entry, headers: Mapping[str, str] | None) -> str:
    return f"{entry.target.model}\n{(headers or {}).get('anthropic-beta', '')}"


def _refused(call: Call, refusal: bytes) -> str:
    """What a `refusal` is about that `_without` can leave out; empty: nothing."""
    if refuses_developer(call, refusal):
        return DEVELOPERS
    if call.endpoint is Endpoint.RESPONSES:
        return refused_response_hint(refusal)
    return refused_thinking(refusal) or refused_hint(call, refusal)


def _without(call: Call, refused: Collection[str]) -> Call:
    """`call` without what is `refused`; itself if there is nothing to change."""
    if call.endpoint is Endpoint.RESPONSES:
        changed = without_response_hints(call, refused)
        return without_developers(changed) if DEVELOPERS in refused else changed
    return with_accepted_thinking(without_hints(call, refused), refused)


def _no_stream(body: bytes) -> Answer:
    """For a body that should have been an event stream: raises the error that it holds, else BadResponse."""
    refuse_error(reply_object(body)[0])
    raise BadResponse("its answer is no event stream", detail="not an event stream")
