"""A streamed answer of an OpenAI-compatible server: frames relayed with their bytes.

What the crowd does differently is in wire.md C.2; what counts as saying something, and as an error, in E.3.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import define, field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, StreamBatch, Usage
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.compose import Composer, Delta, ToolCall
from manallm_proxy.openai.schema import DecodeErrors, decode, encode, split_object, usage_from_openai
from manallm_proxy.providers.classify import ErrorDetails, envelope, in_band, parse_error
from manallm_proxy.providers.openai.reply import (
    decoded,
    refuse_choice_error,
    refuse_error,
    reply_object,
    require_list,
    set_model,
)

BODY_LIMIT: Final = sse.FRAME_LIMIT
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')


@define
class EventRelay:
    """A stream of SSE frames, relayed with their bytes.

    Each chunk is looked at with bytes methods; JSON is decoded only until something was said, and where a
    finish reason, usage or an error may be in it.
    """

    _call: Call
    _target: Target
    usage: Usage | None = None
    commentable: bool = True
    _decoder: sse.Decoder = field(factory=sse.Decoder)
    _said: bool = False
    _seen_data: bool = False
    _finished: set[int] = field(factory=set)
    _model: bytes = b""
    _old_front: bytes = field(default=b"", repr=False)
    _new_front: bytes = field(default=b"", repr=False)
    """All chunks of a stream begin alike up to their model: what that looks like, and what it becomes."""

    def __attrs_post_init__(self) -> None:
        self._model = encode(str(self._target))

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_plain(data):
            return StreamBatch(b"data: " + self._new_front + data[len(b"data: ") + len(self._old_front) :])
        try:
            frames = self._decoder.feed(data)
        except sse.FrameTooLong:
            return StreamBatch(error=BadResponse("it sent an event without an end", detail="endless event"))
        return self._pieces(frames)

    def close(self) -> StreamBatch:
        rest = self._decoder.close()
        if rest:
            frame = sse.parse(rest + b"\n\n")
            if frame.data is not None and frame.data != b"[DONE]" and not _is_json(frame.data):
                return StreamBatch(error=_cut())
            batch = self._pieces([frame])
            if batch.done or batch.error:
                return batch
        else:
            batch = StreamBatch()
        if self._is_complete or not self._seen_data:
            return StreamBatch(batch.frames, has_content=batch.has_content, done=True)
        return StreamBatch(batch.frames, has_content=batch.has_content, error=_cut())

    @property
    def _is_complete(self) -> bool:
        """Every choice has its finish reason."""
        span = self._call.summary.spans.get("n")
        try:
            n = decode(self._call.body[span[0] : span[1]]) if span else 1
        except DecodeErrors:
            n = 1
        return len(self._finished) >= (n if isinstance(n, int) and n > 0 else 1)

    def _is_plain(self, data: bytes) -> bool:
        """Whether this is one event as most are: whole, alone, nothing in it but more of what is said already."""
        return (
            self._said
            and bool(self._old_front)
            and data.startswith(self._old_front, len(b"data: "))
            and data.startswith(b"data: ")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n")
            and b"\r" not in data
            and b"error" not in data
            and self._decoder.is_between
            and not _FINISH.search(data)
            and not _USAGE.search(data)
        )

    def _pieces(self, frames: list[sse.Frame]) -> StreamBatch:
        out: list[bytes] = []
        before = self._said
        for frame in frames:
            if frame.data == b"[DONE]":
                return StreamBatch(b"".join(out), has_content=self._said and not before, done=True)
            try:
                out.append(self._relay(frame))
            except ProviderError as error:
                return StreamBatch(b"".join(out), has_content=self._said and not before, error=error)
        return StreamBatch(b"".join(out), has_content=self._said and not before)

    def _relay(self, frame: sse.Frame) -> bytes:
        """`frame` as it leaves, empty where it is taken out. ProviderError where it tells of one."""
        if frame.fields:
            self._odd_fields(frame)
        data = frame.data
        if data is None:
            return frame.raw
        self._seen_data = True
        if frame.event == b"error" or b'error"' in data or b'"error_type"' in data:
            _refuse_event(frame)
        worth_a_look = not self._said or _FINISH.search(data) or _USAGE.search(data)
        if worth_a_look and self._look(data):
            return b""
        new = self._with_model(data)
        at = frame.raw.find(data)
        if at < 0:  # several data lines: JSON breaks lines only where a space would do
            name = b"event: " + frame.event + b"\n" if frame.event else b""
            return name + sse.event(new.replace(b"\n", b" "))
        return frame.raw[:at] + new + frame.raw[at + len(data) :]

    def _odd_fields(self, frame: sse.Frame) -> None:
        if b"error" in frame.fields:  # llama.cpp before September 2025
            raise in_band(envelope(frame.raw.partition(b"error:")[2]))
        if frame.data is None and any(name[:1] in (b"{", b"<") for name in frame.fields):
            # no event at all: a body that SDKs would skip in silence (wire.md A.4)
            spoken = envelope(frame.raw)
            raise in_band(spoken) if spoken.message else BadResponse("its stream is none", detail="not an event stream")
        if b"id" in frame.fields:
            self.commentable = False

    def _look(self, data: bytes) -> bool:
        """Notes what a chunk says; True where it is the usage chunk that only we asked for."""
        try:
            chunk = decode(data)
        except DecodeErrors:
            chunk = None
        if not isinstance(chunk, dict):
            if not self._said:
                raise BadResponse("its stream is not JSON", detail="broken JSON")
            return False
        usage = chunk.get("usage")
        if usage is None and isinstance(groq := chunk.get("x_groq"), dict):
            usage = groq.get("usage")
        self.usage = usage_from_openai(usage) or self.usage
        choices = chunk.get("choices")
        rows = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        self._finished.update(_index(c) for c in rows if c.get("finish_reason"))
        self._said = self._said or any(_says(c) for c in rows)
        return choices == [] and usage is not None and not self._call.summary.wants_usage

    def _with_model(self, data: bytes) -> bytes:
        if self._old_front and data.startswith(self._old_front):
            return self._new_front + data[len(self._old_front) :]
        try:
            spans = split_object(data)[1]
        except InvalidRequest:
            return data
        span = spans.get("model")
        if span is None:
            return set_model(data, None, self._model) if "choices" in spans else data
        if data[span[0] : span[0] + 1] != b'"':  # a number may begin like another
            return set_model(data, span, self._model)
        self._old_front = data[: span[1]]
        self._new_front = data[: span[0]] + self._model
        return self._new_front + data[span[1] :]


def _refuse_event(frame: sse.Frame) -> None:
    """An error in any of the crowd's forms (wire.md C.2); returns where the words only stand in a text."""
    data = frame.data or b""
    try:
        chunk = decode(data)
    except DecodeErrors:
        if frame.event == b"error":
            raise in_band(ErrorDetails(message=data.decode(errors="replace"))) from None
        return
    if not isinstance(chunk, dict):
        if frame.event == b"error":
            raise in_band(parse_error({"error": chunk}))
        return
    groq = chunk.get("x_groq")
    error = chunk.get("error") or (groq.get("error") if isinstance(groq, dict) else None)
    if error:
        raise in_band(parse_error({"error": error}))
    if frame.event == b"error" or chunk.get("error_type") or chunk.get("error_message"):
        raise in_band(parse_error(chunk))


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _says(choice: dict[str, Any]) -> bool:
    """Whether a choice holds more than a role: content, reasoning, a tool call, audio, text, a finish reason."""
    if choice.get("finish_reason") or choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")


