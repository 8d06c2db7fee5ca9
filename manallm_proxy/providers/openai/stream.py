"""A streamed answer of an OpenAI-compatible server: relayed with its bytes, or read into deltas.

`EventRelay` looks at each event with bytes methods. JSON is decoded only until there is content, and where a finish
reason, usage or an error may be in it. `EventReader` decodes every event, for doors that speak another format.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field

from manallm_proxy.contract.answers import AnswerLimits, Delta, StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.json_object import (
    DecodeErrors,
    decode,
    decode_leniently,
    encode,
    holds,
    split_object,
)
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_too_much
from manallm_proxy.providers.named_calls import nameless
from manallm_proxy.providers.openai import chunks
from manallm_proxy.providers.openai.call_parts import CallParts
from manallm_proxy.providers.openai.deltas import deltas_of
from manallm_proxy.providers.openai.plain_chunks import PlainChunks
from manallm_proxy.providers.openai.reply import set_model

_DATA: Final = b"data: "
_BLANK: Final = b"\n\n"
"""What ends an event whose lines end in LF."""
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_NO_USAGE: Final = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')


@define
class EventStream:
    """What `EventRelay` and `EventReader` share: frames, keep-alives, errors, and when an answer is complete."""

    _call: Call
    _target: Target
    _limits: AnswerLimits = AnswerLimits()
    usage: Usage | None = None
    _decoder: sse.Decoder = field(factory=sse.Decoder)
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
        except sse.FrameTooLong:
            return StreamBatch(error=BadResponse("it sent an event without an end", detail="endless event"))
        return self._batch(frames)

    def close(self) -> StreamBatch:
        """The end of the provider's body: complete with ``[DONE]``, or with every finish reason."""
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
                error = failure
                break
        return StreamBatch(b"".join(out), tuple(deltas), self._has_content and not before, done, error)

    def _add(self, frame: sse.Frame, out: list[bytes], deltas: list[Delta]) -> None:
        """Appends what `frame` becomes: nothing for a keep-alive. Raises the ProviderError that it reports."""
        if len(frame.raw) > EVENT_BYTES:
            refuse_too_much(frame.raw, self._limits)
        if frame.fields:
            chunks.refuse_odd_fields(frame)
        data = frame.data
        is_error = frame.event == b"error"
        if data is None or frame.event == b"ping" or (data.strip() in chunks.KEEP_ALIVES and not is_error):
            return  # comments and empty events: SDKs parse them as JSON and fail
        if is_error or b'error"' in data or b'"error_type"' in data:
            chunks.refuse_error(frame)
        self._take(frame, data, out, deltas)

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        raise NotImplementedError  # relaying and reading differ here

    def _end(self) -> None:
        """Raises BadResponse if what came up to ``[DONE]`` is no whole answer."""


