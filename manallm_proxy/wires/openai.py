"""OpenAI's own dialect, and that of everybody who speaks it: relayed, not rewritten.

A request keeps its bytes but for ``model`` and, where we count tokens, ``stream_options``. A reply keeps
its bytes but for ``model``, and for the usage chunk that only we asked for. What the crowd does
differently is in wire.md C; the rules for reading it are C.3.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from manallm_proxy import sse
from manallm_proxy.chain import Entry, Target
from manallm_proxy.compose import Composer, Delta, ToolCall, vector_text
from manallm_proxy.errors import BadResponse, Disconnected, FirstByteTimeout, InvalidRequest, ProviderError
from manallm_proxy.schema import TOOLS, VISION, DecodeErrors, Usage, decode, encode, split_object
from manallm_proxy.upstream import Answer, Call, Endpoint, Listed, Piece
from manallm_proxy.wires import Request, Translator
from manallm_proxy.wires.classify import Said, classify, envelope, in_band, said

BODY_LIMIT: Final = sse.FRAME_LIMIT
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_VECTOR_IS_TEXT: Final = re.compile(rb'"embedding"\s*:\s*"')


@define
class OpenAIWire:
    """`asks_usage`: whether ``stream_options.include_usage`` may be sent; cleared by a provider that refuses it."""

    asks_usage: bool = True
    probe_path: str = "models"
    first_byte_error: type[FirstByteTimeout] = FirstByteTimeout

    def request(self, call: Call, entry: Entry) -> Request:
        ask = self.asks_usage and call.head.stream and not call.head.wants_usage
        return Request(call.endpoint.value, call.head.rewrite(call.body, entry.target.model, ask_usage=ask))

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        spoken = envelope(body)
        return classify(
            status,
            headers,
            spoken.message,
            kind=spoken.kind,
            code=spoken.code,
            param=spoken.param,
            retry_after=spoken.retry_after,
        )

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Mistral and other strict servers refuse ``stream_options``: then ours is not sent again (wire.md A.1)."""
        if status not in (400, 422) or b"stream_options" not in body or call.head.wants_usage or not call.head.stream:
            return None
        plain = Request(call.endpoint.value, call.head.rewrite(call.body, entry.target.model))
        if not self.asks_usage and "stream_options" in call.head.spans:
            return None
        self.asks_usage = False
        return plain

    def answer(self, call: Call, entry: Entry, body: bytes) -> Answer:
        values, spans = _reply_object(body)
        _refuse_error(values)
        if call.endpoint is Endpoint.EMBEDDINGS:
            _require_list(values, "data")
            body = _embeddings_as_asked(call, body, values, spans)
            spans = _reply_object(body)[1]
        else:
            _require_list(values, "choices")
            if b'"error"' in bytes(values["choices"]):
                _refuse_choice_error(decode(values["choices"]))
        usage = Usage.from_openai(decode(values["usage"])) if "usage" in values else None
        return Answer(set_model(body, spans.get("model"), encode(str(entry.target))), usage)

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        relay = EventRelay(call, entry.target)
        return relay if "event-stream" in content_type else Sniffer(call, entry.target, relay)

    def listed(self, body: bytes) -> tuple[Listed, ...]:
        try:
            data = decode(body)
        except DecodeErrors:
            raise BadResponse("its list of models is not JSON", detail="model list") from None
        rows = data.get("data") if isinstance(data, dict) else data
        return tuple(_listed(r) for r in rows or () if isinstance(r, dict) and isinstance(r.get("id"), str))


def _listed(row: dict[str, Any]) -> Listed:
    created = row.get("created")
    return Listed(row["id"], created if isinstance(created, int) else 0, _capabilities(row))


def _capabilities(row: dict[str, Any]) -> frozenset[str] | None:
    """OpenRouter tells parameters and modalities; it says nothing of embeddings, so those are not denied."""
    parameters, architecture = row.get("supported_parameters"), row.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    if not isinstance(parameters, list) or not isinstance(modalities, list):
        return None
    has = {"completion", "embedding"}
    has |= {TOOLS} if "tools" in parameters else set()
    has |= {VISION} if "image" in modalities else set()
    return frozenset(has)


