"""A streamed request answered without ``text/event-stream``: an event stream all the same, or one whole answer."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from manallm_proxy.contract.answers import StreamBatch, Usage
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.openai import sse
from manallm_proxy.openai.usage import usage_from_openai
from manallm_proxy.providers.openai.deltas import whole_deltas
from manallm_proxy.providers.openai.reply import checked_choices, decoded, reply_object
from manallm_proxy.providers.openai.stream import EventStream

BODY_LIMIT: Final = sse.FRAME_LIMIT
_SNIFFED: Final = 64
"""Bytes after white space that tell an event stream from anything else."""


@define
class Sniffer:
    """See `wire.Translator`."""

    _events: EventStream
    _held: list[bytes] = field(factory=list, repr=False)
    _size: int = 0
    _start: bytes = field(default=b"", repr=False)
    """The body's first bytes, without white space."""
    _is_sse: bool | None = None
    _usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        return self._usage or self._events.usage

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_sse:
            return self._events.feed(data)
        self._held.append(data)
        self._size += len(data)
        if self._is_sse is None:
            self._start = (self._start + data[:_SNIFFED] if self._start else data).lstrip()[:_SNIFFED]
            if len(self._start) >= 6:
                self._is_sse = self._start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
                if self._is_sse:
                    return self._events.feed(b"".join(self._held))
        if self._size > BODY_LIMIT:
            return StreamBatch(error=BadResponse("its answer is no event stream", detail="not an event stream"))
        return StreamBatch()

    def close(self) -> StreamBatch:
        if self._is_sse:
            return self._events.close()
        body = b"".join(self._held)
        if not body.strip():
            return StreamBatch(done=True)
        try:
            values, _ = reply_object(body)
            rows = checked_choices(values)
            self._usage = usage_from_openai(decoded(values["usage"])) if "usage" in values else None
        except ProviderError as error:
            return StreamBatch(error=error)
        return StreamBatch(deltas=tuple(whole_deltas(rows)), has_content=True, done=True)
