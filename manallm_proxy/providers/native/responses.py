"""Relays the answers of a provider that speaks OpenAI's Responses: members that only the proxy knows are replaced.

In a stream the first events repeat the response, empty, and the last one repeats it whole. The first are left to the
door, which may have begun the answer before it had a provider for it (`ResponseBatch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from attrs import field

from manallm_proxy.contract.answers import Answer, ResponseBatch, StreamBatch
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, EmptyAnswer, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai.errors import says_error
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.usage import usage_from_responses
from manallm_proxy.providers.classify import in_band, parse_error
from manallm_proxy.providers.native.plain_events import RESPONSES, PlainEvents
from manallm_proxy.providers.native.relay import NamedRelay
from manallm_proxy.providers.native.splice import members, with_values, within
from manallm_proxy.providers.openai.reply import decoded, refuse_error

_BEGINS: Final = frozenset({"response.created", "response.in_progress", "response.queued"})
_ENDS: Final = frozenset({"response.completed", "response.incomplete"})
_COMPLETE: Final = frozenset({b'"completed"', b'"incomplete"'})
_EMPTY: Final = frozenset(
    {"response.content_part.added", "response.reasoning_summary_part.added", "response.reasoning_part.added"}
)
"""Events that begin something and hold nothing."""


def response(call: Call, target: Target, body: bytes) -> Answer:
    """A whole response. Raises the error of one that failed, and BadResponse if it holds no answer."""
    values = members(body)
    refuse_error(values)
    if bytes(values.get("output", b""))[:1] != b"[" or bytes(values.get("status", b"null")) not in _COMPLETE:
        status = decoded(values.get("status", b"null"))
        raise BadResponse("its answer is no response that is complete", detail=f"status {status}"[:64])
    if call.waits_for_words and not any(map(_says, decoded(values["output"]))):
        raise EmptyAnswer(f"{target} ended without a word")
    usage = usage_from_responses(decoded(values["usage"])) if "usage" in values else None
    return Answer(body=with_values(values, _replaced(call, target)), usage=usage)


@define
class ResponsesRelay(NamedRelay):
    """See `wire.Translator`."""

    marks: ClassVar[tuple[bytes, ...]] = (b'"response"', b'"item"')
    plain: ClassVar[PlainEvents] = RESPONSES

    _state: bytes = field(default=b"", repr=False)
    """The response as the client got it at the start."""
    _items: list[bytes] = field(factory=list, repr=False)
    """The items of its output that are complete."""
    _begun: bytes = field(default=b"", repr=False)
    _response: bytes = field(default=b"", repr=False)
    """See `ResponseBatch`, as for ``_begun``; emptied with each batch."""

    def _batch(self, frames: bytes, *, has_content: bool, error: ProviderError | None) -> StreamBatch:
        if not (self._begun or self._response):
            return StreamBatch(frames, has_content=has_content, done=self._ended, error=error)
        begun, response, self._begun, self._response = self._begun, self._response, b"", b""
        return ResponseBatch(
            frames, has_content=has_content, done=self._ended, error=error, begun=begun, response=response
        )

    def _take(self, kind: str, event: dict[str, Any], data: bytes) -> bytes | None:
        if kind in _BEGINS:
            self._begin(data)
            return None
        if kind == "response.failed":
            raise _failure(event.get("response"))
        if kind in _ENDS:
            told = event.get("response")
            told = told if isinstance(told, dict) else {}
            self.usage = usage_from_responses(told.get("usage"))
            output = told.get("output")
            self._ends(said=self._said or (isinstance(output, list) and any(map(_says, output))))
            data, self._response = within(data, "response", _replaced(self._call, self._target))
            return data
        if kind == "response.output_item.added":
            self._says(_begins(event.get("item")))
        elif kind == "response.output_item.done":
            self._says(_says(event.get("item")))
            self._keep_item(data)
        elif kind.endswith(".delta"):
            self._says(event.get("delta"))
        elif kind.endswith(".done"):
            self._says(any(event.get(key) for key in ("text", "refusal", "arguments", "input")))
        elif kind.startswith("response.") and kind not in _EMPTY:
            self._says(True)
        return data if self._has_content or kind.startswith("response.") else None

    def _begin(self, data: bytes) -> None:
        _, state = within(data, "response", _replaced(self._call, self._target))
        if state and not self._state:
            self._begun = state
        self._state = state or self._state

    def _keep_item(self, data: bytes) -> None:
        item = members(data).get("item")
        if item is not None and self._state:
            self._items.append(bytes(item))
            self._response = with_values(members(self._state), {"output": b"[%b]" % b",".join(self._items)})


def _replaced(call: Call, target: Target) -> Mapping[str, bytes]:
    return {"model": encode(str(target)), **call.response_fields}


def _failure(told: object) -> ProviderError:
    error = told.get("error") if isinstance(told, dict) else None
    if says_error(error):
        return in_band(parse_error({"error": error}))
    return BadResponse("its response failed, and does not say why", detail="response.failed")


def _begins(item: object) -> bool:
    """Whether an item that was only begun says something: a call does by its name, a text not yet."""
    return isinstance(item, dict) and item.get("type") not in ("message", "reasoning", None)


def _says(item: object) -> bool:
    """Whether an item holds anything."""
    if not isinstance(item, dict):
        return False
    if item.get("type") == "message":
        parts = item.get("content")
        rows = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        return any(part.get("text") or part.get("refusal") for part in rows)
    if item.get("type") == "reasoning":
        return bool(item.get("summary") or item.get("content"))
    return item.get("type") is not None
