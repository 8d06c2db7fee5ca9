"""Streams of OpenAI-compatible servers: relayed as bytes, or read into deltas.

`EventRelay` scans each event with bytes methods. It decodes JSON only until there is content, and if an event may hold
a finish reason, usage or an error. `EventReader` decodes events, for doors of another format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

from attrs import field

from manallm_proxy.contract.answers import Delta, StreamBatch
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Endpoint, Span
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.records import define
from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import DecodeErrors, contains, encode, holds, replaced, split_object
from manallm_proxy.openai.plain_text import Splice, decode_string
from manallm_proxy.openai.sliced import LARGE_BYTES
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_many_calls, refuse_many_items
from manallm_proxy.providers.named_calls import nameless_call
from manallm_proxy.providers.openai import chunks
from manallm_proxy.providers.openai.call_parts import CallParts
from manallm_proxy.providers.openai.deltas import deltas_of, rows_of_chunk
from manallm_proxy.providers.openai.event_stream import EventStream
from manallm_proxy.providers.openai.plain_chunks import PlainChunks
from manallm_proxy.providers.openai.reply import FRONT, set_model, span_of_model
from manallm_proxy.providers.patterned import PATTERN_TRIES, feed_in_steps

_DATA: Final = b"data: "
_NO_NAME: Final = b"message"
"""The name of an event without one: it is left out, since some SDKs only read events without any."""
_BLANK: Final = b"\n\n"
"""The end of an event whose lines end in LF."""
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_MODEL: Final = re.compile(rb'"model": ?("[^"\\]*")')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_NULL_USAGE: Final = re.compile(rb'"usage"\s*:\s*null(?=\s*[,}])')
_ROWS_BYTES: Final = 2048
"""Bytes of an event that cannot hold many tool calls or images."""
_BLANKS: Final = 1024
"""White space before a key of a large event."""
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')


@define
class EventRelay(EventStream):
    """Relays frames as bytes, except for ``model``, and for the usage that only we requested."""

    _model: bytes = b""
    _old_front: bytes = field(default=b"", repr=False)
    _new_front: bytes = field(default=b"", repr=False)
    """``_old_front``: the bytes, up to the model, with which all events of the stream begin; and their replacement."""

    _plain: PlainChunks = field(factory=PlainChunks)
    _splice: Splice | None = field(default=None, repr=False)
    """The bytes around the text in chunks of the pattern, with our model's name."""
    _around: tuple[bytes, bytes, bytes, bytes] | None = field(default=None, repr=False)
    """For `relayed`: what such a chunk has before and behind its quoted words, and what the client gets instead."""
    _fronts: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    """The beginnings of these chunks: the provider's, and ours."""
    _tries_left: int = PATTERN_TRIES

    def __attrs_post_init__(self) -> None:
        self._model = encode(str(self._target))

    def relayed(self, data: bytes) -> bytes:
        """See `wire.Relays`."""
        if self._around is None or not self._is_between:
            return b""
        front, tail, new_front, new_tail = self._around
        if not data.startswith(front) or not data.endswith(tail):
            return b""
        words = data[len(front) : -len(tail)]
        try:
            return b"".join((new_front, words, new_tail)) if decode_string(words) else b""
        except DecodeErrors:
            return b""

    def feed(self, data: bytes) -> StreamBatch:
        if self._has_content and self._is_between:
            if self._splice is not None:
                texts, used = self._plain.read(data)
                if texts:
                    self._old_front, self._new_front = self._fronts
                    around = self._splice
                    if used == len(data) and len(texts) == 1:
                        return StreamBatch(around.front + texts[0] + around.tail)
                    batch = StreamBatch(around.write(texts))
                    return batch if used == len(data) else batch.followed_by(self._feed(data[used:]))
            end = data.find(_BLANK) + len(_BLANK)
            if self._tries_left and (end == len(data) or self._splice is None) and self._is_one_without_end(data[:end]):
                return self._learn(data[:end], data[end:])
        elif self._splice is not None and len(_BLANK) <= (end := data.find(_BLANK) + len(_BLANK)) < len(data):
            batch = self._feed(data[:end])  # the end of an event that began earlier
            return batch if batch.done or batch.error else batch.followed_by(self.feed(data[end:]))
        return self._feed(data)

    def _learn(self, event: bytes, rest: bytes) -> StreamBatch:
        self._tries_left -= 1
        frames = self._with_front(event)
        batch = StreamBatch(frames) if frames else self._feed(event)
        if splice := self._plain.learn_relayed(event, batch.frames):
            self._splice, self._fronts = splice, (self._old_front, self._new_front)
            self._around = (*self._plain.unquoted(), splice.front[:-1], splice.tail[1:])
        return batch.followed_by(self.feed(rest)) if rest and not batch.error else batch

    def _feed(self, data: bytes) -> StreamBatch:
        if self._has_content and self._is_between:
            frames = self._with_front(data)
            if frames and self._is_one_without_end(data):
                return StreamBatch(frames)
        before: StreamBatch | None = None
        while not self._has_content or not self._old_front or not self._is_between:
            # two events at a time: the first of most streams has a role and no content
            end = data.find(_BLANK, data.find(_BLANK) + len(_BLANK)) + len(_BLANK)
            end = end if end >= len(_BLANK) else len(data)
            batch = super().feed(data[:end])
            before = batch if before is None else before.followed_by(batch)
            data = data[end:]
            if not data or batch.done or batch.error:
                return before
        events, end = self._plain_events(data)
        rest = super().feed(data[end:])
        if events:
            rest = StreamBatch(events).followed_by(rest)
        return rest if before is None else before.followed_by(rest)

    def _with_front(self, data: bytes) -> bytes:
        """`data`, one event, with our model's name, if it has only content unless it ends the answer; else empty."""
        if not self._old_front or not data.startswith(self._old_front) or b'"usage"' in data:
            return b""
        return self._new_front + data[len(self._old_front) :]

    def _is_one_without_end(self, data: bytes) -> bool:
        """Whether `data` is one whole event without a finish reason, error or usage."""
        return (
            data.startswith(_DATA)
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n")
            and sse.CR not in data
            and data.find(b"error") < 0
            and not _FINISH.search(data)
            and not _USAGE.search(data)
        )

    def _plain_events(self, data: bytes) -> tuple[bytes, int]:
        """The whole events at the start of `data` with content only that begin with ``_old_front``, as the client gets
        them, and how many bytes of `data` they are."""
        front, new = self._old_front, self._new_front
        if sse.CR in data or not data.startswith(front):
            return b"", 0
        end = data.rfind(_BLANK) + len(_BLANK)
        for odd in (b"error", b'"usage"'):
            at = data.find(odd, 0, end)
            if at >= 0:
                end = data.rfind(_BLANK, 0, at) + len(_BLANK)
        if finish := _FINISH.search(data, 0, end):
            end = data.rfind(_BLANK, 0, finish.start()) + len(_BLANK)
        if end < len(front) + len(_BLANK):
            return b"", 0
        events = data[len(front) : end - len(_BLANK)].split(_BLANK + front)
        if sse.LF in b"".join(events):  # one that begins otherwise, or has several lines
            return b"", 0
        return b"".join((new, (_BLANK + new).join(events), _BLANK)), end

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        is_valid = not self._has_content  # once it is read
        if is_valid or data[:1] != b"{" or _search(data, _FINISH) or _search(data, _USAGE):
            new = self._read_chunk(frame, data)
            if new is None:
                return
        else:
            new = data
        self._seen_data = True
        if contains(new, b'"usage"') and not self._call.summary.wants_usage:
            new = _NO_USAGE.sub(b"", new) if len(new) <= LARGE_BYTES else _without_null_usage(new)
        new = self._with_model(new, is_valid=is_valid)
        at = frame.raw.find(data) if not frame.raw.startswith(data, len(_DATA)) else len(_DATA)
        if at < 0 or frame.event == _NO_NAME:  # several data lines: JSON breaks lines only where a space would do
            name = b"event: " + frame.event + b"\n" if frame.event not in (b"", _NO_NAME) else b""
            out.append(name + sse.event(new.replace(b"\n", b" ")))
        else:
            out += (frame.raw[:at], new, frame.raw[at + len(data) :])

    def _read_chunk(self, frame: sse.Frame, data: bytes) -> bytes | None:
        """Reads a chunk, and returns its data for the client; None to drop it."""
        try:
            chunk = chunks.read_chunk(frame)
        except ValueError:
            if not self._has_content:
                raise BadResponse("its stream is not JSON", detail="broken JSON") from None
            return data
        if chunk is None:
            return None
        rows = chunks.choices_of(chunk)
        self.usage = chunks.merged(self.usage, counted := chunks.usage_of(chunk, rows))
        if not self._has_content:
            for row in rows:
                if chunks.ends_in_error(row):
                    raise BadResponse("it ended without an answer (finish_reason error)", detail="finish_reason error")
        self._note(rows)
        words = self._call.waits_for_words
        for row in rows:
            if self._has_content:
                break
            self._has_content = chunks.has_content(row, words=words)
        if self._call.summary.wants_usage or chunk.get("usage") is None:
            return data
        if not rows:
            return None  # the usage chunk that only we requested
        return data if counted is not None and (counted.prompt or counted.completion) else _without_usage(data)

    def _with_model(self, data: bytes, *, is_valid: bool) -> bytes:
        old, new = self._old_front[len(_DATA) :], self._new_front[len(_DATA) :]
        if old and data.startswith(old):
            return replaced(data, [((0, len(old)), new)]) if len(data) > LARGE_BYTES else new + data[len(old) :]
        if is_valid and (found := _MODEL.search(data, 0, FRONT)) and (place := span_of_model(data, found[1])):
            return self._renamed(data, place)
        try:
            spans = split_object(data)[1]
        except InvalidRequest:
            return data
        span = spans.get("model")
        if span is None:
            return set_model(data, None, self._model) if "choices" in spans else data
        if data[span[0] : span[0] + 1] != b'"':  # a number may begin like another
            return set_model(data, span, self._model)
        if len(data) > LARGE_BYTES:  # with so many bytes before its model, no other will begin like it
            return set_model(data, span, self._model)
        return self._renamed(data, span)

    def _renamed(self, data: bytes, span: Span) -> bytes:
        self._old_front = _DATA + data[: span[1]]
        self._new_front = _DATA + data[: span[0]] + self._model
        return replaced(data, [(span, self._model)])