def set_model(data: bytes, span: tuple[int, int] | None, model: bytes) -> bytes:
    """The JSON object `data` with its ``model`` (at `span`, None: it has none) as the JSON string `model`."""
    if span is None:
        brace = data.index(b"{") + 1
        comma = b"" if data[brace:].lstrip()[:1] == b"}" else b","
        return data[:brace] + b'"model":' + model + comma + data[brace:]
    return data[: span[0]] + model + data[span[1] :]


def _reply_object(body: bytes) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    try:
        return split_object(body)
    except InvalidRequest:
        detail = "empty body" if not body.strip() else "html" if body.lstrip()[:1] == b"<" else "not a JSON object"
        raise BadResponse(f"its answer is not what was asked for ({detail})", detail=detail) from None


def _refuse_error(values: Mapping[str, Any]) -> None:
    """A 200 with an error inside (wire.md E.2)."""
    if bytes(values.get("error", b"null")) != b"null":
        raise in_band(said({"error": decode(values["error"])}))


def _refuse_choice_error(choices: Any) -> None:
    """OpenRouter's non-stream form: ``choices[0].error``, perhaps behind partial content."""
    for choice in choices:
        if isinstance(choice, dict) and choice.get("error"):
            raise in_band(said({"error": choice["error"]}))


def _require_list(values: Mapping[str, Any], key: str) -> None:
    if bytes(values.get(key, b"null"))[:1] != b"[":
        raise BadResponse(f"its answer has no '{key}'", detail=f"no {key}")


def _embeddings_as_asked(
    call: Call, body: bytes, values: Mapping[str, Any], spans: dict[str, tuple[int, int]]
) -> bytes:
    """base64 exactly when it was asked for: Node's SDK 6 reads floats as garbage then (wire.md A.5)."""
    raw = bytes(values["data"])
    span = call.head.spans.get("encoding_format")
    asked = span is not None and call.body[span[0] : span[1]] == b'"base64"'
    if asked == bool(_VECTOR_IS_TEXT.search(raw)):
        return body
    try:
        rows = decode(raw)
        for row in rows:
            row["embedding"] = vector_text(row["embedding"]) if asked else _unpack(row["embedding"])
    except (*DecodeErrors, TypeError, KeyError, ValueError, struct.error):
        raise BadResponse("its embeddings are not vectors", detail="embeddings") from None
    start, end = spans["data"]
    return body[:start] + encode(rows) + body[end:]


