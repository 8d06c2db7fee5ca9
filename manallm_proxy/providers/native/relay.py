"""Relays a stream of named events as bytes: the common part of the streams of Responses and Messages.

Nearly every event only adds some text. Such an event is recognised by its bytes, and not decoded. One that may begin or
end something, count tokens, or report an error is decoded.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import msgspec
from attrs import evolve, field

from manallm_proxy.contract.answers import AnswerLimits, StreamBatch, Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.json_object import BOM, DecodeErrors, encode, replace_lone_surrogates
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_too_much
from manallm_proxy.providers.classify import in_band, parse_error
from manallm_proxy.providers.native.plain_events import NOT_PLAIN, PlainEvents
from manallm_proxy.providers.openai import chunks
from manallm_proxy.providers.patterned import HELD, PATTERN_TRIES

_BLANK: Final = b"\n\n"
_END: Final = b"}\n\n"
"""Of an event that holds an object, though it may be broken inside."""
_NAME: Final = b"event: "
_SILENT: Final = chunks.KEEP_ALIVES | {b"[DONE]"}
NULL: Final = msgspec.Raw(b"null")
"""A member that is not there."""


class Event(msgspec.Struct, gc=False):
    """What is looked at of an event: a subclass adds its format's members. Those that are JSON are decoded only if what
    they say matters; the syntax of all others is checked at the same time."""

    type: Any = None
    error: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    delta: msgspec.Raw = NULL


@define
class NamedRelay:
    """See `wire.Translator`. Events that clients do without, and those that the door writes itself, are dropped."""

    marks: ClassVar[tuple[bytes, ...]]
    """Every event that must be parsed contains one of these; the likeliest first."""
    plain: ClassVar[PlainEvents]
    """Recognises the events that need no parsing."""
    reads: ClassVar[msgspec.json.Decoder[Any]]
    """Decodes an event, of the format's own class."""

    _call: Call
    _target: Target
    _limits: AnswerLimits = AnswerLimits()
    usage: Usage | None = None
    _model: bytes = field(default=b"", repr=False)
    _decoder: sse.Decoder = field(factory=sse.Decoder)
    _has_content: bool = False
    _said: bool = False
    """Whether the answer has content."""
    _ended: bool = False
    _tries: int = PATTERN_TRIES
    """How many more checks of a run may fail, since each of them is wasted work."""

    def __attrs_post_init__(self) -> None:
        self._model = encode(str(self._target))

    @property
    def held(self) -> int:
        return self._decoder.held

    def is_open(self, data: bytes) -> bool:
        return self._decoder.is_open(data)

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_plain(data):
            return StreamBatch(data)
        if self._has_content and 0 < self._decoder.held <= HELD:
            data = self._decoder.take() + data  # an event cut between two reads is recognised with those after it
        out: list[bytes] = []
        before, error, at = self._has_content, None, 0
        try:
            while at < len(data) and not self._ended:
                at = self._feed(data, at, out)
        except ProviderError as failure:
            error = failure
        return self._batch(b"".join(out), has_content=self._has_content and not before, error=error)

    def _feed(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Appends what the events `at` that position become: a run of plain ones, else a single one. Returns their end.

        Raises the ProviderError that they report.
        """
        is_between = self._decoder.is_between
        if is_between and self._has_content and self._tries:
            end = self.plain.until(data, at)
            if end > at:
                out.append(data[at:end])
                return end
            self._tries -= end == NOT_PLAIN
        end = data.find(_BLANK, at)
        raw = data[at : end + len(_BLANK)] if end >= 0 else data[at:]
        end = at + len(raw)
        if is_between and raw.startswith(_NAME) and raw.endswith(_BLANK) and b"\r" not in raw:  # as nearly all are
            self._add(sse.parse(raw), out)
            return end
        try:
            frames = self._decoder.feed(raw)
        except sse.FrameTooLong:
            raise BadResponse("it sent an event without an end", detail="endless event") from None
        for frame in frames:
            self._add(frame, out)
            if self._ended:
                break
        return end

    def _batch(self, frames: bytes, *, has_content: bool, error: ProviderError | None) -> StreamBatch:
        """The batch for one read."""
        return StreamBatch(frames, has_content=has_content, done=self._ended, error=error)

    def close(self) -> StreamBatch:
        """The end of the provider's body: an error, unless the last event ends the answer."""
        rest = self._decoder.close()
        batch = self.feed(rest + _BLANK) if rest and _is_whole(rest) else StreamBatch()
        if batch.done or batch.error:
            return batch
        error = Disconnected("its stream ended in mid answer", detail="cut stream")
        return evolve(batch, error=error)

    def _is_plain(self, data: bytes) -> bool:
        """Whether this is one whole event, with its name, which has not to be read: what nearly every read brings."""
        if not (self._has_content and data.startswith(_NAME) and data.find(_BLANK) == len(data) - len(_BLANK)):
            return False
        return self._is_unmarked(data) and self._decoder.is_between

    def _is_unmarked(self, event: bytes) -> bool:
        """Whether an event with a name, after which nothing else stands here, can be no error and changes nothing."""
        for mark in self.marks:
            if mark in event:
                return False
        return event.endswith(_END) and b"\r" not in event and b"error" not in event

    def _add(self, frame: sse.Frame, out: list[bytes]) -> None:
        """Appends the bytes for the client. Raises the ProviderError that `frame` reports."""
        if len(frame.raw) > EVENT_BYTES:
            refuse_too_much(frame.raw, self._limits)
        if self._has_content and frame.raw.startswith(_NAME) and self._is_unmarked(frame.raw):
            out.append(frame.raw)  # as if it were alone in its read, whatever is wrong with it
            return
        if frame.fields:
            chunks.refuse_odd_fields(frame)
        data = frame.data
        if data is None or (not data.startswith(b'{"') and data.strip() in _SILENT):
            return
        event = self._read(frame, data)
        if event is None:
            return
        kind = event.type if type(event.type) is str else frame.event.decode(errors="replace")
        if kind == "error" or event.error != NULL:
            _refuse(frame, kind)
        new = self._take(kind, event, data)
        if new is data and frame.event and b"\n" not in data:
            out.append(frame.raw)
        elif new is not None:
            out.append(_written(frame, kind, new))

    def _read(self, frame: sse.Frame, data: bytes) -> Any:
        """The event in `frame`, whose data is `data`; None if it is JSON but no object. Raises BadResponse."""
        try:
            if not data.isascii():
                data.decode()
            return self.reads.decode(data)
        except (msgspec.ValidationError, *DecodeErrors):
            return (
                self.reads.decode(replace_lone_surrogates(data.removeprefix(BOM))) if _told(frame) is not None else None
            )

    def _take(self, kind: str, event: Any, data: bytes) -> bytes | None:
        """Reads one event; returns its data for the client, or None to drop it."""
        raise NotImplementedError  # each format has its own

    def _says(self, said: object) -> None:
        """Notes whether an event has content (`said` is not empty): content commits."""
        if said:
            self._said = self._has_content = True

    def _ends(self, *, said: bool = False) -> None:
        """The answer is complete. Its end alone commits, unless words are waited for."""
        self._ended = True
        self._has_content = self._has_content or said or not self._call.waits_for_words


def _told(frame: sse.Frame) -> dict[str, Any] | None:
    """All that the event in `frame` says; None if it is JSON but no object. Raises BadResponse."""
    try:
        return chunks.read_chunk(frame)
    except ValueError:
        raise BadResponse("its stream is not JSON", detail="broken JSON") from None


def _refuse(frame: sse.Frame, kind: str) -> None:
    """Raises the error that `frame`, an event of that kind, reports: it may be an empty one."""
    event = _told(frame) or {}
    error = event.get("error")
    if kind == "error" or is_error_value(error):
        raise in_band(parse_error({"error": error} if is_error_value(error) else event))


def _is_whole(rest: bytes) -> bool:
    """Whether `rest` is complete except for its blank line."""
    frame = sse.parse(rest + _BLANK)
    try:
        return frame.data is not None and chunks.read_chunk(frame) is not None
    except ValueError:
        return False


def _written(frame: sse.Frame, kind: str, data: bytes) -> bytes:
    """`frame` with its data replaced by `data`, and with a name: SDKs drop events without one."""
    at = frame.raw.find(frame.data or b"") if frame.event else -1
    if at < 0:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data.replace(b"\n", b" "))
    return frame.raw[:at] + data + frame.raw[at + len(frame.data or b"") :]