@define
class EventReader(EventStream):
    """Reads deltas, for a door of another format than the provider's. See `patterned.Steps`."""

    blank: ClassVar[bytes] = _BLANK
    _calls: CallParts = field(init=False)
    plain: PlainChunks = field(factory=PlainChunks)
    tries_left: int = PATTERN_TRIES
    _is_all: bool = True
    """Whether the latest event was translated in full: a part of a call without a name yet is held back."""

    @_calls.default
    def _no_calls(self) -> CallParts:
        return CallParts(limits=self._limits)

    def feed(self, data: bytes) -> StreamBatch:
        if self._has_content and self._is_between:  # the common case: one chunk
            texts, used = self.plain.read(data)
            if used and used == len(data):
                self.tries_left = PATTERN_TRIES
                return StreamBatch(deltas=(self.plain.make(texts),))
        return feed_in_steps(self, data)

    def take_held(self) -> bytes:
        self._is_between = True
        return self._decoder.take()

    def read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        return self.plain.read(data) if self._has_content else ((), 0)

    def read(self, data: bytes) -> StreamBatch:
        return super().feed(data)

    def is_learnable(self, delta: Delta) -> bool:
        return self._is_all and self._call.endpoint is Endpoint.CHAT

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        try:
            chunk = chunks.read_chunk(frame)
        except ValueError:
            raise BadResponse("its stream is not JSON", detail="broken JSON") from None
        if chunk is None:
            return
        self._seen_data = True
        rows = chunks.choices_of(chunk)
        self.usage = chunks.merged(self.usage, chunks.usage_of(chunk, rows))
        gave_up = any(chunks.has_error_finish(row) for row in rows)
        self._note(rows)
        if len(data) > _ROWS_BYTES:  # an object is not made of each before they are counted
            calls, images = rows_of_chunk(rows)
            refuse_many_calls(calls, self._limits)
            refuse_many_items(images, self._limits)
        received = [] if gave_up and not self._has_content else deltas_of(rows)
        new = [self._calls.read(delta) for delta in received]
        deltas += new
        self._is_all = new == received
        if any(delta.tool_calls for delta in received):
            self.plain.forget_calls()
        self._has_content = self._has_content or any(delta.has_content for delta in new)
        if gave_up:  # most formats have no such reason, and would report the text as a complete answer
            raise BadResponse("it ended its answer with an error (finish_reason error)", detail="finish_reason error")

    def _end(self) -> None:
        if self._calls.has_nameless:
            raise nameless_call()


