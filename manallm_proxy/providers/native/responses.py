"""Relays the answers of a provider that speaks OpenAI's Responses: members that only the proxy knows are replaced.

In a stream the first events hold the empty response, and the last one the whole response. The first ones are left to
the door, which may have begun the answer before a provider was found (`ResponseBatch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Answer, ResponseBatch, StreamBatch, Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, EmptyAnswer, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.usage import plain_usage_of_response, usage_from_responses
from manallm_proxy.providers.answer_bounds import refuse_many_items
from manallm_proxy.providers.classify import in_band, parse_error
from manallm_proxy.providers.native.plain_events import RESPONSES, PlainEvents
from manallm_proxy.providers.native.relay import NULL, Event, NamedRelay
from manallm_proxy.providers.native.splice import begins, members, with_values
from manallm_proxy.providers.openai.reply import decoded, refuse_error

_BEGINS: Final = frozenset({"response.created", "response.in_progress", "response.queued"})
_ENDS: Final = frozenset({"response.completed", "response.incomplete"})
_COMPLETE: Final = (msgspec.Raw(b'"completed"'), msgspec.Raw(b'"incomplete"'))
_EMPTY: Final = frozenset(
    {"response.content_part.added", "response.reasoning_summary_part.added", "response.reasoning_part.added"}
)
"""Events that begin something, without content."""


def response(call: Call, target: Target, body: bytes) -> Answer:
    """A whole response. Raises the error of a failed one, and BadResponse if it holds no answer."""
    values = members(body)
    refuse_error(values)
    if values.get("status") not in _COMPLETE or not begins(values.get("output", NULL), b"["):
        status = decoded(values.get("status", NULL))
        raise BadResponse("its answer is no response that is complete", detail=f"status {status}"[:64])
    if call.waits_for_words and not any(map(_says, decoded(values["output"]))):
        raise EmptyAnswer(f"{target} ended without a word")
    usage = _usage(values)
    return Answer(body=with_values(values, _replaced(call, target)), usage=usage)


class _Event(Event, gc=False):
    response: msgspec.Raw = NULL
    item: msgspec.Raw = NULL
    text: msgspec.Raw = NULL
    refusal: msgspec.Raw = NULL
    arguments: msgspec.Raw = NULL
    input: msgspec.Raw = NULL


@define
class ResponsesRelay(NamedRelay):
    """See `wire.Translator`."""

    marks: ClassVar[tuple[bytes, ...]] = (b'"response"', b'"item"')
    plain: ClassVar[PlainEvents] = RESPONSES
    reads: ClassVar[msgspec.json.Decoder[_Event]] = msgspec.json.Decoder(_Event)

    _has_begun: bool = False
    """The client was told how the response begins."""
    _begun: bytes = field(default=b"", repr=False)
    _number: int = 0
    """Of the items that are complete."""
    _items: tuple[bytes, ...] = field(default=(), repr=False)
    _response: bytes = field(default=b"", repr=False)
    """See `ResponseBatch`; emptied with each batch, as the two before."""

    def _batch(self, frames: bytes, *, has_content: bool, error: ProviderError | None) -> StreamBatch:
        if not (self._begun or self._items or self._response):
            return StreamBatch(frames, has_content=has_content, done=self._ended, error=error)
        begun, items, response = self._begun, self._items, self._response
        self._begun, self._items, self._response = b"", (), b""
        return ResponseBatch(
            frames, has_content=has_content, done=self._ended, error=error, begun=begun, items=items, response=response
        )

    def _take(self, kind: str, event: _Event, data: bytes) -> bytes | None:
        if kind in _BEGINS:
            self._begin(event.response)
            return None
        if kind == "response.failed":
            raise _failure(decoded(event.response))
        if kind in _ENDS:
            return self._end(event.response, data)
        if kind == "response.output_item.done" and event.item != NULL:
            self._items += (bytes(event.item),)
            self._number += 1
            refuse_many_items(self._number, self._limits)
        if not self._said:
            self._says(self._adds(kind, event))
        return data if self._has_content or kind.startswith("response.") else None

    def _adds(self, kind: str, event: _Event) -> object:
        """What an event adds that neither begins nor ends the response."""
        if kind == "response.output_item.added":
            return _begins(decoded(event.item))
        if kind == "response.output_item.done":
            return _says(decoded(event.item))
        if kind.endswith(".delta"):
            return decoded(event.delta)
        if kind.endswith(".done"):
            return any(map(decoded, (event.text, event.refusal, event.arguments, event.input)))
        return kind.startswith("response.") and kind not in _EMPTY

    def _begin(self, response: msgspec.Raw) -> None:
        if not self._has_begun and (value := bytes(response)).startswith(b"{"):
            self._has_begun = True
            self._begun = with_values(members(value), _replaced(self._call, self._target))

    def _end(self, response: msgspec.Raw, data: bytes) -> bytes:
        """`data`, the last event, with what the proxy knows of `response`."""
        if not (value := bytes(response)).startswith(b"{"):
            self._ends(said=self._said)
            return data
        values = members(value)
        self.usage = _usage(values)
        self._ends(said=self._said or _has_said(values))
        self._response = with_values(values, _replaced(self._call, self._target))
        return with_values(members(data), {"response": self._response})


def _usage(values: Mapping[str, msgspec.Raw]) -> Usage | None:
    """Of a response that has these members."""
    raw = values.get("usage", NULL)
    return plain_usage_of_response(raw) or usage_from_responses(decoded(raw))


def _replaced(call: Call, target: Target) -> Mapping[str, bytes]:
    return {"model": encode(str(target)), **call.response_fields}


def _failure(value: object) -> ProviderError:
    error = value.get("error") if isinstance(value, dict) else None
    if is_error_value(error):
        return in_band(parse_error({"error": error}))
    return BadResponse("its response failed, and does not say why", detail="response.failed")


def _has_said(values: Mapping[str, msgspec.Raw]) -> bool:
    """Whether there is anything in the output of a response that has these members."""
    output = decoded(values.get("output", NULL))
    return isinstance(output, list) and any(map(_says, output))


def _begins(item: object) -> bool:
    """Whether an item that has only begun has content: a call has its name, a text has none yet."""
    return isinstance(item, dict) and item.get("type") not in ("message", "reasoning", None)


def _says(item: object) -> bool:
    """Whether a complete item has content."""
    if not isinstance(item, dict):
        return False
    if item.get("type") == "message":
        parts = item.get("content")
        rows = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        return any(part.get("text") or part.get("refusal") for part in rows)
    if item.get("type") == "reasoning":
        return bool(item.get("summary") or item.get("content"))
    return item.get("type") is not None