def _cut() -> Disconnected:
    return Disconnected("its stream ended in mid answer", detail="cut stream")


def _is_json(data: bytes) -> bool:
    try:
        decode(data)
    except DecodeErrors:
        return False
    return True


@define
class Sniffer:
    """A streamed request answered without ``text/event-stream``: SSE all the same, or one body (wire.md C.3.3)."""

    _call: Call
    _target: Target
    _relay: EventRelay
    _held: bytes = field(default=b"", repr=False)
    _is_sse: bool | None = None

    @property
    def usage(self) -> Usage | None:
        return self._relay.usage

    @property
    def commentable(self) -> bool:
        return self._relay.commentable

    def feed(self, data: bytes) -> StreamBatch:
        if self._is_sse:
            return self._relay.feed(data)
        self._held += data
        start = self._held.lstrip()
        if self._is_sse is None and len(start) >= 6:
            self._is_sse = start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
            if self._is_sse:
                return self._relay.feed(self._held)
        if len(self._held) > BODY_LIMIT:
            return StreamBatch(error=BadResponse("its answer is no event stream", detail="not an event stream"))
        return StreamBatch()

    def close(self) -> StreamBatch:
        if self._is_sse:
            return self._relay.close()
        if not self._held.strip():
            return StreamBatch(done=True)
        try:
            values, _ = reply_object(self._held)
            refuse_error(values)
            require_list(values, "choices")
            return self._as_stream(decoded(self._held))
        except ProviderError as error:
            return StreamBatch(error=error)

    def _as_stream(self, body: dict[str, Any]) -> StreamBatch:
        """A complete answer as the chunks that were asked for."""
        composer = Composer(self._call, self._target)
        usage = self._relay.usage = usage_from_openai(body.get("usage"))
        rows = [c for c in body["choices"] if isinstance(c, dict)]
        refuse_choice_error(rows)
        chunks = [composer.chunk(_delta_of(row, index)) for index, row in enumerate(rows)]
        if usage and (last := composer.usage_chunk(usage)):
            chunks.append(last)
        return StreamBatch(b"".join(map(sse.event, chunks)), has_content=bool(rows), done=True)


def _words(content: object) -> str:
    """A text, or the texts of a list of blocks (Mistral)."""
    if isinstance(content, list):
        return "".join(_words(block.get("text")) for block in content if isinstance(block, dict))
    return content if isinstance(content, str) else ""


def _delta_of(choice: dict[str, Any], index: int) -> Delta:
    """A complete choice as one step."""
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    calls = message.get("tool_calls")
    calls = [c for c in calls if isinstance(c, dict)] if isinstance(calls, list) else []
    functions = [(c, f) for c in calls if isinstance(f := c.get("function"), dict)]
    return Delta(
        content=_words(message.get("content")) or _words(choice.get("text")),
        reasoning=_words(message.get("reasoning_content")) or _words(message.get("reasoning")),
        tool_calls=tuple(
            ToolCall(str(f.get("name", "")), str(f.get("arguments", "")), id=str(c.get("id") or "call_0"))
            for c, f in functions
        ),
        finish=str(choice.get("finish_reason") or "stop"),
        index=index,
    )
