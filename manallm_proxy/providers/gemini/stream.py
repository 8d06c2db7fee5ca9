"""A streamed answer of Gemini: server-sent events, each a `Reply`. It ends with the body: there is no end marker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from attrs import field

from manallm_proxy.contract.answers import AnswerLimits, Delta, StreamBatch, Usage
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.openai import sse
from manallm_proxy.openai.deferred_free import free_failure_later
from manallm_proxy.openai.json_object import DecodeErrors, decode_leniently
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_many_calls, refuse_many_items, refuse_too_much
from manallm_proxy.providers.gemini.plain_events import PlainEvents
from manallm_proxy.providers.gemini.reply import Reader, parts_of, read
from manallm_proxy.providers.patterned import PATTERN_TRIES, feed_in_steps

_DONE: Final = b"[DONE]"
"""OpenAI's end marker, which some proxies in between add."""


@define
class GeminiTranslator:
    """See `wire.Translator`."""

    blank: ClassVar[bytes] = b"\r\n\r\n"

    _limits: AnswerLimits = AnswerLimits()
    _reader: Reader = field(factory=Reader)
    _decoder: sse.Decoder = field(factory=sse.Decoder)
    _begun: bool = False
    _has_content: bool = False
    plain: PlainEvents = field(factory=PlainEvents)
    tries_left: int = PATTERN_TRIES

    @property
    def usage(self) -> Usage | None:
        return self._reader.usage

    @property
    def held(self) -> int:
        return self._decoder.held

    def take_held(self) -> bytes:
        return self._decoder.take()

    def is_open(self, data: bytes) -> bool:
        return self._decoder.is_open(data)

    def read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        texts, used, counters = self.plain.read(data)
        if texts:
            self._reader.counted(counters)
        return texts, used

    def feed(self, data: bytes) -> StreamBatch:
        return feed_in_steps(self, data)

    def is_learnable(self, delta: Delta) -> bool:
        return True

    def read(self, data: bytes) -> StreamBatch:
        try:
            frames = self._decoder.feed(data)
        except sse.FrameTooLong:
            return StreamBatch(error=BadResponse("Gemini sent an event without an end", detail="endless event"))
        return self._batch(frames)

    def close(self) -> StreamBatch:
        """The end of the body. It is complete only with a finish reason. Without any chunk it is an empty answer."""
        deltas: tuple[Delta, ...] = ()
        if rest := self._decoder.close():
            frame = sse.parse(rest + b"\n\n")
            if not _is_whole(frame) or sse.is_cut_before_data(rest):
                self._begun = True
            else:
                batch = self._batch([frame])
                if batch.done or batch.error:
                    return batch
                deltas = batch.deltas
        return self._ended(deltas)

    def _batch(self, frames: list[sse.Frame]) -> StreamBatch:
        deltas: list[Delta] = []
        for frame in frames:
            data = _said(frame)
            if data == _DONE:
                return self._ended(tuple(deltas))
            if data is None:
                continue
            try:
                if len(data) > EVENT_BYTES:
                    refuse_too_much(data, self._limits)
                chunk = read(data)
                self._begun = True
                if parts_of(chunk) > self._limits.items + self._limits.calls:
                    refuse_many_items(parts_of(chunk), self._limits)
                new = [d for d in self._reader.deltas(chunk) if d.has_content or d.logprobs is not None]
                if self._reader.failure is not None:
                    if self._has_content:  # else nothing has been sent, and the next target may be tried
                        deltas += new
                    raise self._reader.failure
                refuse_many_calls(self._reader.calls, self._limits)
                refuse_many_items(self._reader.choices, self._limits)
                deltas += new
                self._has_content = self._has_content or any(d.has_content for d in new)
            except ProviderError as error:
                free_failure_later(error)
                return _batch_of(tuple(deltas), error=error)
        return _batch_of(tuple(deltas))

    def _ended(self, deltas: tuple[Delta, ...]) -> StreamBatch:
        if self._begun and not self._reader.is_complete:
            return _batch_of(deltas, error=Disconnected("Gemini stopped in mid answer", detail="no finish reason"))
        return _batch_of(deltas, done=True)


def _batch_of(deltas: tuple[Delta, ...], *, done: bool = False, error: ProviderError | None = None) -> StreamBatch:
    return StreamBatch(deltas=deltas, has_content=any(d.has_content for d in deltas), done=done, error=error)


def _said(frame: sse.Frame) -> bytes | None:
    """The data of `frame`; None for a keep-alive. An error may come as JSON without a field name."""
    data = frame.data
    if data is None:
        return frame.raw if any(name[:1] in (b"{", b"<") for name in frame.fields) else None
    data = data.strip()
    if data in (b"", b"{}", b"[]"):
        return None
    return data if data[:1] in b"{[" or not _is_json(data) else None


def _is_whole(frame: sse.Frame) -> bool:
    """Whether the last event, cut by the end of the body, has all of its data."""
    return frame.data is None or frame.data.strip() in (b"", _DONE) or _is_json(frame.data)


def _is_json(data: bytes) -> bool:
    try:
        decode_leniently(data)
    except DecodeErrors:
        return False
    return True
