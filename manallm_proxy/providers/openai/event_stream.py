"""The common part of relaying and reading a stream of an OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import AnswerLimits, Delta, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.deferred_free import free_failure_later
from manallm_proxy.openai.joined import joined_parts
from manallm_proxy.openai.json_object import DecodeErrors, decode, decode_leniently, holds
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_many_items, refuse_too_much
from manallm_proxy.providers.openai import chunks

_ERROR: Final = re.compile(rb'error"|"error_type"')


@define
class EventStream:
    """Base of `EventRelay` and `EventReader`: frames, keep-alives, errors, and when an answer is complete."""

    _call: Call
    _target: Target
    _limits: AnswerLimits = AnswerLimits()
    usage: Usage | None = None
    _decoder: sse.Decoder = field(factory=sse.Decoder)
    _is_between: bool = False
    """Copy of the decoder's property, which would be a call for each chunk."""
    _has_content: bool = False
    _seen_data: bool = False
    _finished: set[int] = field(factory=set)

    @property
    def held(self) -> int:
        return self._decoder.held

    def is_open(self, data: bytes) -> bool:
        return self._decoder.is_open(data)

    def feed(self, data: bytes) -> StreamBatch:
        """See `wire.Translator`."""
        try:
            frames = self._decoder.feed(data)
            self._is_between = self._decoder.is_between
        except sse.FrameTooLong:
            return StreamBatch(error=BadResponse("it sent an event without an end", detail="endless event"))
        return self._batch(frames)

    def close(self) -> StreamBatch:
        """The end of the provider's body. The answer is complete with ``[DONE]``, or with every finish reason."""
        rest = self._decoder.close()
        batch = StreamBatch()
        if rest:
            self._seen_data = self._seen_data or sse.is_cut_before_data(rest)
            frame = sse.parse(rest + b"\n\n")
            if frame.data is not None and frame.data != b"[DONE]" and not _is_json(frame.data):
                return StreamBatch(error=_cut())
            batch = self._batch([frame])
            if batch.done or batch.error:
                return batch
        complete = len(self._finished) >= promised_choices(self._call) or not self._seen_data
        error = None if complete else _cut()
        return StreamBatch(batch.frames, batch.deltas, batch.has_content, done=complete, error=error)

    def _batch(self, frames: list[sse.Frame]) -> StreamBatch:
        out: list[bytes] = []
        deltas: list[Delta] = []
        before = self._has_content
        done, error = False, None
        for frame in frames:
            try:
                if frame.data == b"[DONE]":
                    self._end()
                    done = True
                    break
                self._add(frame, out, deltas)
            except ProviderError as failure:
                free_failure_later(failure)
                error = failure
                break
        return StreamBatch(joined_parts(out), tuple(deltas), self._has_content and not before, done, error)

    def _add(self, frame: sse.Frame, out: list[bytes], deltas: list[Delta]) -> None:
        """Appends the result of `frame`: nothing for a keep-alive. Raises the ProviderError that it reports."""
        if len(frame.raw) > EVENT_BYTES:
            refuse_too_much(frame.raw, self._limits)
        if frame.fields:
            chunks.refuse_odd_fields(frame)
        data = frame.data
        is_error = frame.event == b"error"
        if data is None or frame.event == b"ping" or (chunks.is_keep_alive(data) and not is_error):
            return  # comments and empty events: SDKs parse them as JSON and fail
        if (
            is_error
            or (len(data) > EVENT_BYTES and holds(data, _ERROR))
            or (len(data) <= EVENT_BYTES and (b'error"' in data or b'"error_type"' in data))
        ):
            chunks.refuse_error(frame)
        self._take(frame, data, out, deltas)

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        raise NotImplementedError  # the two subclasses differ here

    def _note(self, rows: Sequence[dict[str, Any]]) -> None:
        """Notes which choices have ended. Raises BadResponse for too many choices."""
        finished = self._finished
        for row in rows:
            if row.get("finish_reason"):
                finished.add(chunks.index_of(row))
        refuse_many_items(max(len(rows), len(finished)), self._limits)

    def _end(self) -> None:
        """At ``[DONE]``. Raises BadResponse if the answer is incomplete."""


def promised_choices(call: Call) -> int:
    """Number of choices of a complete answer: ``n`` per prompt."""
    return _count(call, "n") * (_prompts(call) if call.endpoint is Endpoint.COMPLETIONS else 1)


def _count(call: Call, key: str) -> int:
    value = _value(call, key)
    return value if isinstance(value, int) and value > 0 else 1


def _prompts(call: Call) -> int:
    prompt = _value(call, "prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


def _value(call: Call, key: str) -> object:
    span = call.summary.spans.get(key)
    try:
        return decode(call.body[span[0] : span[1]]) if span else None
    except DecodeErrors:
        return None


def _cut() -> Disconnected:
    return Disconnected("its stream ended in mid answer", detail="cut stream")


def _is_json(data: bytes) -> bool:
    try:
        decode_leniently(data)
    except DecodeErrors:
        return False
    return True