@define
class EventRelay(EventStream):
    """Frames with their bytes, but for ``model``, and for the usage that only we asked for."""

    _model: bytes = b""
    _old_front: bytes = field(default=b"", repr=False)
    _new_front: bytes = field(default=b"", repr=False)
    """All events of a stream begin with the same bytes, up to their model: those bytes, and what they become."""

    def __attrs_post_init__(self) -> None:
        self._model = encode(str(self._target))

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_plain(data):
            return StreamBatch(self._new_front + data[len(self._old_front) :])
        batches: list[StreamBatch] = []
        while not self._has_content or not self._old_front or not self._decoder.is_between:  # one event at a time
            end = data.find(_BLANK) + len(_BLANK)
            end = end if end >= len(_BLANK) else len(data)
            batches.append(super().feed(data[:end]))
            data = data[end:]
            if not data or batches[-1].done or batches[-1].error:
                return _joined(batches)
        end = self._plain_until(data)
        return _joined([*batches, StreamBatch(self._renamed(data[:end])), super().feed(data[end:])])

    def _is_plain(self, data: bytes) -> bool:
        """Whether this is one whole event with content only: what nearly every read brings."""
        return (
            self._has_content
            and bool(self._old_front)
            and data.startswith(self._old_front)
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n")
            and b"\r" not in data
            and b"error" not in data
            and b'"usage"' not in data
            and self._decoder.is_between
            and not _FINISH.search(data)
        )

    def _plain_until(self, data: bytes) -> int:
        """How many bytes at the start of `data` are whole events with content only that begin with ``_old_front``."""
        front = self._old_front
        if b"\r" in data or not data.startswith(front):
            return 0
        end = data.rfind(_BLANK) + len(_BLANK)
        for odd in (b"error", b'"usage"'):
            at = data.find(odd, 0, end)
            if at >= 0:
                end = data.rfind(_BLANK, 0, at) + len(_BLANK)
        if finish := _FINISH.search(data, 0, end):
            end = data.rfind(_BLANK, 0, finish.start()) + len(_BLANK)
        if end < len(front) or data.count(b"\n", 0, end) != 2 * data.count(_BLANK + front, 0, end) + 2:
            return 0
        return end

    def _renamed(self, events: bytes) -> bytes:
        old, new = self._old_front, self._new_front
        return new + events[len(old) :].replace(_BLANK + old, _BLANK + new) if events else b""

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        if not self._has_content or data[:1] != b"{" or _search(data, _FINISH) or _search(data, _USAGE):
            new = self._read_chunk(frame, data)
            if new is None:
                return
        else:
            new = data
        self._seen_data = True
        if b'"usage"' in new and not self._call.summary.wants_usage:
            new = _NO_USAGE.sub(b"", new)
        new = self._with_model(new)
        at = frame.raw.find(data)
        if at < 0:  # several data lines: JSON breaks lines only where a space would do
            name = b"event: " + frame.event + b"\n" if frame.event else b""
            out.append(name + sse.event(new.replace(b"\n", b" ")))
        else:
            out.append(frame.raw[:at] + new + frame.raw[at + len(data) :])

    def _read_chunk(self, frame: sse.Frame, data: bytes) -> bytes | None:
        """Reads a chunk, and returns its data as the client gets it; None if it is not for the client."""
        try:
            chunk = chunks.read_chunk(frame)
        except ValueError:
            if not self._has_content:
                raise BadResponse("its stream is not JSON", detail="broken JSON") from None
            return data
        if chunk is None:
            return None
        self.usage = chunks.merged(self.usage, counted := chunks.usage_of(chunk))
        rows = chunks.choices_of(chunk)
        if not self._has_content and any(chunks.ends_in_error(row) for row in rows):
            raise BadResponse("it ended without an answer (finish_reason error)", detail="finish_reason error")
        self._finished.update(chunks.index_of(row) for row in rows if row.get("finish_reason"))
        words = self._call.waits_for_words
        self._has_content = self._has_content or any(chunks.has_content(row, words=words) for row in rows)
        if self._call.summary.wants_usage or chunk.get("usage") is None:
            return data
        if not rows:
            return None  # the usage chunk that only we asked for
        return data if counted is not None and (counted.prompt or counted.completion) else _without_usage(data)

    def _with_model(self, data: bytes) -> bytes:
        old, new = self._old_front[len(_DATA) :], self._new_front[len(_DATA) :]
        if old and data.startswith(old):
            return new + data[len(old) :]
        try:
            spans = split_object(data)[1]
        except InvalidRequest:
            return data
        span = spans.get("model")
        if span is None:
            return set_model(data, None, self._model) if "choices" in spans else data
        if data[span[0] : span[0] + 1] != b'"':  # a number may begin like another
            return set_model(data, span, self._model)
        self._old_front = _DATA + data[: span[1]]
        self._new_front = _DATA + data[: span[0]] + self._model
        return data[: span[0]] + self._model + data[span[1] :]


def _joined(batches: list[StreamBatch]) -> StreamBatch:
    """Of relayed events; the last of `batches` tells of the end."""
    if len(batches) == 1:
        return batches[0]
    frames, last = b"".join([batch.frames for batch in batches]), batches[-1]
    has_content = any(batch.has_content for batch in batches)
    return StreamBatch(frames, has_content=has_content, done=last.done, error=last.error)


@define
class EventReader(EventStream):
    """Deltas, for a door that speaks another format than the provider."""

    _calls: CallParts = field(factory=CallParts)
    _plain: PlainChunks = field(factory=PlainChunks)

    def feed(self, data: bytes) -> StreamBatch:
        if self._has_content and self._decoder.is_between:
            if words := self._plain.words(data):
                return StreamBatch(deltas=(Delta(words),))
            batch = super().feed(data)
            if len(batch.deltas) == 1 and data.find(_BLANK) == len(data) - 2 and self._call.endpoint is Endpoint.CHAT:
                self._plain.learn(data, batch.deltas[0])
            return batch
        return super().feed(data)

    def _take(self, frame: sse.Frame, data: bytes, out: list[bytes], deltas: list[Delta]) -> None:
        try:
            chunk = chunks.read_chunk(frame)
        except ValueError:
            raise BadResponse("its stream is not JSON", detail="broken JSON") from None
        if chunk is None:
            return
        self._seen_data = True
        self.usage = chunks.merged(self.usage, chunks.usage_of(chunk))
        rows = chunks.choices_of(chunk)
        gave_up = any(chunks.gives_up(row) for row in rows)
        self._finished.update(chunks.index_of(row) for row in rows if row.get("finish_reason"))
        new = [] if gave_up and not self._has_content else [self._calls.read(delta) for delta in deltas_of(rows)]
        deltas += new
        self._has_content = self._has_content or any(delta.has_content for delta in new)
        if gave_up:  # most formats have no word for it, and would call what was said the whole answer
            raise BadResponse("it ended its answer with an error (finish_reason error)", detail="finish_reason error")

    def _end(self) -> None:
        if self._calls.has_nameless:
            raise nameless()


def _search(data: bytes, pattern: re.Pattern[bytes]) -> bool:
    return pattern.search(data) is not None if len(data) <= EVENT_BYTES else holds(data, pattern)


def promised_choices(call: Call) -> int:
    """How many choices a complete answer has: ``n`` for each prompt."""
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


def _cut() -> Disconnected:
    return Disconnected("its stream ended in mid answer", detail="cut stream")


def _is_json(data: bytes) -> bool:
    try:
        decode_leniently(data)
    except DecodeErrors:
        return False
    return True