def _unpack(text: str) -> list[float]:
    raw = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


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
    _old_front: bytes = b""
    _new_front: bytes = b""
    """All chunks of a stream begin alike up to their model: what that looks like, and what it becomes."""

    def __attrs_post_init__(self) -> None:
        self._model = encode(str(self._target))

    def feed(self, data: bytes) -> Piece:
        try:
            frames = self._decoder.feed(data)
        except sse.FrameTooLong:
            return Piece(error=BadResponse("it sent an event without an end", detail="endless event"))
        return self._pieces(frames)

    def close(self) -> Piece:
        rest = self._decoder.close()
        if rest:
            frame = sse.parse(rest + b"\n\n")
            if frame.data is not None and frame.data != b"[DONE]" and not _is_json(frame.data):
                return Piece(error=_cut())
            piece = self._pieces([frame])
            if piece.done or piece.error:
                return piece
        else:
            piece = Piece()
        if self._is_complete or not self._seen_data:
            return Piece(piece.frames, says=piece.says, done=True)
        return Piece(piece.frames, says=piece.says, error=_cut())

    @property
    def _is_complete(self) -> bool:
        """Every choice has its finish reason."""
        span = self._call.head.spans.get("n")
        n = decode(self._call.body[span[0] : span[1]]) if span else 1
        return len(self._finished) >= (n if isinstance(n, int) else 1)

    def _pieces(self, frames: list[sse.Frame]) -> Piece:
        out: list[bytes] = []
        before = self._said
        for frame in frames:
            if frame.data == b"[DONE]":
                return Piece(b"".join(out), says=self._said and not before, done=True)
            try:
                out.append(self._relay(frame))
            except ProviderError as error:
                return Piece(b"".join(out), says=self._said and not before, error=error)
        return Piece(b"".join(out), says=self._said and not before)

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
        self.usage = Usage.from_openai(usage) or self.usage
        choices = chunk.get("choices")
        rows = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        self._finished.update(c.get("index", 0) for c in rows if c.get("finish_reason"))
        self._said = self._said or any(_says(c) for c in rows)
        return choices == [] and usage is not None and not self._call.head.wants_usage

    def _with_model(self, data: bytes) -> bytes:
        if self._old_front and data.startswith(self._old_front):
            return self._new_front + data[len(self._old_front) :]
        try:
            span = split_object(data)[1].get("model")
        except InvalidRequest:
            return data
        if span is None:
            return data
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
            raise in_band(Said(message=data.decode(errors="replace"))) from None
        return
    if not isinstance(chunk, dict):
        return
    groq = chunk.get("x_groq")
    error = chunk.get("error") or (groq.get("error") if isinstance(groq, dict) else None)
    if error:
        raise in_band(said({"error": error}))
    if frame.event == b"error" or "error_type" in chunk or "error_message" in chunk:
        raise in_band(said(chunk))


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
    _held: bytes = b""
    _is_sse: bool | None = None

    @property
    def usage(self) -> Usage | None:
        return self._relay.usage

    @property
    def commentable(self) -> bool:
        return self._relay.commentable

    def feed(self, data: bytes) -> Piece:
        if self._is_sse:
            return self._relay.feed(data)
        self._held += data
        start = self._held.lstrip()
        if self._is_sse is None and len(start) >= 6:
            self._is_sse = start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
            if self._is_sse:
                return self._relay.feed(self._held)
        if len(self._held) > BODY_LIMIT:
            return Piece(error=BadResponse("its answer is no event stream", detail="not an event stream"))
        return Piece()

    def close(self) -> Piece:
        if self._is_sse:
            return self._relay.close()
        if not self._held.strip():
            return Piece(done=True)
        try:
            values, _ = _reply_object(self._held)
            _refuse_error(values)
            _require_list(values, "choices")
            return self._as_stream(decode(self._held))
        except ProviderError as error:
            return Piece(error=error)

    def _as_stream(self, body: dict[str, Any]) -> Piece:
        """A complete answer as the chunks that were asked for."""
        composer = Composer(self._call, self._target)
        usage = self._relay.usage = Usage.from_openai(body.get("usage"))
        rows = [c for c in body["choices"] if isinstance(c, dict)]
        _refuse_choice_error(rows)
        chunks = [composer.chunk(_delta_of(row, index)) for index, row in enumerate(rows)]
        if usage and (last := composer.usage_chunk(usage)):
            chunks.append(last)
        return Piece(b"".join(map(sse.event, chunks)), says=bool(rows), done=True)


def _delta_of(choice: dict[str, Any], index: int) -> Delta:
    """A complete choice as one step."""
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    calls = [c for c in message.get("tool_calls") or () if isinstance(c, dict)]
    functions = [(c, f) for c in calls if isinstance(f := c.get("function"), dict)]
    return Delta(
        content=str(message.get("content") or choice.get("text") or ""),
        reasoning=str(message.get("reasoning_content") or message.get("reasoning") or ""),
        tool_calls=tuple(
            ToolCall(str(f.get("name", "")), str(f.get("arguments", "")), id=str(c.get("id") or "call_0"))
            for c, f in functions
        ),
        finish=str(choice.get("finish_reason") or "stop"),
        index=index,
    )