def _search(data: bytes, pattern: re.Pattern[bytes]) -> bool:
    return pattern.search(data) is not None if len(data) <= EVENT_BYTES else holds(data, pattern)


def _without_null_usage(data: bytes) -> bytes:
    """As a substitution of ``_NO_USAGE``, without checking each comma."""
    edits: list[tuple[Span, bytes]] = []
    at = data.find(b'"usage"')
    while at >= 0:
        before = data[max(0, at - _BLANKS) : at].rstrip()
        if before.endswith(b",") and (found := _NULL_USAGE.match(data, at)):
            edits.append(((max(0, at - _BLANKS) + len(before) - 1, found.end()), b""))
        at = data.find(b'"usage"', at + 1)
    return replaced(data, edits)


def _without_usage(data: bytes) -> bytes:
    """`data` without its counters, which are all zero: Ollama's ``/v1/completions`` sends them with every chunk."""
    try:
        span = split_object(data)[1].get("usage")
    except InvalidRequest:
        return data
    if span is None:
        return data
    before = data[: span[0]].rstrip().removesuffix(b":").rstrip().removesuffix(b'"usage"').rstrip()
    after = data[span[1] :].lstrip()
    return before.removesuffix(b",") + after if after.startswith(b"}") else before + after.removeprefix(b",")
