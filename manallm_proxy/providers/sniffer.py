"""Reads the reply to a streamed request that is not labelled ``text/event-stream``: it may still be an event stream, or
one complete answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import field

from manallm_proxy.contract.answers import Answer, AnswerLimits, StreamBatch, Usage
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.openai import sse
from manallm_proxy.openai.deferred_free import free_failure_later
from manallm_proxy.openai.json_object import BOM
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, checked_answer, refuse_too_much, too_long
from manallm_proxy.providers.wire import Translator

BODY_LIMIT: Final = sse.FRAME_LIMIT
_SNIFFED: Final = 64
"""Bytes, after white space, that are enough to recognise an event stream."""


@define
class Sniffer:
    """See `wire.Translator`. `events` reads an event stream, `whole` a complete answer into ``choices``."""

    _events: Translator
    _whole: Callable[[bytes], Answer]
    _limits: AnswerLimits = AnswerLimits()
    _held: list[bytes] = field(factory=list, repr=False)
    _size: int = 0
    _start: bytes = field(default=b"", repr=False)
    """The body's first bytes, without a BOM and white space."""
    _is_sse: bool | None = None
    _usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        return self._usage or self._events.usage

    @property
    def held(self) -> int:
        return self._events.held if self._is_sse else self._size

    def is_open(self, data: bytes) -> bool:
        return self._events.is_open(data) if self._is_sse else True

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_sse:
            return self._events.feed(data)
        self._held.append(data)
        self._size += len(data)
        if self._is_sse is None:
            self._start = (self._start + data).removeprefix(BOM).lstrip()[:_SNIFFED]
            if len(self._start) >= 6:
                self._is_sse = self._start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
                if self._is_sse:
                    return self._events.feed(b"".join(self._held))
        if self._size > self._limits.text:
            return StreamBatch(error=too_long(self._limits.text, "text"))
        if self._size > BODY_LIMIT:
            return StreamBatch(error=BadResponse("its answer is no event stream", detail="not an event stream"))
        return StreamBatch()

    def close(self) -> StreamBatch:
        if self._is_sse:
            return self._events.close()
        body = b"".join(self._held)
        if not body.strip():
            return self._events.close()
        try:
            if len(body) > EVENT_BYTES:
                refuse_too_much(body, self._limits)
            answer = checked_answer(self._whole(body), self._limits)
        except ProviderError as error:
            free_failure_later(error)
            return StreamBatch(error=error)
        self._usage = answer.usage
        return StreamBatch(deltas=answer.choices, has_content=True, done=True)
